"""The HTTP APIs: our own, OpenAI's, AUTOMATIC1111's, and what operators need."""
