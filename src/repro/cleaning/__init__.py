"""What may go, and what its going would make impossible."""
