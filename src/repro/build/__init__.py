"""A build as Docker knows it: Dockerfile, context, builder, cache."""
