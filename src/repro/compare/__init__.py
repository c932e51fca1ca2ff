"""Comparing two runs: their results level by level, and what went into them layer by layer."""
