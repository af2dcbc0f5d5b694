"""What names single tokens, on logits that can be checked by hand."""

from types import SimpleNamespace
from typing import Any, cast

import torch

from headrace.runner.sampler import Sampler
from headrace.types import NewRow, SamplingParams

PROMPT, OUTPUT = [7, 8], [1, 2, 3]
WORDS = [[4], [3, 5], [2, 3, 6], [3, 4], [1, 5], [9, 2, 3, 6], [2, 2], [8, 1, 2, 3, 0]]


def restricted(fact: NewRow, rows: Any) -> list[int]:
    """The tokens of ten that are left."""
    logits = torch.zeros(10)
    Sampler(cast(Any, rows), "raw_logprobs", None)._restrict(logits, fact, len(PROMPT + OUTPUT))
    return (logits > -torch.inf).nonzero().flatten().tolist()


def test_a_bad_word_is_ruled_out_where_the_output_has_its_beginning() -> None:
    rows = SimpleNamespace(tokens=torch.tensor([[0] * 8, PROMPT + OUTPUT + [0] * 3]), device=torch.device("cpu"))
    fact = cast(Any, SimpleNamespace)(
        row=1, params=SamplingParams(), bad_word_ids=WORDS, stop_token_ids=[], num_prompt_tokens=len(PROMPT)
    )
    assert restricted(fact, rows) == [0, 1, 2, 3, 7, 8, 9]  # 8 is the prompt's
    fact.params = SamplingParams(allowed_token_ids=[4, 5, 9], logit_bias={9: 1.0})
    assert restricted(fact, rows) == [9]
