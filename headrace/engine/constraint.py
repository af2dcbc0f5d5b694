"""What one request's next token may be: anything while it thinks, then what its grammar says, and at times one token.

Joins a Thinker and a Grammar, of which one may be missing. Does not know rows or steps.
"""

from headrace.engine.grammar import Grammar, Grammars, Mask
from headrace.engine.thinking import Thinker
from headrace.types import Submit


class Constraint:
    """``thinker`` is there until it can't matter any more."""

    def __init__(self, grammars: Grammars, grammar: Grammar | None, thinker: Thinker | None):
        self._grammars = grammars
        self._error: str | None = None
        self.grammar, self.thinker = grammar, thinker

    @classmethod
    def of(cls, submit: Submit, grammars: Grammars) -> "Constraint | None":
        """What ``submit`` asks for, if it does."""
        grammar = None if submit.grammar is None else grammars.start(submit.grammar, submit.params.ignore_eos)
        thinker = None if submit.thinking is None else Thinker(submit.thinking)
        return None if grammar is None and thinker is None else cls(grammars, grammar, thinker)

    @property
    def error(self) -> str | None:
        """Why the request can't go on."""
        return self._error or (self.grammar.error if self.grammar else None)

    @property
    def over(self) -> bool:
        """Whether nothing is ruled out from now on."""
        return self.grammar is None and self.thinker is None

    @property
    def late(self) -> Grammar | None:
        """The grammar, if it doesn't know yet what may follow the last token it has taken."""
        return self.grammar if self.grammar and self.grammar.mask is None else None

    @property
    def num_free(self) -> int:
        """How many of the output's first tokens may be any, whatever those are that aren't known yet."""
        thinker = self.thinker
        if self.grammar or thinker is None or not thinker.inside or thinker.marks.budget is None:
            return 0
        return thinker.num_seen + thinker.marks.budget - thinker.num_tokens

    def settle(self) -> bool:
        """Whether the grammar's compiling has ended."""
        return self.grammar is None or self.grammar.settle()

    def take(self) -> Mask | None:
        """The next token's mask; None if it may be any."""
        grammar, thinker = self.grammar, self.thinker
        if thinker is not None and thinker.forced:
            return self._grammars.only([thinker.forced[0]])
        if grammar is None:
            return None
        if thinker is None:
            return grammar.take()
        if not _undecided(thinker):
            return self._grammars.endless
        assert grammar.mask is not None
        return grammar.mask | self._grammars.only([start[0] for start in thinker.marks.starts])

    def accept(self, token_id: int) -> bool:
        """Take the next token; True if no other may follow. If the grammar took it, the next mask is to be made."""
        if self.thinker is not None:
            if self.grammar is not None and _undecided(self.thinker):
                self._decide(self.thinker, self.grammar, token_id)
            if self.thinker is not None:
                self._think(self.thinker, token_id)
                return False
        if self.grammar is None:
            return False
        self.grammar.mask = None
        return self.grammar.accept(token_id)

    def _decide(self, thinker: Thinker, grammar: Grammar, token_id: int) -> None:
        """Reasoning begins if the token is the beginning of its marker and can't be the answer's."""
        assert grammar.mask is not None
        allowed = grammar.mask[token_id // 32] >> token_id % 32 & 1
        start = next((start for start in thinker.marks.starts if start[0] == token_id and not allowed), None)
        if start is None:
            self.thinker = None
        else:
            thinker.forced = list(start)

    def _think(self, thinker: Thinker, token_id: int) -> None:
        if thinker.forced and thinker.forced[0] != token_id:
            self._error = "The reasoning can't be ended: other parameters rule out the tokens of its end."
        thinker.accept(token_id)
        done = thinker.answering if self.grammar else not thinker.inside and not thinker.open
        if done and not thinker.forced:
            self.thinker = None


def _undecided(thinker: Thinker) -> bool:
    """Whether the next token may begin either reasoning or the answer."""
    return thinker.open and not thinker.marks.gates and not thinker.forced
