"""The rows that decode: all advance by one token a step, so none is looked at until something about it changes.

In step n such a request computes position n + lead, whatever the others do. Its lead is found when it joins; after that
it is called up only when its blocks are full or its last token is planned. Knows no blocks and no budget.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from headrace.engine.request import Request, by_key


@dataclass(frozen=True)
class Columns:
    """Who decodes, as parallel lists that are never changed: plans may share them."""

    requests: list[Request] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    leads: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # of tokens: ones
    places: list[int] = field(default_factory=list)  # in these lists


class DecodeRows:
    """The decoding requests by row, and the step in which each is to be called up."""

    def __init__(self) -> None:
        self._members: dict[int, Request] = {}
        self._calls: dict[int, list[Request]] = {}  # by step; of those who have left or moved since, too
        self._columns: Columns | None = Columns()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, request: Request) -> bool:
        return self._members.get(request.row) is request

    def __iter__(self) -> Iterator[Request]:
        return iter(self._members.values())

    def join(self, request: Request, step: int, until: int) -> None:
        """Decode from ``step`` on, all but the last token planned, and be called up at position ``until``."""
        request.lead = request.num_planned - step
        self._members[request.row] = request
        self._columns = None
        self.call_at(request, until)

    def leave(self, request: Request, step: int) -> None:
        """Stand still from ``step`` on, which the request is not part of."""
        self.catch_up(request, step)
        del self._members[request.row]
        self._columns = None

    def catch_up(self, request: Request, step: int) -> None:
        """Write down what the steps before ``step`` have planned of a request."""
        request.num_planned = step + request.lead
        request.num_tokens = request.num_planned + 1

    def call_at(self, request: Request, position: int) -> None:
        """Call a request up in the step that is to compute ``position``."""
        request.due = position - request.lead
        self._calls.setdefault(request.due, []).append(request)

    def due(self, step: int) -> Iterator[Request]:
        """Those called up in ``step``, first to be served first; the answer may make later ones leave."""
        for request in sorted(self._calls.pop(step, ()), key=by_key):
            if request.due == step and request in self:
                self.catch_up(request, step)
                yield request

    def columns(self) -> Columns:
        """Everybody, in no particular order."""
        if self._columns is None:
            requests, rows = list(self._members.values()), list(self._members)
            leads = [request.lead for request in requests]
            self._columns = Columns(requests, rows, leads, [1] * len(rows), list(range(len(rows))))
        return self._columns
