"""Which formats a server reads its answers by: those that were asked for, or those that the chat template shows.

Also owns where an answer begins: in the middle of reasoning if the prompt's end has opened it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.frontend.parsers.families import REASONING_ALIASES, REASONING_FORMATS, TOOL_ALIASES, TOOL_FORMATS
from headrace.frontend.parsers.formats import ReasoningFormat, ToolFormat

logger = logging.getLogger(__name__)
OFF = "none"


@dataclass(frozen=True)
class Formats:
    tools: ToolFormat | None
    reasoning: ReasoningFormat | None


def choose_formats(config: Config, template: str) -> Formats:
    """Raises ConfigError if --enable-auto-tool-choice is given and no format of tool calls is known."""
    options = config.parsers
    tools = options.tool_call_parser or detected(TOOL_FORMATS, template)
    reasoning = options.reasoning_parser or detected(REASONING_FORMATS, template)
    if options.enable_auto_tool_choice and tools == OFF:
        raise ConfigError(
            "--enable-auto-tool-choice needs --tool-call-parser here: the chat template shows no known format of calls."
        )
    logger.info("Answers are read for tool calls as: %s; for reasoning as: %s.", tools, reasoning)
    return Formats(
        TOOL_FORMATS.get(TOOL_ALIASES.get(tools, tools)),
        REASONING_FORMATS.get(REASONING_ALIASES.get(reasoning, reasoning)),
    )


def detected(formats: Mapping[str, ToolFormat | ReasoningFormat], template: str) -> str:
    """The name of the first format of which ``template`` shows a sign, or "none"."""
    return next((name for name, known in formats.items() if any(sign in template for sign in known.signs)), OFF)


def starts_inside(format: ReasoningFormat, prompt: str, continued: str | None) -> bool:
    """Whether an answer to ``prompt`` begins within reasoning. ``continued``: the message that it goes on with."""
    if continued is not None:
        last_start = max((continued.rfind(start) for start in format.starts), default=-1)
        return last_start > max((continued.rfind(end) for end in format.ends), default=-1)
    tail = prompt.rstrip()
    return tail.endswith(format.starts) or (format.inside and not tail.endswith(format.ends))
