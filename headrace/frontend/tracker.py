"""What the frontend knows of the requests under way: turns the engine's token deltas into RequestOutputs.

Owns texts, stop strings and request times; used alike by the handle with an engine in this process and the one with
a process of its own. Knows neither sockets nor HTTP.
"""

import copy
import time
from dataclasses import dataclass, field

from headrace.frontend.detokenizer import Detokenizer
from headrace.frontend.door import Admitted, Door
from headrace.frontend.observer import FinishedRequest, Observer
from headrace.frontend.tokenizer import check_characters
from headrace.frontend.validation import Labels, check_priority
from headrace.params import typed
from headrace.types import (
    CompletionOutput,
    FinishReason,
    OutputKind,
    PositionLogprobs,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
    Stats,
    Submit,
    TokenDelta,
)


@dataclass(slots=True)
class Sequence:
    """One of a request's ``n`` sequences."""

    engine_id: str
    index: int
    detokenizer: Detokenizer | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_given: int = 0  # tokens already handed out, where outputs are deltas
    last_token_time: float = 0.0


class Track:
    """One request: its sequences, its times, and what its caller has been given."""

    def __init__(
        self, request_id: str, admitted: Admitted, door: Door, priority: int = 0, cache_salt: str | None = None
    ):
        """Raises ``RequestError`` for labels of a wrong type, and for a priority where the engine gives none."""
        given = {"request_id": request_id, "priority": priority, "cache_salt": cache_salt}
        typed(given, Labels, "request")
        check_priority(priority, door.config)
        self.request_id, self.admitted, self.door = request_id, admitted, door
        self.priority, self.cache_salt = priority, cache_salt or admitted.cache_salt
        check_characters(request_id + (self.cache_salt or ""))
        self.wanted, self.params = admitted.params, self.generating(admitted.params)
        self.tokenizer = door.tokenizer if self.params.detokenize else None
        self._bad_word_ids = door.tokenizer.bad_word_ids(self.params.bad_words) if door.tokenizer else []
        self.metrics = RequestMetrics(arrival_time=time.time(), queued_ts=time.monotonic())
        self.sequences = [self._sequence(index) for index in range(self.params.n)]
        self.prompt_logprobs: list[PositionLogprobs | None] | None = None
        self.prompt_logprobs_given = False
        self.num_cached_tokens: int | None = None
        self.error: str | None = None
        self.finished = False  # all of its sequences are

    def generating(self, wanted: SamplingParams) -> SamplingParams:
        """The parameters of its sequences, of which a request may have more than its caller is given."""
        return wanted

    def submits(self) -> list[Submit]:
        """The messages that start its sequences; the i-th sequence of a seeded request has seed + i."""
        admitted, found = self.admitted, []
        common = self.params.clone(n=1, stop=[], bad_words=[], structured_outputs=None)
        for sequence in self.sequences:
            params = copy.copy(common)
            if params.seed is not None:
                params.seed = (params.seed + sequence.index + 2**63) % 2**64 - 2**63
            found.append(
                Submit(
                    request_id=sequence.engine_id,
                    prompt_token_ids=admitted.token_ids,
                    params=params,
                    eos_token_ids=self.door.info.eos_token_ids,
                    bad_word_ids=self._bad_word_ids,
                    grammar=admitted.grammar,
                    thinking=admitted.thinking,
                    pooling=admitted.pooling,
                    embeds=admitted.embeds,
                    priority=self.priority,
                    cache_salt=self.cache_salt,
                )
            )
        return found

    def go_on(self) -> list[Submit]:
        """The messages that follow the end of all its sequences; none if that is the request's end."""
        return []

    def _sequence(self, index: int) -> Sequence:
        detokenizer = Detokenizer(self.tokenizer, self.admitted.token_ids, self.params) if self.tokenizer else None
        logprobs: list[PositionLogprobs] | None = None if self.params.logprobs is None else []
        return Sequence(
            f"{self.request_id}-{index}", index, detokenizer, [], logprobs, None if logprobs is None else 0.0
        )

    # -- taking deltas ----------------------------------------------------------------------------------------------

    def take(self, index: int, delta: TokenDelta, now: float, observers: list[Observer]) -> bool:
        """Apply a delta of one sequence; True if a stop string ended it, so that the engine must be told."""
        sequence = self.sequences[index]
        self._take_times(sequence, delta, now, observers)
        sequence.token_ids.extend(delta.token_ids)
        if delta.logprobs is not None and sequence.logprobs is not None:
            self._name_tokens(delta.logprobs)
            sequence.logprobs.extend(delta.logprobs)
            sequence.cumulative_logprob = (sequence.cumulative_logprob or 0.0) + sum(
                position[token].logprob for position, token in zip(delta.logprobs, delta.token_ids, strict=True)
            )
        sequence.finish_reason, sequence.stop_reason = delta.finish_reason, delta.stop_reason
        self.error = delta.error or self.error
        if sequence.detokenizer is None:
            return False
        ends = delta.finish_reason is FinishReason.STOP and not delta.complete
        if sequence.detokenizer.add(delta.token_ids, ends=ends):
            ended_by_engine = sequence.finish_reason is not None
            sequence.finish_reason, sequence.stop_reason = FinishReason.STOP, sequence.detokenizer.stopped_by
            return not ended_by_engine
        return False

    def _take_times(self, sequence: Sequence, delta: TokenDelta, now: float, observers: list[Observer]) -> None:
        metrics = self.metrics
        if delta.scheduled_time is not None:
            metrics.scheduled_ts = metrics.scheduled_ts or delta.scheduled_time
            if delta.num_cached_tokens is not None:
                self.num_cached_tokens = max(self.num_cached_tokens or 0, delta.num_cached_tokens)
            if delta.prompt_logprobs is not None and self.prompt_logprobs is None:
                self._name_tokens([position for position in delta.prompt_logprobs if position])
                self.prompt_logprobs = delta.prompt_logprobs
        metrics.num_preemptions += delta.num_preemptions
        if not delta.token_ids:
            return
        metrics.num_generation_tokens += len(delta.token_ids)
        metrics.last_token_ts = now
        if not sequence.token_ids:
            if not metrics.first_token_ts:
                metrics.first_token_ts, metrics.first_token_latency = now, now - metrics.queued_ts
            for observer in observers:
                observer.on_first_token(now - metrics.queued_ts)
        else:
            for observer in observers:
                observer.on_tokens(len(delta.token_ids), now - sequence.last_token_time)
        sequence.last_token_time = now

    def _name_tokens(self, positions: list[PositionLogprobs]) -> None:
        if self.tokenizer is not None:
            for position in positions:
                for token_id, logprob in position.items():
                    logprob.decoded_token = self.tokenizer.token_text(token_id)

    # -- giving outputs ---------------------------------------------------------------------------------------------

    def output(self, stream_interval: int = 1) -> RequestOutput | None:
        """What the caller should see now, by the request's output kind; None if there is nothing (or not yet)."""
        kind, finished = self.params.output_kind, self.finished
        if kind is OutputKind.FINAL_ONLY and not finished:
            return None
        if kind is OutputKind.DELTA:
            stream_interval = max(stream_interval, self.params.stream_interval or 1)
            outputs = [out for sequence in self.sequences if (out := self._delta(sequence, stream_interval))]
            if not outputs and not finished:
                return None
        else:
            outputs = [self._whole(sequence) for sequence in self.sequences]
        give_prompt = kind is not OutputKind.DELTA or not self.prompt_logprobs_given
        self.prompt_logprobs_given = True
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.admitted.text,
            prompt_token_ids=self.admitted.token_ids,
            outputs=outputs,
            finished=finished,
            prompt_logprobs=self.prompt_logprobs if give_prompt else None,
            metrics=self.metrics,
            num_cached_tokens=self.num_cached_tokens,
        )

    def _whole(self, sequence: Sequence) -> CompletionOutput:
        text = ""
        if sequence.detokenizer is not None:
            sequence.detokenizer.take(finished=sequence.finish_reason is not None)
            text = sequence.detokenizer.given
        return _output(sequence, text, list(sequence.token_ids), sequence.logprobs)

    def _delta(self, sequence: Sequence, stream_interval: int) -> CompletionOutput | None:
        """The sequence's news, once there are ``stream_interval`` new tokens; its first and last tokens don't wait."""
        news = len(sequence.token_ids) - sequence.num_given
        finished = sequence.finish_reason is not None
        if sequence.num_given < 0 or (not news and not finished):
            return None
        if sequence.num_given and news < stream_interval and not finished:
            return None
        first = sequence.num_given
        sequence.num_given = -1 if finished else len(sequence.token_ids)  # a finished sequence is told of once
        text = "" if sequence.detokenizer is None else sequence.detokenizer.take(finished=finished)
        logprobs = None if sequence.logprobs is None else sequence.logprobs[first:]
        return _output(sequence, text, sequence.token_ids[first:], logprobs)

    def report(self) -> FinishedRequest:
        """The record of its end, for observers."""
        metrics = self.metrics
        scheduled, first, last = metrics.scheduled_ts, metrics.first_token_ts, metrics.last_token_ts
        lengths = [len(sequence.token_ids) for sequence in self.sequences]
        most = max(lengths)
        decode = last - first if first else None
        return FinishedRequest(
            request_id=self.request_id,
            finish_reasons=[sequence.finish_reason or FinishReason.ABORT for sequence in self.sequences],
            prompt_tokens=len(self.admitted.token_ids),
            generation_tokens=sum(lengths),
            max_generation_tokens=most,
            cached_tokens=self.num_cached_tokens or 0,
            n=self.params.n,
            max_tokens=self.params.max_tokens,
            e2e_seconds=(last or time.monotonic()) - metrics.queued_ts,
            queue_seconds=scheduled - metrics.queued_ts if scheduled else None,
            prefill_seconds=first - scheduled if first and scheduled else None,
            decode_seconds=decode,
            inference_seconds=last - scheduled if last and scheduled else None,
            time_per_output_token=decode / (most - 1) if decode is not None and most > 1 else None,
            preemptions=metrics.num_preemptions,
        )


def _output(
    sequence: Sequence, text: str, token_ids: list[int], logprobs: list[PositionLogprobs] | None
) -> CompletionOutput:
    return CompletionOutput(
        sequence.index,
        text,
        token_ids,
        sequence.cumulative_logprob,
        logprobs,
        sequence.finish_reason,
        sequence.stop_reason,
    )


class Tracker:
    """All requests under way, by the ids the engine knows their sequences by."""

    def __init__(self, observers: list[Observer]):
        self.observers = observers
        self.tracks: dict[str, Track] = {}  # by request id
        self._sequences: dict[str, tuple[Track, int]] = {}  # by engine id
        # Tokens that are in nobody's answer: of a sequence that an abort or a stop string has ended, or of a beam
        # search on its way. Less than none: what answers have beyond the tokens that were sampled for them.
        self._num_unanswered = 0

    def add(self, track: Track) -> None:
        self.tracks[track.request_id] = track
        self._listen(track)

    def _listen(self, track: Track) -> None:
        for sequence in track.sequences:
            self._sequences[sequence.engine_id] = (track, sequence.index)

    def take_stats(self, stats: Stats) -> None:
        """Tell the observers, without the tokens that are in nobody's answer."""
        answered = stats.generation_tokens - self._num_unanswered
        stats.generation_tokens, self._num_unanswered = max(answered, 0), max(-answered, 0)
        for observer in self.observers:
            observer.on_stats(stats)

    def take(self, deltas: list[TokenDelta], now: float) -> tuple[dict[str, Track], list[str], list[Submit]]:
        """Apply deltas: (requests they changed, engine ids that a stop string ended, messages that follow)."""
        changed, stopped, following = {}, [], []
        for delta in deltas:
            if (found := self._sequences.get(delta.request_id)) is None:
                self._num_unanswered += len(delta.token_ids)
                continue
            track, index = found
            changed[track.request_id] = track
            if track.take(index, delta, now, self.observers):
                stopped.append(delta.request_id)
            if track.sequences[index].finish_reason is not None:
                del self._sequences[delta.request_id]
                track.finished = all(sequence.finish_reason is not None for sequence in track.sequences)
        for track in changed.values():
            if track.finished and (submits := track.go_on()):
                track.finished = False
                self._listen(track)
                following += submits
            elif track.finished:
                self._end(track)
        return changed, stopped, following

    def abort(self, request_id: str) -> list[str]:
        """End a request as aborted; returns the engine ids of its sequences that were still running."""
        if (track := self.tracks.get(request_id)) is None:
            return []
        running = [sequence for sequence in track.sequences if sequence.finish_reason is None]
        for sequence in running:
            sequence.finish_reason = FinishReason.ABORT
            del self._sequences[sequence.engine_id]
        track.finished = True
        self._end(track)
        return [sequence.engine_id for sequence in running]

    def _end(self, track: Track) -> None:
        del self.tracks[track.request_id]
        report = track.report()
        self._num_unanswered += track.metrics.num_generation_tokens - report.generation_tokens
        track.metrics.num_generation_tokens = report.generation_tokens
        for observer in self.observers:
            observer.on_finished(report)
