"""Serve models: an engine that batches between steps, the HTTP APIs on top of it, and a web page."""
