"""Values that nobody may see: where they come from, the folder in which they reach a container, masking."""
