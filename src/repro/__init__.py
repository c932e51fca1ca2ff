"""Run an experiment in a container named by its content, and get any old run back."""

__version__ = "0.1.0"
