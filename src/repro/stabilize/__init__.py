"""Named, versioned, pure functions from a file's bytes to those that belong to its meaning, and who runs them."""
