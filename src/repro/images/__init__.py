"""What came out of a recipe: inventory, archives, registries, and whether two are the same."""
