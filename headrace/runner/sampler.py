"""From logits to token ids: bias and masks, penalties, then the draw; and the logprobs around it.

The order: the grammars' masks, then vLLM's: logit_bias and allowed tokens, min_tokens and bad words, penalties, and
temperature, min_p, top_k and top_p inside ``ops.sample``. Everything but the masks is computed from the persistent
rows, so a preempted request needs nothing restored. Knows no schedule and no model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch

from headrace.device import to_device
from headrace.ops.mask import mask_tokens
from headrace.ops.sample import sample
from headrace.runner.batch import Places
from headrace.runner.logits_processors import ProcessorBatch
from headrace.runner.rows import Rows
from headrace.types import GREEDY_BELOW, Logprob, NewRow, PositionLogprobs

ALL = -1  # logprobs of the whole vocabulary


@dataclass(frozen=True)
class TopLogprobs:
    """Device tensors for P positions: the chosen token, its value and rank [P], and the top ids and values [P, K].

    ``counts``: how many of the K each position wants.
    """

    counts: list[int]
    chosen: torch.Tensor
    value: torch.Tensor
    rank: torch.Tensor
    top_ids: torch.Tensor
    top_values: torch.Tensor
    named: dict[int, tuple[list[int], torch.Tensor]] = field(default_factory=dict, init=False)  # place -> ids, values

    def to_host(self) -> "TopLogprobs":
        """The same on the host; where they come from a GPU the copies may still be under way."""
        parts = (self.chosen, self.value, self.rank, self.top_ids, self.top_values)
        found = TopLogprobs(self.counts, *(part.to("cpu", non_blocking=True) for part in parts))
        found.named.update({i: (ids, values.to("cpu", non_blocking=True)) for i, (ids, values) in self.named.items()})
        return found

    def positions(self) -> list[PositionLogprobs]:
        """One entry a position; the tensors must be on the host by now."""
        found: list[PositionLogprobs] = []
        lists = (part.tolist() for part in (self.chosen, self.value, self.rank, self.top_ids, self.top_values))
        for count, token, value, rank, ids, values in zip(self.counts, *lists, strict=True):
            entry = {token: Logprob(value, rank)}
            width = len(ids) if count == ALL else count
            for place, (other, other_value) in enumerate(zip(ids[:width], values[:width], strict=True), 1):
                entry.setdefault(other, Logprob(other_value, place))
            found.append(entry)
        for position, (named, scores) in self.named.items():
            for token, value in zip(named, scores.tolist(), strict=True):
                found[position].setdefault(token, Logprob(value))
        return found


def top_logprobs(scores: torch.Tensor, chosen: torch.Tensor, counts: list[int]) -> TopLogprobs:
    """Of ``scores`` float32 [P, V] (log-probabilities or logits): ``chosen`` int64 [P] and its best ``counts``."""
    width = scores.shape[-1] if ALL in counts else max(counts)
    value = scores.gather(1, chosen[:, None])
    top = scores.topk(width, dim=-1)
    rank = (scores > value).sum(dim=-1) + 1
    return TopLogprobs(counts, chosen, value[:, 0], rank, top.indices, top.values)


class Sampler:
    """Draws the next tokens of the sampled rows and writes them into ``rows``. ``mode``: what logprobs report."""

    def __init__(self, rows: Rows, mode: str, processors: ProcessorBatch | None):
        self.rows = rows
        self.processed = mode.startswith("processed")
        self.normalize: Callable[[torch.Tensor], torch.Tensor] = (
            (lambda scores: scores) if mode.endswith("logits") else (lambda scores: scores.log_softmax(dim=-1))
        )
        self.processors = processors

    def plain(self, rows: list[int]) -> bool:
        """Whether ``draw`` alone does all that these rows ask for."""
        wishes = ("logprobs", "restrict", "penalize")
        return self.processors is None and not any(self.rows.wishing(wish, rows) for wish in wishes)

    def draw(self, logits: torch.Tensor, places: Places) -> torch.Tensor:
        """The next tokens int64 [S] by the ``logits`` [S, V], written into the rows as well."""
        rows = self.rows
        return sample(logits, places.rows, places.positions, rows.floats, rows.integers, rows.tokens)

    def __call__(
        self,
        logits: torch.Tensor,
        places: Places,
        rows: list[int],
        lengths: list[int],
        masked: list[int],
        masks: bytes,
    ) -> tuple[torch.Tensor, TopLogprobs | None]:
        """``logits`` [S, V], which may be changed, of the S ``rows``, each with so many tokens so far.

        Of those in places ``masked`` only some tokens may be sampled: see ``Plan.masks``.

        Returns the tokens int64 [S], and the logprobs of those rows that ask for them.
        """
        wanted = self.rows.wishing("logprobs", rows)
        restricted, penalized = self.rows.wishing("restrict", rows), self.rows.wishing("penalize", rows)
        if wanted or restricted or penalized or masked or self.processors is not None:
            logits = logits.float()
        raw = logits[wanted] if wanted and not self.processed else None  # a copy, taken before any change
        if masked:
            bits = torch.from_numpy(np.frombuffer(bytearray(masks), np.int32).reshape(len(masked), -1))
            mask_tokens(logits, to_device(torch.tensor(masked), logits.device), to_device(bits, logits.device))
        for i in restricted:
            self._restrict(logits[i], self.rows.fact(rows[i]), lengths[i])
        if penalized:
            self._penalize(logits, places, penalized, [self.rows.fact(rows[i]) for i in penalized], max(lengths))
        if self.processors is not None:
            logits = self.processors.apply(logits, [self.rows.fact(row) for row in rows])
        tokens = self.draw(logits, places)
        if not wanted:
            return tokens, None
        if raw is None:
            warm = self.rows.floats[0, places.rows[wanted], None]
            raw = logits[wanted] / torch.where(warm < GREEDY_BELOW, 1.0, warm)
        params = [self.rows.fact(rows[i]).params for i in wanted]
        scores = self.normalize(raw)
        found = top_logprobs(scores, tokens[wanted], [each.logprobs or 0 for each in params])
        for place, each in enumerate(params):
            if each.logprob_token_ids:
                found.named[place] = (each.logprob_token_ids, scores[place, self._ids(each.logprob_token_ids)])
        return tokens, found

    def _restrict(self, row: torch.Tensor, fact: NewRow, length: int) -> None:
        """Apply to one row's logits what names single tokens: a trace, or logit_bias, allowed tokens and the like."""
        params = fact.params
        if params.trace_decode_token_ids is not None:
            row.fill_(-torch.inf)
            row[params.trace_decode_token_ids[length - fact.num_prompt_tokens]] = 0
            return
        if params.logit_bias:
            ids = self._ids(params.logit_bias.keys())
            values = torch.tensor(list(params.logit_bias.values()), dtype=row.dtype)  # which may be given as integers
            row.index_add_(0, ids, to_device(values, row.device))
        if params.allowed_token_ids is not None:
            allowed = self.rows.allowed[fact.row]
            kept = row[allowed]
            row.fill_(-torch.inf)
            row[allowed] = kept
        if fact.stop_token_ids and length - fact.num_prompt_tokens < params.min_tokens:
            row[self._ids(fact.stop_token_ids)] = -torch.inf
        for _, words in groupby(sorted(fact.bad_word_ids, key=len), key=len):
            self._forbid(row, fact, length, list(words))

    def _forbid(self, row: torch.Tensor, fact: NewRow, length: int, words: list[list[int]]) -> None:
        """Rule out the last token of each of ``words``, all of one length, where the output ends with its others.

        Compared on the device, all at once: one request's words must not hold up the step of the others.
        """
        start = length - (len(words[0]) - 1)
        if start < fact.num_prompt_tokens:
            return
        tokens = to_device(torch.tensor(words), row.device)
        matches = (tokens[:, :-1] == self.rows.tokens[fact.row, start:length]).all(dim=1)
        row.scatter_reduce_(0, tokens[:, -1], torch.where(matches, -torch.inf, torch.inf), "amin")

    def _penalize(
        self, logits: torch.Tensor, places: Places, chosen: list[int], facts: list[NewRow], longest: int
    ) -> None:
        """Presence and frequency penalties count output tokens; repetition those of the prompt as well.

        Counted anew from the rows' tokens each step: as cheap as a pass over the logits, and without state.
        """
        device = logits.device
        params = [fact.params for fact in facts]
        values = [[p.presence_penalty, p.frequency_penalty, p.repetition_penalty] for p in params]
        presence, frequency, repetition = to_device(torch.tensor(values), device).unsqueeze(-1).unbind(1)
        prompts = to_device(torch.tensor([fact.num_prompt_tokens for fact in facts]), device)[:, None]
        tokens = self.rows.tokens[places.rows[chosen], :longest].long()
        place = torch.arange(longest, device=device)
        known = place < places.positions[chosen][:, None]
        given = to_device(torch.tensor([fact.embeds is not None for fact in facts]), device)[:, None]
        zeros = torch.zeros(len(chosen), logits.shape[-1], device=device)
        outputs = zeros.scatter_add(1, tokens, (known & (place >= prompts)).float())
        named = known & ((place >= prompts) | ~given)  # a prompt of embeddings has no tokens
        seen = zeros.scatter_add(1, tokens, named.float()) > 0
        scores = logits[chosen]
        scaled = torch.where(scores > 0, scores / repetition, scores * repetition)
        scores = torch.where(seen, scaled, scores)
        logits[chosen] = scores - frequency * outputs - presence * (outputs > 0)

    def _ids(self, token_ids: Iterable[int]) -> torch.Tensor:
        return to_device(torch.tensor(list(token_ids), dtype=torch.int64), self.rows.device)
