"""What names single tokens, on logits that can be checked by hand."""

import torch

from headrace.runner.rows import Rows
from headrace.runner.sampler import Sampler
from headrace.types import NewRow, SamplingParams

PROMPT, OUTPUT = [7, 8], [1, 2, 3]
WORDS = [[4], [3, 5], [2, 3, 6], [3, 4], [1, 5], [9, 2, 3, 6], [2, 2], [8, 1, 2, 3, 0]]


def restricted(params: SamplingParams) -> list[int]:
    """The tokens of ten that are left."""
    logits, rows = torch.zeros(10), Rows(2, 8, 1, 16, torch.device("cpu"))
    fact = NewRow(1, "a", PROMPT + OUTPUT, len(PROMPT), params, 0, [], WORDS)
    rows.apply([], [fact], [])
    Sampler(rows, "raw_logprobs", None)._restrict(logits, fact, len(PROMPT + OUTPUT))
    return (logits > -torch.inf).nonzero().flatten().tolist()


def test_a_bad_word_is_ruled_out_where_the_output_has_its_beginning() -> None:
    assert restricted(SamplingParams()) == [0, 1, 2, 3, 7, 8, 9]  # 8 is the prompt's
    assert restricted(SamplingParams(allowed_token_ids=[4, 5, 9], logit_bias={9: 1})) == [9]
