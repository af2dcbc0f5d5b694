"""The OpenAI-compatible server's module path."""
