"""What users' logits processors are told of a batch that changes."""

from typing import Any, cast

import torch

from headrace.config import Config
from headrace.runner.logits_processors import (
    AdapterLogitsProcessor,
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
    ProcessorBatch,
    process_dict_updates,
)
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
        batch.release([0, 1] if facts == [other] else [])  # both ended, or they sit out
        batch.apply(torch.zeros(len(facts), 4), facts)
        seen.append({index: list(output) for index, output in notebook.outputs.items()})
        batch.record([5] * len(facts))
    assert list(batch._latest) == [0]
    assert seen == [{0: [9], 1: [9]}, {0: [9, 5]}, {0: [9, 5], 1: [9, 5, 5]}, {0: []}]


class Forced(AdapterLogitsProcessor):
    """Forces the token that a request names, or the first of its prompt."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        def force(token: int, logits: torch.Tensor) -> torch.Tensor:
            return torch.where(torch.arange(len(logits)) == token, logits, -torch.inf)

        if params.extra_args is None:
            return None
        if (token := params.extra_args["token"]) is not None:
            return lambda output, logits: force(token, logits)
        return lambda prompt, output, logits: force(prompt[0], logits)


def test_a_request_may_have_a_function_of_its_own() -> None:
    batch = ProcessorBatch([Forced(Config(), torch.device("cpu"), False)])
    facts = [
        NewRow(row, str(row), [2, 3], 2, SamplingParams(extra_args=extra), 0, [])
        for row, extra in enumerate([{"token": 1}, None, {"token": None}])
    ]
    for rows, expected in (([0, 1, 2], [1, 0, 2]), ([1, 2], [0, 2]), ([2, 0, 1], [2, 1, 0])):
        logits = torch.tensor([4.0, 3.0, 2.0, 1.0]).repeat(len(rows), 1)
        assert batch.apply(logits, [facts[row] for row in rows]).argmax(dim=-1).tolist() == expected


def test_states_follow_what_is_removed_added_and_moved() -> None:
    states = {0: "a", 1: "b", 2: "c"}
    swap, move = MoveDirectionality.SWAP, MoveDirectionality.UNIDIRECTIONAL
    update = BatchUpdate(3, removed=[2], added=[(1, SamplingParams(), None, [7])], moved=[(0, 1, swap), (1, 2, move)])
    assert process_dict_updates(states, update, lambda params, prompt, output: f"new {output}")
    assert states == {0: "new [7]", 2: "a"}
    assert not process_dict_updates(states, None, lambda *facts: "never")
