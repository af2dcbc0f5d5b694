"""Users' own logits processors, by vLLM's interface: ``--logits-processors module:Class``.

A processor sees the rows of a batch by index: it is told with ``update_state`` which requests come, go and move, and
changes their logits in ``apply``. Owns that interface and its bookkeeping; does not know how logits are sampled.
"""

import enum
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from headrace.config import Config
from headrace.config.plugin import load_class
from headrace.errors import ConfigError
from headrace.types import NewRow, SamplingParams


class MoveDirectionality(enum.Enum):
    UNIDIRECTIONAL = 0  # the request at the first index moved to the second
    SWAP = 1


Added = tuple[int, SamplingParams, list[int] | None, list[int]]  # index, params, prompt, output so far


@dataclass(frozen=True)
class BatchUpdate:
    """What changed since the last step. Apply ``removed``, then ``added``, then ``moved``.

    What is added takes its index from whatever had it, which is not among the removed then.
    """

    batch_size: int
    removed: Sequence[int] = ()
    added: Sequence[Added] = ()
    moved: Sequence[tuple[int, int, MoveDirectionality]] = ()


class LogitsProcessor(ABC):
    """Base class of users' processors. The output lists given in ``added`` grow as the requests do."""

    @abstractmethod
    def __init__(self, config: Config, device: torch.device, is_pin_memory: bool): ...

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        """Raise ``ValueError`` if ``params.extra_args`` doesn't suit this processor."""
        return

    @abstractmethod
    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The changed logits, float32 [batch_size, vocab]; may work in place."""

    @abstractmethod
    def is_argmax_invariant(self) -> bool:
        """Whether greedy sampling is left as it is."""

    @abstractmethod
    def update_state(self, batch_update: BatchUpdate | None) -> None: ...


RequestLogitsProcessor = Callable[..., torch.Tensor]  # of ([prompt ids,] output ids, logits [vocab])
State = TypeVar("State")


def process_dict_updates(
    states: dict[int, State],
    batch_update: BatchUpdate | None,
    new_state: Callable[[SamplingParams, list[int] | None, list[int]], State | None],
) -> bool:
    """Bring ``states``, by index, up to date: ``new_state`` makes a request's, or None. Whether anything changed."""
    if batch_update is None:
        return False
    before = dict(states)
    for index in batch_update.removed:
        states.pop(index, None)
    for index, params, prompt, output in batch_update.added:
        states.pop(index, None)
        if (state := new_state(params, prompt, output)) is not None:
            states[index] = state
    for source, target, direction in batch_update.moved:
        moved, replaced = states.pop(source, None), states.pop(target, None)
        if moved is not None:
            states[target] = moved
        if replaced is not None and direction is MoveDirectionality.SWAP:
            states[source] = replaced
    return states != before


class AdapterLogitsProcessor(LogitsProcessor):
    """Base class of processors that change each request's logits by a function of its own."""

    def __init__(self, config: Config, device: torch.device, is_pin_memory: bool):
        self.req_info: dict[int, partial[torch.Tensor]] = {}

    @abstractmethod
    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
        """The function for a request with ``params``; None to leave it alone."""

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.req_info, batch_update, self._bound)

    def _bound(
        self, params: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> partial[torch.Tensor] | None:
        processor = self.new_req_logits_processor(params)
        if processor is None:
            return None
        wants_prompt = len(inspect.signature(processor).parameters) == 3
        return partial(processor, prompt, output) if wants_prompt else partial(processor, output)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for index, processor in self.req_info.items():
            logits[index] = processor(logits[index])
        return logits


@dataclass
class _Member:
    fact: NewRow
    output_ids: list[int] = field(default_factory=list)


class ProcessorBatch:
    """The processors and the batch as they see it: index i is row i of the logits."""

    def __init__(self, processors: list[LogitsProcessor]):
        self.processors = processors
        self._members: list[_Member] = []
        self._latest: dict[int, _Member] = {}  # by device row: a request may sit steps out

    def apply(self, logits: torch.Tensor, facts: list[NewRow]) -> torch.Tensor:
        """``logits`` [S, V] of the requests ``facts``, changed by every processor in turn."""
        update = self._update(facts)
        for processor in self.processors:
            processor.update_state(update)
            logits = processor.apply(logits)
        return logits

    def release(self, rows: list[int]) -> None:
        """Forget the requests of these device rows: they ended, or begin anew."""
        for row in rows:
            self._latest.pop(row, None)

    def record(self, token_ids: list[int]) -> None:
        """Take the tokens sampled after the last ``apply``, in its order."""
        for member, token_id in zip(self._members, token_ids, strict=True):
            member.output_ids.append(token_id)

    def _update(self, facts: list[NewRow]) -> BatchUpdate | None:
        """The least change that makes the members those of ``facts``, in order: others are removed, new ones added."""
        before, self._members = self._members, [self._member(fact) for fact in facts]
        kept = {i for i, (old, new) in enumerate(zip(before, self._members, strict=False)) if old is new}
        if len(kept) == len(before) == len(facts):
            return None
        removed = list(reversed(range(len(facts), len(before))))
        added = [
            (i, m.fact.params, m.fact.token_ids[: m.fact.num_prompt_tokens], m.output_ids)
            for i, m in enumerate(self._members)
            if i not in kept
        ]
        return BatchUpdate(len(facts), removed, added)

    def _member(self, fact: NewRow) -> _Member:
        member = self._latest.get(fact.row)
        if member is None:
            member = self._latest[fact.row] = _Member(fact, list(fact.token_ids[fact.num_prompt_tokens :]))
        return member


def load_processors(config: Config, device: torch.device) -> ProcessorBatch | None:
    """The processors that ``--logits-processors`` names; None if it names none. Raises ``ConfigError``."""
    processors = []
    for path in config.model.logits_processors:
        processor_class = load_class("--logits-processors", path)
        if not (isinstance(processor_class, type) and issubclass(processor_class, LogitsProcessor)):
            raise ConfigError(f"--logits-processors {path} is no subclass of {__name__}.LogitsProcessor.")
        processors.append(processor_class(config, device, device.type == "cuda"))
    return ProcessorBatch(processors) if processors else None
