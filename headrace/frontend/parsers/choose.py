"""Which formats a server reads its answers by: those that were asked for, or those that the chat template shows.

Also owns where an answer begins: in the middle of reasoning if the prompt's end has opened it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.frontend.parsers.families import REASONING_ALIASES, REASONING_FORMATS, TOOL_ALIASES, TOOL_FORMATS
from headrace.frontend.parsers.formats import ReasoningFormat, ToolFormat

OFF = "none"
Place = Literal["inside", "open", "over"]


@dataclass(frozen=True)
class Formats:
    """``names``: of both, "none" for one that is None."""

    tools: ToolFormat | None
    reasoning: ReasoningFormat | None
    names: tuple[str, str]


def choose_formats(config: Config, template: str) -> Formats:
    """Raises ConfigError if --enable-auto-tool-choice is given and no format of tool calls is known."""
    options = config.parsers
    tools = options.tool_call_parser or detected(TOOL_FORMATS, template)
    reasoning = options.reasoning_parser or detected(REASONING_FORMATS, template)
    if options.enable_auto_tool_choice and tools == OFF:
        raise ConfigError(
            "--enable-auto-tool-choice needs --tool-call-parser here: the chat template shows no known format of calls."
        )
    return Formats(
        TOOL_FORMATS.get(TOOL_ALIASES.get(tools, tools)),
        REASONING_FORMATS.get(REASONING_ALIASES.get(reasoning, reasoning)),
        (tools, reasoning),
    )


def detected(formats: Mapping[str, ToolFormat | ReasoningFormat], template: str) -> str:
    """The name of the first format of which ``template`` shows a sign, or "none"."""
    return next((name for name, known in formats.items() if any(sign in template for sign in known.signs)), OFF)


def place_of(format: ReasoningFormat, prompt: str, continued: str | None = None) -> Place:
    """Whether an answer to ``prompt`` begins within reasoning, may begin with it, or comes after it.

    ``continued``: the message that the answer goes on with, if it does.
    """
    if continued is not None:
        last_start = max((continued.rfind(start) for start in format.starts), default=-1)
        last_end = max((continued.rfind(end) for end in format.ends), default=-1)
        return "inside" if last_start > last_end else "over"
    tail = prompt.rstrip()
    if tail.endswith(format.ends):
        return "over"
    return "inside" if format.inside or tail.endswith(format.starts) else "open"
