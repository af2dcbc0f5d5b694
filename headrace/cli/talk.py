"""The two ways in which ``chat`` and ``complete`` reach a model: in this process, or on a server of the OpenAI API.

Owns the sampling flags that both share; does not know conversations.
"""

import argparse
import json
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from headrace.bench.numbers import number
from headrace.cli.parser import ENGINE_GROUPS, FlagParser, add_options, engine_options_from, given_options
from headrace.config import OPTIONS, listed
from headrace.errors import ConfigError, EngineDeadError, HeadraceError, RequestError

if TYPE_CHECKING:
    import httpx

    from headrace.frontend.parsers.parser import Piece

Messages = list[dict[str, str]]
Pieces = Generator[str, None, None]  # of an answer; closing it stops the model
ROOM_SHARE, MOST_ROOM = 4, 1024  # an answer gets a fourth of the context, and at most so many tokens, kept free for it
CONNECT_SECONDS, READ_SECONDS = 10.0, 600.0


class Thought(str):
    """A piece of reasoning, which goes before the answer itself."""


class Talker(Protocol):
    """A model that answers. What it raises for a request that it can't answer is a HeadraceError."""

    def complete(self, prompt: str) -> Pieces:
        """The pieces of ``prompt``'s continuation."""
        ...

    def chat(self, messages: Messages) -> Pieces:
        """The pieces of the answer to ``messages``; those of reasoning are Thoughts."""
        ...

    def render(self, messages: Messages) -> str:
        """The prompt that the model sees for ``messages``."""
        ...

    def fits(self, messages: Messages) -> bool:
        """Whether the model's context holds ``messages`` and an answer."""
        ...


def add_arguments(parser: FlagParser) -> None:
    """The flags of both ways and of sampling, then the engine's."""
    parser.add_argument("--url", help="Talk to the server there (http://localhost:8000/v1), not to a model in here.")
    parser.add_argument("--model-name", metavar="NAME", help="Which of the server's models. [its first]")
    parser.add_argument("--api-key", metavar="KEY", help="The server's key. [$HEADRACE_API_KEY or $OPENAI_API_KEY]")
    add_sampling(parser)
    add_options(parser, ENGINE_GROUPS)


def add_sampling(parser: FlagParser) -> None:
    group = parser.add_argument_group("sampling (the model's own defaults unless set)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="Most tokens of an answer.")
    group.add_argument("--temperature", type=number, metavar="X", help="0 takes the likeliest token every time.")
    group.add_argument("--top-p", type=number, metavar="X", help="Sample from the likeliest tokens of this mass.")
    group.add_argument("--top-k", type=int, metavar="N", help="Sample from this many of the likeliest tokens.")
    group.add_argument("--stop", nargs="+", metavar="TEXT", help="Texts that end an answer.")


def sampling_of(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("max_tokens", "temperature", "top_p", "top_k", "stop")
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


@contextmanager
def talker(arguments: argparse.Namespace) -> Iterator[Talker]:
    """The talker that a command's arguments name, for the time of the ``with`` block."""
    sampling = sampling_of(arguments)
    if arguments.url is None:
        with closing(Local(engine_options_from(arguments), sampling)) as local:
            yield local
        return
    if given := given_options(arguments):
        flags = listed(OPTIONS[name].flag for name in given)
        instead = "; --model-name chooses among its models" if "model" in given else ""
        raise ConfigError(f"--url talks to a server that runs already: leave {flags} out{instead}.")
    with closing(Remote(arguments.url, arguments.model_name, arguments.api_key, sampling)) as remote:
        remote.choose_model()
        yield remote


class Local:
    """A model in an engine of our own."""

    def __init__(self, options: dict[str, Any], sampling: dict[str, Any]):
        from headrace.frontend.llm import LLM
        from headrace.types import SamplingParams

        self._llm = LLM(**options)
        self._params = SamplingParams(**({"max_tokens": None} | self._llm.info.default_sampling | sampling))

    def close(self) -> None:
        self._llm.shutdown()

    def complete(self, prompt: str) -> Pieces:
        return self._stream(self._llm.tokenizer.encode(prompt, True))

    def chat(self, messages: Messages) -> Pieces:
        from headrace.frontend.parsers.choose import place_of
        from headrace.frontend.parsers.parser import Parser

        prompt = self.render(messages)
        ids, format = self._llm.tokenizer.encode(prompt, False), self._llm.door.formats.reasoning
        if format is None:
            yield from self._stream(ids)
            return
        parser = Parser((), format, inside=place_of(format, prompt) == "inside")
        for text in self._stream(ids, skip_special_tokens=not format.special):
            yield from spoken(parser.add(text))
        yield from spoken(parser.add("", last=True))

    def render(self, messages: Messages) -> str:
        from headrace.frontend.chat import render_chat

        frontend = self._llm.config.frontend
        return render_chat(
            self._llm.tokenizer,
            messages,
            chat_template=self._llm.door.chat_template,
            content_format=frontend.chat_template_content_format,
            template_kwargs=frontend.default_chat_template_kwargs,
        )

    def fits(self, messages: Messages) -> bool:
        prompt = self._llm.tokenizer.encode(self.render(messages), False)
        limit = self._llm.info.max_model_len
        return len(prompt) + room(limit, self._params.max_tokens) <= limit

    def _stream(self, prompt: list[int], skip_special_tokens: bool = True) -> Pieces:
        params = self._params.clone(skip_special_tokens=skip_special_tokens)
        for output in self._llm.stream(prompt, params):
            for sequence in output.outputs:
                yield sequence.text


def spoken(piece: "Piece") -> Iterator[str]:
    """The news of an answer, reasoning as Thoughts."""
    if piece.reasoning:
        yield Thought(piece.reasoning)
    if piece.content:
        yield piece.content


def room(limit: int, max_tokens: int | None) -> int:
    """Tokens that an answer may need, out of a context of ``limit``."""
    return min(max_tokens or MOST_ROOM, max(1, limit // ROOM_SHARE))


class Remote:
    """A model of a server that speaks OpenAI's API; a server like ours also counts tokens and shows its template."""

    def __init__(self, url: str, model: str | None, api_key: str | None, sampling: dict[str, Any]):
        import httpx

        from headrace import remote

        self._url = remote.address(url if "://" in url else f"http://{url}")
        headers = remote.bearer(api_key or remote.api_key())
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self._client = httpx.Client(base_url=self._url, headers=headers, timeout=timeout)
        self._model, self._sampling, self._limit = model, sampling, 0

    def close(self) -> None:
        self._client.close()

    def choose_model(self) -> None:
        """The one asked for, else the server's first."""
        with self._reachable():
            cards = self._check(self._client.get("/v1/models")).json()["data"]
            card: dict[str, Any] = next((card for card in cards if self._model in (None, card["id"])), {})
        self._model = self._model or card.get("id")
        self._limit = card.get("max_model_len") or 0

    def complete(self, prompt: str) -> Pieces:
        for choice in self._stream("/v1/completions", {"prompt": prompt}):
            yield choice.get("text") or ""

    def chat(self, messages: Messages) -> Pieces:
        for choice in self._stream("/v1/chat/completions", {"messages": messages}):
            delta = choice.get("delta", {})
            if reasoning := delta.get("reasoning") or delta.get("reasoning_content"):
                yield Thought(reasoning)
            yield delta.get("content") or ""

    def render(self, messages: Messages) -> str:
        tokens = self._post("/tokenize", {"messages": messages})["tokens"]
        prompt: str = self._post("/detokenize", {"tokens": tokens})["prompt"]
        return prompt

    def fits(self, messages: Messages) -> bool:
        if not self._limit:
            return True
        try:
            count = self._post("/tokenize", {"messages": messages})["count"]
        except RequestError:  # not every server counts tokens; it will say itself if they are too many
            return True
        return bool(count + room(self._limit, self._sampling.get("max_tokens")) <= self._limit)

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        body = {"model": self._model, "stream": True, **self._sampling, **body}
        with self._reachable(), self._client.stream("POST", path, json=body) as response:
            if response.is_error:
                response.read()
            self._check(response)
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if data == line.strip() or not data or data == "[DONE]":
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise RequestError(f"the server broke off: {chunk['error'].get('message')}")
                yield from chunk.get("choices", [])

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        with self._reachable():
            return self._check(self._client.post(path, json={"model": self._model, **body})).json()

    def _check(self, response: "httpx.Response") -> "httpx.Response":
        if not response.is_error:
            return response
        try:
            error = response.json()["error"]
            reason = error if isinstance(error, str) else error["message"]
        except (ValueError, KeyError, TypeError):
            reason = response.text[:200] or response.reason_phrase
        raise RequestError(f"the server answered {response.status_code} to {response.url.path}: {reason}")

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except HeadraceError:
            raise
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = str(error).rstrip(".")
            raise HeadraceError(f"no server answers at {self._url}: {reason}.") from None
        except httpx.HTTPError as error:
            raise EngineDeadError(f"the connection to {self._url} broke: {error or type(error).__name__}.") from None
        except (ValueError, KeyError) as error:
            raise HeadraceError(f"{self._url} does not answer as an OpenAI-compatible server does: {error}.") from None
