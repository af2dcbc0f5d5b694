"""OpenAI's Responses API: a request is turned into a chat, and what the chat answers into items and events."""

from headrace.server.responses.routes import router
from headrace.server.responses.store import Store

__all__ = ["Store", "router"]
