"""A run in one file: written, checked, brought in. `docs/bundles.md` says what is in it."""
