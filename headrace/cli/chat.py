"""``headrace chat``: a conversation, of which the oldest turns are dropped once it outgrows the model's context."""

import argparse
import sys

from headrace.cli import talk
from headrace.cli.complete import interact, show
from headrace.cli.parser import FlagParser
from headrace.cli.talk import Messages, Talker
from headrace.errors import RequestError

WELCOME = "/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer."


def add_arguments(parser: FlagParser) -> None:
    parser.add_argument("-q", "--quick", metavar="MESSAGE", help="Send MESSAGE, print the answer, and end.")
    parser.add_argument("--system-prompt", metavar="TEXT", help="What the model is told before the conversation.")
    parser.add_argument("--show-prompt", action="store_true", help="Print the prompt that the template makes.")
    talk.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    with talk.talker(arguments) as model:
        conversation = Conversation(model, arguments.system_prompt, arguments.show_prompt)
        if arguments.quick is not None:
            conversation.say(arguments.quick)
            return 0
        if sys.stdin.isatty():
            print(WELCOME)
        interact(conversation.enter)
    return 0


class Conversation:
    """The messages so far, and how the next one is added."""

    def __init__(self, model: Talker, system_prompt: str | None = None, show_prompt: bool = False):
        self._model = model
        self._show_prompt = show_prompt
        self._start: Messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self.messages = list(self._start)

    def enter(self, line: str) -> None:
        """One line of an interactive chat: a command or a message."""
        if line.strip() == "/reset":
            self.messages = list(self._start)
        elif line.startswith("/"):
            print(WELCOME)
        else:
            self.say(line)

    def say(self, message: str) -> None:
        """Send ``message`` and print the answer; the conversation stays as it was if that fails."""
        messages, dropped = trim([*self.messages, {"role": "user", "content": message}], self._model)
        if dropped:
            print(f"[the {dropped} oldest messages no longer fit and are forgotten]", file=sys.stderr)
        if self._show_prompt:
            print(f"--- prompt ---\n{self._model.render(messages)}\n--- answer ---", flush=True)
        answer = show(self._model.chat(messages))
        self.messages = [*messages, {"role": "assistant", "content": answer}]


def trim(messages: Messages, model: Talker) -> tuple[Messages, int]:
    """The longest end of a conversation that fits, its system prompt kept, and how many messages that drops.

    Whole turns go: what is left begins with a user's message. Raises RequestError if the last message alone is too
    long.
    """
    head = 1 if messages[0]["role"] == "system" else 0
    starts = [i for i, message in enumerate(messages) if i >= head and message["role"] == "user"]
    for start in starts:
        kept = messages[:head] + messages[start:]
        if model.fits(kept):
            return kept, start - head
    raise RequestError("the message is too long for the model's context: send a shorter one.")
