"""Numbers on the command line: each function reads one for argparse, and refuses any other text in a sentence."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no number") from None


def from_zero(text: str) -> float:
    value = number(text)
    if not value >= 0:
        raise ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value


def rate(text: str) -> float:
    """Above 0, infinity included."""
    value = number(text)
    if not value > 0:
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def above_zero(text: str) -> float:
    value = rate(text)
    if math.isinf(value):
        raise ArgumentTypeError(f"{text!r} is not finite")
    return value


def listed(one: Callable[[str], T]) -> Callable[[str], list[T]]:
    """What reads several of them, separated by commas."""
    return lambda text: [one(part.strip()) for part in text.split(",")]
