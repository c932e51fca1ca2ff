"""Runs in MLflow: the journal's story, a client, and a process that publishes."""
