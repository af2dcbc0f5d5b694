"""What every route needs: the engine handle, the configuration and facts derived from both. Knows no HTTP detail."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry
from starlette.requests import HTTPConnection

import headrace
from headrace.config import Config
from headrace.errors import RequestError
from headrace.frontend.sandbox import warm_up
from headrace.frontend.validation import check_text
from headrace.server.quota import Quota

if TYPE_CHECKING:
    from headrace.frontend.async_llm import AsyncLLM

logger = logging.getLogger(__name__)
T = TypeVar("T")
TEXT_THREADS = 4
TEXT_DEADLINE = 30.0  # seconds a chat template or tokenizer may take for one request


class Context:
    """The server's state, one per application (``app.state.context``)."""

    def __init__(self, config: Config, engine: "AsyncLLM", registry: CollectorRegistry):
        self.config = config
        self.engine = engine
        self.registry = registry
        self.draining = False
        self.started = int(time.time())
        self.chat_template, self.formats, self.marks = engine.door.chat_template, engine.door.formats, engine.door.marks
        logger.info("Answers are read for tool calls as: %s; for reasoning as: %s.", *self.formats.names)
        self.thinks_first = not engine.door.structured.enable_in_reasoning
        self.system_fingerprint = fingerprint(engine)
        server = config.server
        self.quota = Quota(server.max_queued_per_key, server.max_requests_per_minute_per_key, self._refused)
        self._threads = ThreadPoolExecutor(TEXT_THREADS, "text")
        if config.frontend.trust_request_chat_template:
            warm_up()

    def served_model(self, name: str | None) -> str:
        """The name to answer under; raises RequestError (404) for one that is not served here."""
        names = self.engine.served_names
        if not name or name in names:
            return name or names[0]
        raise RequestError(f"The model `{name}` does not exist. Valid aliases: {', '.join(names)}.", "model", 404)

    async def tokens_of(self, text: str, add_special_tokens: bool) -> list[int]:
        """The token ids of a text, for who wants to count them. Raises RequestError if it is far too long to fit."""
        tokenizer = self.engine.tokenizer
        check_text(text, tokenizer.longest_token, self.engine.info, "prompt")
        return await self.in_thread("Tokenizing", tokenizer.encode, text, add_special_tokens)

    async def in_thread(self, what: str, function: Callable[..., T], *args: object) -> T:
        """``function(*args)`` on a thread, with a deadline: text work never holds up the event loop."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
        try:
            return await asyncio.wait_for(work, TEXT_DEADLINE)
        except TimeoutError:
            raise RequestError(f"{what} took longer than {TEXT_DEADLINE:.0f} s.") from None

    def _refused(self, reason: str) -> None:
        for observer in self.engine.observers:
            observer.on_rejected(reason)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def context_of(connection: HTTPConnection) -> Context:
    context: Context = connection.app.state.context
    return context


def fingerprint(engine: "AsyncLLM") -> str:
    """Names what may change a seeded answer: the version, the model and where it runs."""
    info = engine.info
    facts = (engine.served_names, info.architecture, info.device, info.dtype, info.vocab_size, info.max_model_len)
    return f"headrace-{headrace.__version__}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:8]}"
