"""What users' logits processors are told of a batch that changes."""

from typing import cast

import torch

from headrace.runner.logits_processors import BatchUpdate, LogitsProcessor, ProcessorBatch
from headrace.types import NewRow, SamplingParams


class Notebook:
    def __init__(self) -> None:
        self.outputs: dict[int, list[int]] = {}

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        for index in batch_update.removed if batch_update else ():
            del self.outputs[index]
        for index, _, _, output in batch_update.added if batch_update else ():
            self.outputs[index] = output

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


def test_a_request_that_sits_a_step_out_keeps_its_outputs() -> None:
    first, second = (NewRow(row, name, [1, 2, 9], 2, SamplingParams(), 0, []) for row, name in ((0, "a"), (1, "b")))
    other = NewRow(0, "c", [3], 1, SamplingParams(), 0, [])
    notebook, seen = Notebook(), []
    batch = ProcessorBatch([cast(LogitsProcessor, notebook)])
    for facts in ([first, second], [second], [first, second], [other]):
        batch.apply(torch.zeros(len(facts), 4), facts)
        seen.append({index: list(output) for index, output in notebook.outputs.items()})
        batch.record([5] * len(facts))
    assert seen == [{0: [9], 1: [9]}, {0: [9, 5]}, {0: [9, 5], 1: [9, 5, 5]}, {0: []}]
