"""What is refused of beam search and best_of before anything runs, and what is counted of a search."""

from typing import Any

import pytest

from headrace.config import Config
from headrace.errors import RequestError
from headrace.frontend.beam import new_track
from headrace.frontend.door import Door
from headrace.frontend.observer import FinishedRequest, Observer
from headrace.frontend.tokenizer import Tokenizer
from headrace.frontend.tracker import Tracker
from headrace.frontend.validation import check_params
from headrace.types import FinishReason, Logprob, OutputKind, SamplingParams, Stats, TokenDelta

from .fake_engine import CharTokenizer, FakeEngine

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


class Counting(Observer):
    def __init__(self) -> None:
        self.in_stats = self.in_reports = 0

    def on_stats(self, stats: Stats) -> None:
        assert stats.generation_tokens >= 0
        self.in_stats += stats.generation_tokens

    def on_finished(self, request: FinishedRequest) -> None:
        self.in_reports += request.generation_tokens


@pytest.mark.parametrize("ends_early", [False, True])
def test_the_tokens_of_what_was_found_are_counted(ends_early: bool) -> None:
    """The engine samples one for each beam and step, which are more or fewer."""
    config, observer = Config(), Counting()
    door = Door(config, FakeEngine(config).info, Tokenizer(CharTokenizer().hf))
    params = SamplingParams(**BEAMS, max_tokens=6)
    track, tracker = new_track("r", door.admit([65], params), door), Tracker([observer])
    tracker.add(track)
    submits, sampled = track.submits(), 0
    while submits:
        deltas = []
        for index, submit in enumerate(submits):
            likely = [3, 66, 67, 68] if ends_early and sampled == 1 and index == 0 else [66, 67, 68, 69]
            logprobs = {token_id: Logprob(-1.0 - place, place + 1) for place, token_id in enumerate(likely)}
            deltas.append(TokenDelta(submit.request_id, likely[:1], [logprobs], None, FinishReason.LENGTH))
        sampled += len(deltas)
        _, _, submits = tracker.take(deltas, 1.0)
        tracker.take_stats(Stats(generation_tokens=len(deltas)))
    found = sum(len(sequence.token_ids) for sequence in track.sequences)
    output = track.output()
    assert output is not None and (found < sampled if ends_early else found > sampled)
    assert sum(len(one.token_ids) for one in output.outputs) == found
    tracker.take_stats(Stats(generation_tokens=10))  # of others: a counter can't go back
    assert observer.in_stats - 10 == observer.in_reports == track.metrics.num_generation_tokens == found
