"""Runs as content-addressed objects: the only room that knows fsspec providers."""
