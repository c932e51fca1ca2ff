"""Getting a run back: where each of its ingredients is, what may be expected here, and the run once more."""
