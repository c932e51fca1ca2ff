"""Containers and registries: what is asked of an engine, and what it answers."""
