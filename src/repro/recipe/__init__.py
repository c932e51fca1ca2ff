"""Everything that decides an image, as values; and the words for what changed."""
