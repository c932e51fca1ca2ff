"""Fault injection: short real runs, each with a real fault at a random moment, and what must hold afterwards."""
