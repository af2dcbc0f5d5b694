"""Requests that generate more than they give: ``best_of``, and beam search.

To its caller a beam search is one request. To the engine each of its steps is a handful of requests for one token and
its likeliest alternatives; all but the ends of their prompts are in the prefix cache. Knows no engine and no HTTP.
"""

from dataclasses import dataclass
from heapq import nlargest
from itertools import islice

import msgspec

from headrace.frontend.detokenizer import Detokenizer
from headrace.frontend.door import Admitted, Door
from headrace.frontend.observer import FinishedRequest, Observer
from headrace.frontend.tokenizer import Tokenizer
from headrace.frontend.tracker import Sequence, Track
from headrace.params import Parameters
from headrace.types import (
    FinishReason,
    OutputKind,
    PositionLogprobs,
    RequestOutput,
    SamplingParams,
    Submit,
    TokenDelta,
)

ALL = -1  # logprobs of the whole vocabulary


class BeamSearchParams(Parameters, omit_defaults=True, forbid_unknown_fields=True):
    """What ``LLM.beam_search`` is to find; the fields are those of vLLM's ``BeamSearchParams``, and ``early_stopping``.

    ``temperature`` changes nothing, as nothing is drawn. Raises ``RequestError`` naming a field of another type.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    early_stopping: bool | str = False

    @property
    def sampling_params(self) -> SamplingParams:
        """The same in ``LLM.generate``'s terms. Raises ``RequestError`` if a value is out of range."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "beam_width"}
        return SamplingParams(n=self.beam_width, use_beam_search=True, logprobs=0, **fields)


@dataclass
class BeamSearchSequence:
    """One sequence that a beam search found; the fields are vLLM's. ``tokens`` and ``text`` begin with the prompt's."""

    tokens: list[int]
    logprobs: list[PositionLogprobs]
    cum_logprob: float
    text: str | None
    finish_reason: str | None
    stop_reason: int | str | None
    lora_request: None = None


@dataclass
class BeamSearchOutput:
    """What a beam search found for one prompt, the best sequence first."""

    sequences: list[BeamSearchSequence]


def new_track(
    request_id: str, admitted: Admitted, door: Door, priority: int = 0, cache_salt: str | None = None
) -> Track:
    """The request for a prompt that ``door`` has admitted, to be generated from. Raises what ``Track`` does."""
    params = admitted.params
    kind = BeamTrack if params.use_beam_search else BestTrack if params.best_of else Track
    return kind(request_id, admitted, door, priority, cache_salt)


class BestTrack(Track):
    """Gives the best ``n`` of its ``num_sequences`` sequences at the end, by their log-probability a token (or a power
    of their length, of beams).
    """

    def generating(self, wanted: SamplingParams) -> SamplingParams:
        return wanted.clone(n=wanted.num_sequences, best_of=None, logprobs=wanted.logprobs or 0)

    def output(self, stream_interval: int = 1) -> RequestOutput | None:
        if not self.finished:
            return None
        ranked = sorted(self.sequences, key=self._score, reverse=True)
        self.sequences, rejected = ranked[: self.wanted.n], ranked[self.wanted.n :]
        for index, sequence in enumerate(self.sequences):
            sequence.index = index
            if self.wanted.logprobs is None:
                sequence.logprobs = None
        output = super().output()
        if output is not None:
            output.num_rejected_tokens = sum(len(sequence.token_ids) for sequence in rejected)
        return output

    def _score(self, sequence: Sequence) -> float:
        length = max(1, len(sequence.token_ids))
        return float((sequence.cumulative_logprob or 0.0) / length**self.wanted.length_penalty)

    def report(self) -> FinishedRequest:
        return msgspec.structs.replace(super().report(), n=self.wanted.n, max_tokens=self.wanted.max_tokens)


class BeamTrack(BestTrack):
    """A beam search: its ``sequences`` are the beams, those it has found wait apart for its end.

    Each step ranks all tokens that may follow all beams. Of the best ``width`` those that end are found; the best
    ``width`` of those that don't are the next beams. The rules are those of transformers' ``generate``. The engine
    samples one token a beam and step, whichever follow it; counted, like ``usage``, is what was found.
    """

    def __init__(
        self, request_id: str, admitted: Admitted, door: Door, priority: int = 0, cache_salt: str | None = None
    ):
        params, info = admitted.params, door.info
        self._max_tokens = params.max_tokens or info.max_model_len - len(admitted.token_ids)
        self._width = params.num_sequences
        self._ends = frozenset([*params.stop_token_ids, *([] if params.ignore_eos else info.eos_token_ids)])
        self._found: list[Sequence] = []
        self._step = 0
        self._following: dict[int, PositionLogprobs] = {}  # by beam: the tokens that may follow it
        super().__init__(request_id, admitted, door, priority, cache_salt)

    def generating(self, wanted: SamplingParams) -> SamplingParams:
        """Those of one step of one beam: of its likeliest tokens some may end it, and as many as are kept must not."""
        most = min(max(self._width + len(self._ends), wanted.logprobs or 0), self.door.info.vocab_size)
        return SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            logprobs=ALL if wanted.logprobs == ALL else most,
            prompt_logprobs=wanted.prompt_logprobs,
            detokenize=False,
            output_kind=OutputKind.FINAL_ONLY,
        )

    def take(self, index: int, delta: TokenDelta, now: float, observers: list[Observer]) -> bool:
        if self._step:
            delta.num_cached_tokens = None  # it tells of the prompt and of what has been found after it
        beam = self.sequences[index]
        self._take_times(beam, delta, now, observers)
        beam.finish_reason = delta.finish_reason
        if delta.logprobs:
            self._following[index] = delta.logprobs[0]
        return False

    def go_on(self) -> list[Submit]:
        if any(beam.finish_reason is not FinishReason.LENGTH for beam in self.sequences):
            return []  # the engine gave a beam up
        self._advance()
        if self._is_over():
            self.sequences = self._found
            return []
        self._step += 1
        self.params = self.params.clone(prompt_logprobs=None)
        submits = self.submits()
        for submit, beam in zip(submits, self.sequences, strict=True):
            submit.prompt_token_ids = self.admitted.token_ids + beam.token_ids
        return submits

    def _advance(self) -> None:
        """Go one token further with the beams, once it is known what may follow each."""
        follows = (
            ((beam.cumulative_logprob or 0.0) + entry.logprob, beam, token_id)
            for index, beam in enumerate(self.sequences)
            for token_id, entry in self._following[index].items()
        )
        ranked = nlargest(self._width * (1 + len(self._ends)), follows, key=lambda one: one[0])
        beams: list[Sequence] = []
        last = len(self.sequences[0].token_ids) + 1 == self._max_tokens
        for place, (logprob, beam, token_id) in enumerate(ranked):
            if last or token_id in self._ends:
                if place < self._width:
                    self._found.append(self._longer(beam, token_id, logprob, len(self._found)))
            elif len(beams) < self._width:
                beams.append(self._longer(beam, token_id, logprob, len(beams)))
        self._found = nlargest(self._width, self._found, key=self._score)
        self.sequences, self._following = beams, {}

    def _longer(self, beam: Sequence, token_id: int, cumulative_logprob: float, index: int) -> Sequence:
        """``beam`` and one token more, which may end it."""
        logprobs = [*(beam.logprobs or []), self._following[beam.index]]
        longer = Sequence(f"{self.request_id}-{self._step + 1}-{index}", index, None, [*beam.token_ids, token_id])
        longer.logprobs, longer.cumulative_logprob = logprobs, cumulative_logprob
        longer.last_token_time = beam.last_token_time
        if token_id in self._ends:
            longer.finish_reason = FinishReason.STOP
            longer.stop_reason = token_id if token_id in self.wanted.stop_token_ids else None
        elif len(longer.token_ids) == self._max_tokens:
            longer.finish_reason = FinishReason.LENGTH
        return longer

    def _is_over(self) -> bool:
        """Whether no beam is left, or none that is worth following, as ``early_stopping`` judges it."""
        if not self.sequences or len(self._found) < self._width:
            return not self.sequences
        stopping, penalty = self.wanted.early_stopping, self.wanted.length_penalty
        best = self.sequences[0]
        length = self._max_tokens if stopping == "never" and penalty > 0 else len(best.token_ids)
        hope = (best.cumulative_logprob or 0.0) / length**penalty
        return stopping is True or hope <= self._score(self._found[-1])

    def output(self, stream_interval: int = 1) -> RequestOutput | None:
        if not self.finished:
            return None
        self.tokenizer = self.door.tokenizer if self.wanted.detokenize else None
        for sequence in self.sequences:
            self._write_out(sequence)
        return super().output()

    def _write_out(self, sequence: Sequence) -> None:
        """Give a found sequence its text, and of the logprobs those that were asked for, under their tokens' names."""
        wanted = self.wanted
        if self.tokenizer is not None:
            sequence.detokenizer = Detokenizer(self.tokenizer, self.admitted.token_ids, wanted)
            sequence.detokenizer.add(sequence.token_ids, ends=sequence.finish_reason is FinishReason.STOP)
        if wanted.logprobs is None or sequence.logprobs is None:
            return
        count = None if wanted.logprobs == ALL else wanted.logprobs
        sequence.logprobs = [
            {token_id: position[token_id]} | dict(islice(position.items(), count))
            for token_id, position in zip(sequence.token_ids, sequence.logprobs, strict=True)
        ]
        self._name_tokens(sequence.logprobs)


def found_by(output: RequestOutput, tokenizer: Tokenizer | None) -> BeamSearchOutput:
    """A beam search's output in the shape of vLLM's ``LLM.beam_search``."""
    prompt = output.prompt
    if prompt is None and tokenizer is not None:
        prompt = tokenizer.decode(output.prompt_token_ids, skip_special_tokens=False)
    return BeamSearchOutput(
        [
            BeamSearchSequence(
                tokens=[*output.prompt_token_ids, *one.token_ids],
                logprobs=one.logprobs or [],
                cum_logprob=one.cumulative_logprob or 0.0,
                text=None if prompt is None else prompt + one.text,
                finish_reason=one.finish_reason,
                stop_reason=one.stop_reason,
            )
            for one in output.outputs
        ]
    )
