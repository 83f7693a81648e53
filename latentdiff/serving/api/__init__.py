"""The HTTP APIs: our own, OpenAI's, AUTOMATIC1111's, and health and metrics for operators."""
