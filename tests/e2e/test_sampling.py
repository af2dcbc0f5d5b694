"""Sampling parameters through ``headrace.LLM`` on the default model; logprobs and penalties against transformers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import LLM, SamplingParams
from headrace.config import Config
from headrace.errors import ConfigError, RequestError
from headrace.runner.logits_processors import BatchUpdate, LogitsProcessor
from headrace.types import CompletionOutput

from .reference import NEAR_TIE, Reference

FRANCE = "The capital of France is"
LONG = "The quick brown fox jumps over the lazy dog, and then " * 7 + "The"
PROMPTS = [FRANCE, "def main():", "Once upon a time", LONG]


def new_llm(**options: Any) -> LLM:
    return LLM(
        max_model_len=512,
        kv_cache_memory_bytes=2**28,
        dtype="float32",
        max_num_batched_tokens=48,
        max_num_seqs=16,
        **options,
    )


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = new_llm()
    yield llm
    llm._engine.scheduler.check_integrity()
    assert llm._engine.scheduler.kv.pool.usage == 0.0
    llm.shutdown()


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def complete_all(llm: LLM, prompt: str, params: list[dict[str, Any]]) -> list[CompletionOutput]:
    """The text for each of ``params``; a batch takes little longer than one."""
    sampling = [SamplingParams(**({"temperature": 0.0, "max_tokens": 12} | fields)) for fields in params]
    return [output.outputs[0] for output in llm.generate([prompt] * len(params), sampling, use_tqdm=False)]


def complete(llm: LLM, prompt: str = FRANCE, **params: Any) -> CompletionOutput:
    return complete_all(llm, prompt, [params])[0]


# -- the draw -------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_text_in_any_company(llm: LLM) -> None:
    params = [SamplingParams(temperature=0.9, top_p=0.95, seed=seed, max_tokens=12) for seed in range(4)]
    together = llm.generate(PROMPTS, params, use_tqdm=False)
    company = [SamplingParams(temperature=1.5, top_k=50, max_tokens=5)] * 5
    crowd = llm.generate([*["Hello"] * 5, *PROMPTS[::-1]], company + params[::-1], use_tqdm=False)[5:][::-1]
    for prompt, one, first, second in zip(PROMPTS, params, together, crowd, strict=True):
        alone = llm.generate(prompt, one, use_tqdm=False)[0]
        assert alone.outputs[0].token_ids == first.outputs[0].token_ids == second.outputs[0].token_ids


def test_other_seeds_and_no_seeds_give_other_texts(llm: LLM) -> None:
    texts = [complete(llm, temperature=1.0, seed=seed).text for seed in (1, 2, None, None)]
    assert len(set(texts)) == 4


@pytest.mark.parametrize("params", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-6}])
def test_what_leaves_one_token_is_greedy(llm: LLM, params: dict[str, Any]) -> None:
    greedy = complete(llm)
    assert complete(llm, **{"temperature": 1.0} | params).token_ids == greedy.token_ids


def test_n_sequences_of_a_seeded_request(llm: LLM) -> None:
    """The i-th is what the seed's i-th successor gives alone."""
    params = SamplingParams(temperature=1.0, n=3, seed=5, max_tokens=6)
    [output] = llm.generate(FRANCE, params, use_tqdm=False)
    assert [one.index for one in output.outputs] == [0, 1, 2] and output.finished
    alone = [complete(llm, temperature=1.0, seed=5 + i, max_tokens=6).text for i in range(3)]
    assert [one.text for one in output.outputs] == alone and len(set(alone)) == 3


# -- what may be said -----------------------------------------------------------------------------------------------


def test_logit_bias(llm: LLM) -> None:
    greedy = complete(llm)
    favourite = llm.tokenizer.encode("!")[0]
    assert complete(llm, logit_bias={favourite: 100.0}, max_tokens=4).text == "!!!!"
    first = greedy.token_ids[0]
    assert complete(llm, logit_bias={first: -100.0}).token_ids[0] != first


def test_allowed_token_ids(llm: LLM) -> None:
    allowed = llm.tokenizer.encode("0123456789")
    output = complete(llm, temperature=1.0, seed=0, allowed_token_ids=allowed)
    assert output.text.isdigit() and set(output.token_ids) <= set(allowed)


def test_bad_words(llm: LLM) -> None:
    words = ["quick", "the", " jumps over", "brown fox"]
    free = [{"bad_words": ["zebra"]}, {}]
    forbidden = [{"bad_words": [word], "detokenize": detokenize} for word in words for detokenize in (True, False)]
    found, plain, *others = complete_all(llm, LONG, [*free, *forbidden])
    assert found.token_ids == plain.token_ids and all(word in found.text for word in words)
    for fields, other in zip(forbidden, others, strict=True):
        tokens = list(other.token_ids)
        for ids in llm.tokenizer.bad_word_ids(fields["bad_words"]):
            assert not any(tokens[i : i + len(ids)] == ids for i in range(len(tokens))), fields


PENALTIES = [(0.0, 0.0, 1.3), (1.5, 0.0, 1.0), (0.0, 0.7, 1.0), (-1.0, 0.5, 1.1), (0.0, 0.0, 0.8)]


def test_penalties(llm: LLM, reference: Reference) -> None:
    """Each token is the best of transformers' logits once the published formulas are applied to them."""
    prompt, names = "a b a b a b a b a b", ("presence_penalty", "frequency_penalty", "repetition_penalty")
    wanted = [{"max_tokens": 20, "ignore_eos": True} | dict(zip(names, one, strict=True)) for one in PENALTIES]
    prompt_ids = llm.tokenizer.encode(prompt)
    for penalties, output in zip(PENALTIES, complete_all(llm, prompt, wanted), strict=True):
        (presence, frequency, repetition), tokens = penalties, list(output.token_ids)
        logits = reference.logits(prompt_ids, tokens)
        for place, token in enumerate(tokens):
            scores, said = logits[place].clone(), tokens[:place]
            for known in set(prompt_ids + said):
                scores[known] *= 1 / repetition if scores[known] > 0 else repetition
            for known in set(said):
                scores[known] -= presence + frequency * said.count(known)
            assert scores.max() - scores[token] < NEAR_TIE, penalties


def test_a_penalised_batch_leaves_its_neighbours_alone(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=6, repetition_penalty=p) for p in (1.0, 2.0, 1.0)]
    plain, penalised, also = (o.outputs[0].token_ids for o in llm.generate([LONG] * 3, params, use_tqdm=False))
    assert plain == also != penalised


# -- when it ends ---------------------------------------------------------------------------------------------------


def test_end_of_sequence_min_tokens_and_ignore_eos(llm: LLM) -> None:
    [eos] = llm.info.eos_token_ids
    wish = {"logit_bias": {eos: 100.0}}
    at_once = complete(llm, **wish)
    assert (list(at_once.token_ids), at_once.text) == ([eos], "")
    assert (at_once.finish_reason, at_once.stop_reason) == ("stop", None)
    later = complete(llm, **wish, min_tokens=5)
    assert len(later.token_ids) == 6 and list(later.token_ids).index(eos) == 5
    never = complete(llm, **wish, ignore_eos=True, max_tokens=4)
    assert list(never.token_ids) == [eos] * 4 and never.finish_reason == "length"


def test_stop_token_ids(llm: LLM) -> None:
    greedy = complete(llm)
    stop = greedy.token_ids[4]
    place = list(greedy.token_ids).index(stop)
    output = complete(llm, stop_token_ids=[stop])
    assert output.token_ids == greedy.token_ids[: place + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert output.text == llm.tokenizer.decode(list(greedy.token_ids[:place]))
    assert stop not in complete(llm, stop_token_ids=[stop], min_tokens=12).token_ids[:12]


def test_stop_strings(llm: LLM) -> None:
    text = complete(llm).text
    stop = text[5:9]
    place = text.find(stop)
    for include in (False, True):
        output = complete(llm, stop=["never said", stop], include_stop_str_in_output=include)
        assert output.text == text[: place + (len(stop) if include else 0)]
        assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_the_context_ends_a_text(llm: LLM) -> None:
    prompt = [5] * 500
    output = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True), use_tqdm=False)[0]
    assert len(output.outputs[0].token_ids) == 12 and output.outputs[0].finish_reason == "length"


# -- logprobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_logprobs(llm: LLM, reference: Reference, temperature: float) -> None:
    """Of the model's own distribution, whatever the temperature: the token's, and the three most likely."""
    output = complete(llm, temperature=temperature, seed=3, logprobs=3)
    tokens = list(output.token_ids)
    scores = reference.logits(llm.tokenizer.encode(FRANCE), tokens).log_softmax(-1)
    assert output.logprobs is not None and len(output.logprobs) == len(tokens)
    for token, entry, row in zip(tokens, output.logprobs, scores, strict=True):
        assert next(iter(entry)) == token and len(entry) in (3, 4)
        assert {lp.rank for lp in entry.values()} >= {1, 2, 3}
        for token_id, logprob in entry.items():
            assert logprob.logprob == pytest.approx(row[token_id].item(), abs=1e-3)
            assert logprob.decoded_token == llm.tokenizer.token_text(token_id)
            ahead = (row > row[token_id] + NEAR_TIE).sum(), (row > row[token_id] - NEAR_TIE).sum()
            assert ahead[0] + 1 <= logprob.rank <= ahead[1]
    expected = sum(row[token].item() for token, row in zip(tokens, scores, strict=True))
    assert output.cumulative_logprob == pytest.approx(expected, abs=1e-2)


def test_no_top_logprobs_and_no_logprobs_at_all(llm: LLM) -> None:
    output = complete(llm, logprobs=0, temperature=1.0, seed=1)
    assert output.logprobs is not None
    assert [list(entry) for entry in output.logprobs] == [[token] for token in output.token_ids]
    assert complete(llm).logprobs is None and complete(llm).cumulative_logprob is None


def test_logprobs_of_named_tokens_and_of_a_trace(llm: LLM) -> None:
    usual, named = complete_all(llm, FRANCE, [{"logprobs": 20}, {"logprob_token_ids": [7, 9], "logprobs": 3}])
    position = usual.logprobs[0]
    other = list(position)[5]
    [traced] = llm.generate(
        [FRANCE], SamplingParams(trace_decode_token_ids=[other, 2, 9], logprob_token_ids=[9], stop="a")
    )
    assert named.token_ids == usual.token_ids
    assert [list(position) for position in named.logprobs] == [[token, 7, 9] for token in usual.token_ids]
    [output] = traced.outputs
    assert (output.token_ids, output.finish_reason) == ([other, 2, 9], "length")  # 2 would end it
    assert output.logprobs[0][other].logprob == pytest.approx(position[other].logprob, abs=1e-3)
    assert output.logprobs[0][9].logprob == pytest.approx(named.logprobs[0][9].logprob, abs=1e-3)
    assert list(output.logprobs[2]) == [9]


def test_prompt_logprobs_over_several_chunks(llm: LLM, reference: Reference) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=2)
    [plain, output] = llm.generate([FRANCE, LONG], [params.clone(prompt_logprobs=None), params], use_tqdm=False)
    prompt, found = output.prompt_token_ids, output.prompt_logprobs
    assert plain.prompt_logprobs is None and found is not None
    assert len(prompt) > 48 and len(found) == len(prompt) and found[0] is None
    scores = reference.logits(prompt[:1], prompt[1:]).log_softmax(-1)
    for token, entry, row in zip(prompt[1:], found[1:], scores, strict=True):
        assert entry is not None and next(iter(entry)) == token
        assert {lp.rank for lp in entry.values()} >= {1, 2}
        for token_id, logprob in entry.items():
            assert logprob.logprob == pytest.approx(row[token_id].item(), abs=1e-3)


# -- custom logits processors ---------------------------------------------------------------------------------------


class Chorus(LogitsProcessor):
    """Makes requests that give extra_args {"say": id} say that id, at every other token."""

    def __init__(self, config: Config, device: torch.device, is_pin_memory: bool):
        self.members: dict[int, tuple[int | None, list[int]]] = {}

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        if not isinstance((params.extra_args or {}).get("say", 0), int):
            raise ValueError("say must be a token id.")

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            del self.members[index]
        for index, params, _, output in batch_update.added:
            self.members[index] = ((params.extra_args or {}).get("say"), output)
        assert sorted(self.members) == list(range(batch_update.batch_size))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        assert len(logits) == len(self.members)
        for index, (token_id, output) in self.members.items():
            if token_id is not None and len(output) % 2 == 0:
                logits[index] = -torch.inf
                logits[index, token_id] = 0.0
        return logits


def test_custom_logits_processor(llm: LLM) -> None:
    own = new_llm(logits_processors=[Chorus])
    assert own.config.model.logits_processors == [f"{__name__}:Chorus"]
    lengths = [3, 9, 5, 7]
    params = [
        SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, extra_args={"say": 40 + n} if n > 3 else None)
        for n in lengths
    ]
    outputs = own.generate(PROMPTS, params, use_tqdm=False)
    for length, output in zip(lengths, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        assert len(tokens) == length
        assert length == 3 or tokens[::2] == [40 + length] * len(tokens[::2])
    assert outputs[0].outputs[0].token_ids == complete(llm, max_tokens=3, ignore_eos=True).token_ids
    with pytest.raises(RequestError, match="say must be a token id"):
        own.generate(FRANCE, SamplingParams(extra_args={"say": "x"}), use_tqdm=False)
    own.shutdown()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere:Nothing", "can't be loaded"),
        ("json:Nothing", "can't be loaded"),
        ("json:JSONDecoder", "is no subclass"),
    ],
)
def test_a_processor_that_is_none(path: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"--logits-processors {path} {reason}"):
        new_llm(logits_processors=[path])


# -- the handle -----------------------------------------------------------------------------------------------------


def test_a_stream_makes_up_the_text_and_may_be_left(llm: LLM) -> None:
    whole = complete(llm)
    pieces = list(llm.stream(FRANCE, SamplingParams(temperature=0, max_tokens=12)))
    assert "".join(piece.outputs[0].text for piece in pieces) == whole.text
    assert [t for piece in pieces for t in piece.outputs[0].token_ids] == list(whole.token_ids)
    assert [piece.finished for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    slow = llm.stream(FRANCE, SamplingParams(temperature=0, max_tokens=12))
    pieces = [next(slow)]
    list(llm.stream(FRANCE, SamplingParams(max_tokens=30, ignore_eos=True)))  # whose steps end the other, too
    pieces += slow
    assert "".join(piece.outputs[0].text for piece in pieces) == whole.text and pieces[-1].finished
    stream = llm.stream(FRANCE, SamplingParams(max_tokens=400))
    next(stream)
    stream.close()
    assert not llm._engine.scheduler.has_work


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ("", {}, "prompt is empty"),
    ([5] * 512, {}, "512 tokens"),
    ([49152], {}, "token id 49152"),
    (FRANCE, {"max_tokens": 600}, "max_tokens 600 is too large"),
    (FRANCE, {"logprobs": 21}, "logprobs must be at most 20"),
    (FRANCE, {"allowed_token_ids": [-1]}, "allowed_token_ids has token id -1"),
    (FRANCE, {"logit_bias": {5: 101.0}}, "logit_bias values"),
    (FRANCE, {"bad_words": [" "]}, "bad_words can't contain an empty string"),
]


@pytest.mark.parametrize(("prompt", "params", "sentence"), REFUSED, ids=[row[2] for row in REFUSED])
def test_one_refused_prompt_queues_nothing(llm: LLM, prompt: Any, params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        llm.generate([FRANCE, prompt], [SamplingParams(), SamplingParams(**params)], use_tqdm=False)
    assert not llm._engine.scheduler.has_work and not llm._tracker.tracks


def test_a_step_that_holds_no_whole_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="--max-num-batched-tokens 48 is less than --max-model-len 8192"):
        LLM(enable_chunked_prefill=False, max_num_batched_tokens=48)


def test_a_cache_beyond_the_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"A KV cache of 9000000\.00 GiB .*; lower --kv-cache-memory-bytes\.$"):
        LLM(kv_cache_memory_bytes=9_000_000 * 2**30)
    with pytest.raises(ConfigError, match=r"but 0\.00 GiB are available; give .* with --kv-cache-memory-bytes\.$"):
        LLM(kv_cache_memory_bytes=1)


def test_too_long_a_context_names_one_that_works(tiny: Path) -> None:
    options: dict[str, Any] = {"kv_cache_memory_bytes": 1_000_000, "dtype": "float32"}
    with pytest.raises(ConfigError, match="--max-model-len 2048 needs") as caught:
        LLM(str(tiny), max_model_len=2048, **options)
    found = re.search(r"use --max-model-len (\d+) or less", str(caught.value))
    assert found is not None
    longest = int(found[1])
    with pytest.raises(ConfigError, match=f"use --max-model-len {longest} or less"):
        LLM(str(tiny), max_model_len=longest + 1, **options)
    llm = LLM(str(tiny), max_model_len=longest, **options)
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    [output] = llm.generate([5] * (longest - 3), params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 3
    assert LLM(str(tiny), max_model_len=-1, **options).info.max_model_len == longest
