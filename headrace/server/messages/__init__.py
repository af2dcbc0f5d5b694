"""Anthropic's Messages API: a request becomes the ChatRequest that asks for the same, and goes its way from there."""
