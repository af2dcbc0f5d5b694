"""What the synchronous handle refuses before it asks its engine anything."""

from collections.abc import Callable
from typing import Any

import pytest

from headrace import LLM, SamplingParams
from headrace.errors import RequestError


@pytest.mark.parametrize("method", [LLM.generate, LLM.chat])
@pytest.mark.parametrize("given", [5, 2.5, None])
def test_what_is_no_prompt_is_named(method: Callable[..., Any], given: Any) -> None:
    with pytest.raises(RequestError, match=f"is a .*list of .*, got {given}"):
        method(LLM.__new__(LLM), given)


def test_priorities_are_one_a_prompt() -> None:
    with pytest.raises(RequestError, match=r"There are 2 prompts but 1 priorities\."):
        LLM.__new__(LLM).generate(["a", "b"], SamplingParams(), priority=[1])
