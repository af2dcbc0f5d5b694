"""A command to run, as a list of words: split, checked, shown without its secrets, and asked for its flags."""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from itertools import zip_longest

from headrace.errors import ConfigError

HEADRACE = [sys.executable, "-m", "headrace"]
SOME_FLAG = re.compile("--|-[A-Za-z]")
SECRETS = ("--api-key", "--hf-token", "--header")  # flags whose values are nobody else's business


def words_of(command: str | Sequence[str], flag: str) -> list[str]:
    """A command as its words; ``headrace`` is the one of this installation. Raises ConfigError for bad quoting."""
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise ConfigError(f"{flag} can't be split into words: {error}.") from None
    if not words:
        raise ConfigError(f"{flag} names no command.")
    return [*HEADRACE, *words[1:]] if words[0] == "headrace" else words


def need_command(words: Sequence[str]) -> None:
    """Raise ConfigError if there is nothing to run."""
    if shutil.which(words[0]) is None:
        raise ConfigError(f"there is no command {words[0]!r}.")


def as_typed(words: Sequence[str]) -> str:
    """A command as a user would type it, but for its secrets: it goes into pages that are shown to others."""
    ours = list(words[:3]) == HEADRACE
    shown, secret = [], False
    for word in ["headrace", *words[3:]] if ours else words:
        if word.startswith("-"):
            flag, equals, _ = word.partition("=")
            known = spelled(flag) in SECRETS
            secret = known and not equals  # then the words that follow are
            shown.append(f"{flag}=***" if known and equals else word)
        else:
            shown.append("***" if secret else word)
    return shlex.join(shown)


def flag_value(words: Sequence[str], flag: str) -> str | None:
    """The last value of ``flag`` in a command, as ``--flag value`` or ``--flag=value``; None if absent."""
    found = None
    for word, following in zip_longest(words, words[1:]):
        if spelled(word) == flag:
            _, equals, value = word.partition("=")
            found = value if equals else following
    return found


def has_flag(words: Sequence[str], key: str) -> bool:
    """Whether the flag of that key, or its opposite, is in a command."""
    return any(spelled(word) in (f"--{dashed(key)}", f"--no-{dashed(key)}") for word in words)


def without_flag(words: Sequence[str], flag: str, *, num_values: float) -> list[str]:
    """A command without ``flag``, its opposite, and up to so many words behind it: infinity is a list's."""
    rest: list[str] = []
    skipped = 0.0  # of the words to come
    for word in words:
        if spelled(word) in (flag, flag.replace("--", "--no-", 1)):
            skipped = 0 if "=" in word else num_values
        elif skipped and not SOME_FLAG.match(word):
            skipped -= 1
        else:
            rest.append(word)
            skipped = 0
    return rest


def spelled(word: str) -> str:
    """A word's flag in the usual spelling."""
    return "--" + dashed(word[2:].partition("=")[0]) if word.startswith("--") else word


def dashed(key: str) -> str:
    """A key as its flag has it; what follows a dot is a key inside an object and stays as it is."""
    head, dot, rest = key.partition(".")
    return head.replace("_", "-") + dot + rest
