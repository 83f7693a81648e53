"""Configs of models and of training runs: validated once, when they are read."""
