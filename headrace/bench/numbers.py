"""Numbers on the command line: each name here reads one for argparse, and refuses any other text in a sentence."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def reader(kind: Callable[[str], T], good: Callable[[T], bool], what: str) -> Callable[[str], T]:
    """What reads those numbers of a ``kind`` that are ``good``: ``what`` they are, in words."""

    def read(text: str) -> T:
        with suppress(ValueError):
            if good(value := kind(text)):
                return value
        raise ArgumentTypeError(f"{text!r} is no {what}")

    return read


def listed(one: Callable[[str], T]) -> Callable[[str], list[T]]:
    """What reads several of them, separated by commas."""
    return lambda text: [one(part.strip()) for part in text.split(",")]


positive = reader(int, lambda value: value > 0, "number above 0")
port = reader(int, lambda value: 0 < value < 2**16, "port from 1 to 65535")
natural = reader(int, lambda value: value >= 0, "number from 0 on")
from_zero = reader(float, lambda value: value >= 0, "number from 0 on")
rate = reader(float, lambda value: value > 0, "number above 0")  # infinity, too
number = reader(float, math.isfinite, "number")
above_zero = reader(float, lambda value: 0 < value < math.inf, "finite number above 0")
