"""``headrace complete``: the model continues what is typed, as it stands."""

import argparse
import contextlib
import sys
from collections.abc import Callable

from headrace.cli import talk
from headrace.cli.parser import FlagParser
from headrace.cli.talk import Pieces, Thought
from headrace.errors import RequestError

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
MAX_TOKENS = 128  # unless --max-tokens says otherwise: text without a template seldom ends by itself


def add_arguments(parser: FlagParser) -> None:
    parser.add_argument("-q", "--quick", metavar="TEXT", help="Continue TEXT once, and end.")
    talk.add_arguments(parser)
    parser.set_defaults(max_tokens=MAX_TOKENS)


def run(arguments: argparse.Namespace) -> int:
    with talk.talker(arguments) as model:
        if arguments.quick is not None:
            show(model.complete(arguments.quick))
            return 0
        interact(lambda line: show(model.complete(line)))
    return 0


def show(pieces: Pieces) -> str:
    """Print ``pieces`` as they come and return their text; Ctrl-C ends them there.

    Reasoning is dimmed; where nobody watches it is left out. It is no part of the text.
    """
    text, thinking, watched = "", False, sys.stdout.isatty()
    try:
        with contextlib.closing(pieces):  # an end before theirs tells the engine or the server to stop
            for piece in pieces:
                if isinstance(piece, Thought):
                    thinking = watched
                    print(f"{DIM}{piece}{PLAIN}" if watched else "", end="", flush=True)
                    continue
                text += piece
                print("\n\n" if thinking and piece else "", piece, sep="", end="", flush=True)
                thinking = thinking and not piece
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    finally:
        print()
    return text


def interact(answer: Callable[[str], object]) -> None:
    """Call ``answer`` with each line typed, until the input ends or a line says /exit."""
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        import readline  # noqa: F401  (its import gives input() line editing and a history)
    while True:
        try:
            line = input(prompt)
        except EOFError:
            if prompt:
                print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if line.strip() == "/exit":
            return
        if not line.strip():
            continue
        try:
            answer(line)
        except RequestError as error:
            print(f"headrace: {error}", file=sys.stderr)
