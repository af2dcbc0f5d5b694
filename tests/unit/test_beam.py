"""What is refused of beam search and best_of before anything runs."""

from typing import Any

import pytest

from headrace.config import Config
from headrace.errors import RequestError
from headrace.frontend.validation import check_params
from headrace.types import OutputKind, SamplingParams

from .fake_engine import FakeEngine

BEAMS = {"use_beam_search": True, "n": 2}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (BEAMS | {"output_kind": OutputKind.DELTA}, "stream"),
        ({"best_of": 2, "output_kind": OutputKind.DELTA}, "stream"),
        (BEAMS | {"n": 129}, "n"),
        (BEAMS | {"best_of": 129}, "best_of"),
        (BEAMS | {"stop": ["a"]}, "stop"),
        (BEAMS | {"min_tokens": 1}, "min_tokens"),
        (BEAMS | {"repetition_penalty": 1.1}, "repetition_penalty"),
        (BEAMS | {"logit_bias": {1: 1.0}}, "logit_bias"),
        (BEAMS | {"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        (BEAMS | {"early_stopping": "soon"}, "early_stopping"),
        ({"early_stopping": True}, "early_stopping"),
        ({"length_penalty": 0.0}, "length_penalty"),
    ],
)
def test_what_cant_be_searched_is_refused(given: dict[str, Any], param: str) -> None:
    config = Config()
    with pytest.raises(RequestError) as caught:
        check_params(SamplingParams(**given), 1, config, FakeEngine(config).info)
    assert caught.value.param == param


@pytest.mark.parametrize("options", [{"logprobs_mode": "raw_logits"}, {"logits_processors": ["a:B"]}])
def test_servers_that_report_no_logprobs_dont_search(options: dict[str, Any]) -> None:
    config = Config.from_kwargs(**options)
    with pytest.raises(RequestError, match=r"Beam search can't be used on a server with --log"):
        check_params(SamplingParams(**BEAMS), 1, config, FakeEngine(Config()).info)
