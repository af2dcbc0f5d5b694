"""Where one sequence stands in its reasoning, told by its tokens. Does not know text, formats or grammars."""

from collections.abc import Sequence

from headrace.types import Thinking

SLACK = 3  # tokens, of space mostly, that may come before reasoning begins


class Thinker:
    """Follows a sequence. ``num_tokens``: of its reasoning so far, without the markers around it."""

    def __init__(self, marks: Thinking):
        self.marks = marks
        self.inside = marks.inside
        self.open = not marks.inside  # it may begin yet
        self.answering = False  # what follows is the answer itself
        self.num_tokens = 0
        self.num_seen = 0
        self.forced = list(marks.closing) if marks.inside and marks.budget == 0 else []  # tokens that come next
        self._latest: list[int] = []
        self._reach = max(map(len, marks.starts + marks.ends + marks.gates), default=1)

    def accept(self, token_id: int) -> None:
        """Take the next token."""
        self.num_seen += 1
        self._latest = [*self._latest[-self._reach + 1 :], token_id] if self._reach > 1 else [token_id]
        del self.forced[:1]
        if self.inside:
            self._think()
        elif self._after(self.marks.starts) and (self.open or self.marks.gates):
            self.inside, self.open = True, False
            self._limit()
        elif self.num_seen >= self._reach + SLACK:
            self.close()
        self.answering = self.answering or self._after(self.marks.gates) > 0

    def accept_all(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if not (self.inside or self.open or self.marks.gates):
                return
            self.accept(token_id)

    def close(self) -> None:
        """Reasoning is over, or didn't begin where it had to."""
        self.inside = self.open = False
        self.answering = self.answering or not self.marks.gates

    def _think(self) -> None:
        self.num_tokens += 1
        if length := self._after(self.marks.ends):
            self.num_tokens -= length
            self.forced = self.forced if self.marks.gates else []  # it may have come with the first of those forced
            self.close()
        else:
            self._limit()

    def _limit(self) -> None:
        if not self.forced and self.num_tokens == self.marks.budget:
            self.forced = list(self.marks.closing)

    def _after(self, markers: list[list[int]]) -> int:
        """The length of the marker that the latest tokens are; 0 if they are none."""
        return next((len(marker) for marker in markers if self._latest[-len(marker) :] == marker), 0)
