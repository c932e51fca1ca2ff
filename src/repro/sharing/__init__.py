"""Runs for others: pushed to a plain git remote and an image registry when asked, and pulled from there."""
