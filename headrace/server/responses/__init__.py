"""OpenAI's Responses API: a request is turned into a chat, and what the chat answers into items and events."""
