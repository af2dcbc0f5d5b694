"""The files of ``headrace run-batch``: which lines are answered already, and the output in the input's order.

Answers are appended to OUTPUT.partial as they come, so that an interrupted run can go on; at the end they become
OUTPUT. Of each line 16 bytes are remembered, whatever its length. Knows nothing of how lines are answered.
"""

import fcntl
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.errors import ConfigError, HeadraceError
from headrace.server.batch.lines import ID_PREFIX, Answer, Line, answer_id, custom_id_of, parsed, raw_lines

Integers = npt.NDArray[np.int64]
OPEN = -1  # the place of an answer that isn't there


class RepeatedIdError(HeadraceError):
    """Two lines have the same custom_id; the numbers count from 1."""

    def __init__(self, first: int, second: int):
        super().__init__(f"Lines {first} and {second} have the same custom_id: give each its own.")
        self.second = second


class Written(msgspec.Struct):
    """What matters of an answer that an earlier run wrote."""

    id: str
    error: msgspec.Raw | None = None


class Job:
    """A batch in files, to be used as a context manager; inside, what is taken is on disk at once.

    ``model``: what answers, as its answers to the same lines are no other model's. ``limit``: the longest line, in
    bytes. ``resume``: keep what an earlier run has answered. ``total`` counts the input's lines, ``answered`` those
    with an answer by now, ``failed`` those of this run whose answer is an error; a later run asks these again. Raises
    ConfigError if a file can't be used, a custom_id is there twice, or another run writes to the same output.
    """

    def __init__(self, source: Path, output: Path, *, model: str, limit: int, resume: bool = True):
        self._source, self._output, self._partial = source, output, output.with_name(output.name + ".partial")
        self.model, self._limit, self._resume = model, limit, resume
        try:
            with source.open("rb") as file:
                self._keys = line_keys(file, model, limit)
        except OSError as error:
            raise ConfigError(f"--input-file {source} can't be read: {error.strerror}.") from None
        except RepeatedIdError as error:
            raise ConfigError(f"--input-file {source} can't be answered. {error}") from None
        if not len(self._keys):
            raise ConfigError(f"--input-file {source} holds no requests.")
        self.total = len(self._keys)
        self.answered = self.failed = 0

    def __enter__(self) -> Self:
        try:
            if self._resume and self._output.exists() and not self._partial.exists():
                places, _ = places_of(self._output, self._keys)
                if (places != OPEN).any():
                    os.rename(self._output, self._partial)
            self._file = self._partial.open("ab")
        except OSError as error:
            raise ConfigError(f"{self._partial} can't be written: {error.strerror}.") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigError(f"another run writes to {self._partial}: wait for its end.") from None
        if not self._resume:
            self._file.truncate(0)
        self._places, end = places_of(self._partial, self._keys)
        self._file.truncate(end)  # a killed run may have left half a line
        self._file.seek(end)
        self.answered = int((self._places != OPEN).sum())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._partial.exists() and not self._partial.stat().st_size:
            self._partial.unlink()

    def open_lines(self, urls: frozenset[str]) -> Iterator[Line]:
        """The lines without an answer. ``urls``: those that they may name."""
        with self._source.open("rb") as file:
            for index, (number, raw) in enumerate(raw_lines(file, self._limit)):
                if index >= self.total or key_of(answer_id(raw, self.model)) != self._keys[index]:
                    raise HeadraceError(f"{self._source} was changed while it was read; run the batch again.")
                if self._places[index] == OPEN:
                    yield parsed(index, number, raw, urls, self._limit)

    def take(self, line: Line, answer: Answer) -> None:
        """Write an answer."""
        place = self._file.tell()
        try:
            self._file.write(msgspec.json.encode(answer) + b"\n")
            self._file.flush()
        except OSError as error:
            raise HeadraceError(f"{self._partial} can't be written: {error.strerror}.") from None
        self._places[line.index] = place
        self.answered += 1
        self.failed += answer.failed

    def complete(self) -> None:
        """Make the answers the output, in the input's order."""
        ordered = self._partial.with_suffix(".ordered")
        try:
            with self._partial.open("rb") as source, ordered.open("wb") as target:
                for place in self._places.tolist():
                    source.seek(place)
                    target.write(source.readline())
            os.replace(ordered, self._output)
            self._partial.unlink()
        except OSError as error:
            ordered.unlink(missing_ok=True)
            raise HeadraceError(
                f"{self._output} can't be written: {error.strerror}; {self._partial} has all."
            ) from None


def line_keys(file: BinaryIO, model: str, limit: int) -> npt.NDArray[np.uint64]:
    """A number for each line, by which its answer is known. Raises RepeatedIdError."""
    keys, names, numbers = array("Q"), array("q"), array("q")
    for number, raw in raw_lines(file, limit):
        keys.append(key_of(answer_id(raw, model)))
        if (custom_id := custom_id_of(raw)) is not None:
            names.append(hash(custom_id))
            numbers.append(number)
    order = np.argsort(np.array(names), kind="stable")
    again = np.flatnonzero(np.diff(np.array(names)[order]) == 0)
    if len(again):
        raise RepeatedIdError(numbers[order[again[0]]], numbers[order[again[0] + 1]])
    return np.array(keys, np.uint64)


def places_of(path: Path, keys: npt.NDArray[np.uint64]) -> tuple[Integers, int]:
    """(where in ``path`` the answer to each line begins, the end of the last whole line); errors are no answers."""
    places = np.full(len(keys), OPEN, np.int64)
    found, starts, end = array("Q"), array("q"), 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                written = msgspec.json.decode(line, type=Written)
                if written.error is None:
                    found.append(key_of(written.id))
                    starts.append(end)
            except (msgspec.MsgspecError, UnicodeError, ValueError):
                pass  # none of ours
            end += len(line)
    if len(found) and len(keys):
        order = np.argsort(keys)
        nearest = order[np.searchsorted(keys, np.array(found), sorter=order).clip(max=len(keys) - 1)]
        same = keys[nearest] == np.array(found)
        places[nearest[same]] = np.array(starts)[same]
    return places, end


def key_of(answer: str) -> int:
    """The first 64 bits of an answer's id."""
    return int(answer.removeprefix(ID_PREFIX)[:16], 16)
