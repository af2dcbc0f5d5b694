"""Grammars in the engine: compiled on threads of their own, and the place of each request in its one.

llguidance computes which tokens may come next, after every token. Owns compilation (deadline, cache) and the masks;
does not know what users wrote (frontend/grammar.py makes one notation of it), nor when a request runs.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer

COMPILE_THREADS = 2
COMPILE_SECONDS = 1.0  # that one grammar may take; the limits below keep all that are known within
CACHED = 32  # compiled grammars kept
PATIENCE = 0.002  # seconds a plan waits for masks that are late, rather than leaving their rows out
TOO_SLOW = f"The grammar takes more than {COMPILE_SECONDS:g} s to compile; simplify it."

Mask = NDArray[np.uint32]  # [words]: bit t % 32 of word t // 32 says whether token t may come


def limits() -> LLParserLimits:
    """What llguidance may spend on one grammar: some hundred milliseconds to compile it, a few on a token."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_grammar_size=100_000, step_max_items=10_000, max_lexer_states=20_000, verbose_errors=False
    )


def _broken(matcher: LLMatcher) -> str:
    reason, *_ = matcher.get_error().splitlines() or ["no token fits it"]
    if "doesn't satisfy the grammar" in reason:  # as masks let none such come while there is another
        return "No token is left: other parameters (bad_words, allowed_token_ids, …) rule out all that the form allows."
    return f"The output can't go on by its grammar: {reason[:300].rstrip('.')}."


@dataclass
class Compilation:
    """A grammar on its way, shared by all who ask for the same: its matcher before any token, and the first mask."""

    result: Future[tuple[LLMatcher, Mask]] = field(default_factory=Future)
    began: float | None = None  # time.monotonic() seconds; None while it is queued


class Grammar:
    """One request's place in its grammar, which advances by committed tokens."""

    def __init__(self, compilation: Compilation, forbidden: Sequence[int]):
        """``forbidden``: tokens that may come only if no other may."""
        self._compilation = compilation
        self._forbidden = forbidden
        self.matcher: LLMatcher | None = None
        self.mask: Mask | None = None  # of the next token, once it is known
        self.error: str | None = None  # why the request can't go on

    def settle(self) -> bool:
        """Whether compiling has ended; from then on there are a matcher and a mask, or an error."""
        result, began = self._compilation.result, self._compilation.began
        if not result.done():
            if began is not None and time.monotonic() - began > COMPILE_SECONDS:
                self.error = TOO_SLOW
            return self.error is not None
        if error := result.exception():
            self.error = str(error)
        else:
            pristine, mask = result.result()
            self.matcher = pristine.deep_copy()
            self.offer(mask.copy())
        return True

    def accept(self, token_id: int) -> bool:
        """Take the next token; True if no other may follow. A token that does not fit is an error."""
        assert self.matcher is not None  # it is settled
        if not self.matcher.consume_token(token_id):
            self.error = _broken(self.matcher)
            return False
        return self.matcher.is_stopped()

    def offer(self, mask: Mask) -> None:
        """Have the next token's mask, which may be changed."""
        assert self.matcher is not None
        if self.matcher.is_error():
            self.error = _broken(self.matcher)
        if self._forbidden:
            others = mask.copy()
            for token_id in self._forbidden:
                others[token_id // 32] &= ~np.uint32(1 << token_id % 32)
            mask = others if others.any() else mask
        self.mask = mask

    def take(self) -> Mask:
        """The next token's mask; there is none then until that token has been accepted."""
        mask, self.mask = self.mask, None
        assert mask is not None
        return mask


class Grammars:
    """All grammars of an engine. Every method returns at once; the work is done on threads."""

    def __init__(self, load_tokenizer: Callable[[], LLTokenizer], vocab_size: int, eos_token_ids: Sequence[int]):
        """``load_tokenizer`` is called once, on a thread, when the first grammar comes."""
        self._load_tokenizer = load_tokenizer
        self._num_words = -(-vocab_size // 32)
        self._eos_token_ids = eos_token_ids
        self._compilers = ThreadPoolExecutor(COMPILE_THREADS, "grammar")
        self._filler = ThreadPoolExecutor(1, "mask")
        self._tokenizer: Future[LLTokenizer] | None = None
        self._cache: OrderedDict[str, Compilation] = OrderedDict()
        self._filling: Future[None] | None = None

    def only(self, token_ids: Sequence[int]) -> Mask:
        """The mask of these tokens."""
        mask = np.zeros(self._num_words, np.uint32)
        for token_id in token_ids:
            mask[token_id // 32] |= np.uint32(1 << token_id % 32)
        return mask

    @cached_property
    def endless(self) -> Mask:
        """The mask of all tokens but those that end an output."""
        return ~self.only(self._eos_token_ids)

    def start(self, text: str, ignore_eos: bool) -> Grammar:
        """A request's place at the start of a grammar, in llguidance's notation; ask ``settle`` for more."""
        compilation = self._cache.get(text)
        if compilation is None:
            if self._tokenizer is None:
                self._tokenizer = self._compilers.submit(self._load_tokenizer)
            compilation = self._cache[text] = Compilation()
            self._compilers.submit(self._compile, text, self._tokenizer, compilation)
            if len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(text)
        return Grammar(compilation, self._eos_token_ids if ignore_eos else ())

    def advance(self, grammars: list[Grammar]) -> None:
        """Begin to compute the next masks of those that have accepted a token."""
        self._filling = self._filler.submit(self._fill, grammars)

    def await_masks(self) -> None:
        """Wait a little for masks under way: most take less time than a step."""
        if self._filling is not None and not self._filling.done():
            wait([self._filling], PATIENCE)

    def await_any(self, grammars: list[Grammar], timeout: float) -> None:
        """Wait until a mask or a compilation is done, for up to ``timeout`` seconds."""
        pending: list[Future[Any]] = [grammar._compilation.result for grammar in grammars]
        if self._filling is not None and not self._filling.done():
            pending.append(self._filling)
        wait(pending, timeout, "FIRST_COMPLETED")

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor()

    def _compile(self, text: str, tokenizer: Future[LLTokenizer], compilation: Compilation) -> None:
        from llguidance import LLMatcher

        try:
            vocabulary = tokenizer.result()
            compilation.began = time.monotonic()
            matcher = LLMatcher(vocabulary, text, log_level=0, limits=limits())
            mask = np.frombuffer(matcher.compute_bitmask(), np.uint32)[: self._num_words]  # it may have a bit more
            if matcher.is_error():
                raise ValueError(f"The grammar can't be used: {matcher.get_error()}")
            compilation.result.set_result((matcher, mask))
        except Exception as error:  # whatever a request brings, it is that request's error
            compilation.result.set_exception(error)

    def _fill(self, grammars: list[Grammar]) -> None:
        masks = np.zeros((len(grammars), self._num_words), np.uint32)
        places = [(grammar.matcher, place) for place, grammar in enumerate(grammars) if grammar.matcher is not None]
        try:
            self._executor.unsafe_compute_mask_ptr(places, masks.ctypes.data, masks.strides[0], len(grammars))
            for grammar, mask in zip(grammars, masks, strict=True):
                grammar.offer(mask)
        except Exception as error:  # nobody awaits this thread's result, and the requests would wait for ever
            for grammar in grammars:
                grammar.error = f"The grammar's next tokens can't be computed: {error}"
