"""The command line's verbs, in groups."""
