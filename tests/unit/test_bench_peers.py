"""``headrace bench serve`` against other engines: what vLLM 0.32, SGLang and llama.cpp write into their streams."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import models
from transformers import LlamaConfig, PreTrainedTokenizerFast

from headrace.bench import datasets
from headrace.bench.datasets import Sample
from headrace.cli.main import main
from tests.unit.scripted_server import Call, ScriptedServer

Chunk = dict[str, Any]


def completion(text: str, why: str | None = None, **fields: Any) -> Chunk:
    return {"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": why} | fields]}


def chat(delta: dict[str, Any], why: str | None = None, **fields: Any) -> Chunk:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": why}]} | fields


def usage(output: int = 3) -> Chunk:
    counts = {"prompt_tokens": 5, "total_tokens": 5 + output, "completion_tokens": output}
    return {"usage": counts | {"prompt_tokens_details": None}}


ROLE = {"role": "assistant", "content": ""}
LAST = {"choices": []} | usage()
TIMINGS = {"timings": {"prompt_n": 5, "predicted_n": 3, "predicted_per_second": 9.5}, "system_fingerprint": "b5000"}
PEERS: dict[str, tuple[str, list[Chunk]]] = {  # backend, and the chunks of an answer of three tokens
    "vllm 0.32": (
        "vllm",
        [*map(completion, "ab"), completion("c", "length", stop_reason=None, token_ids=None), LAST],
    ),
    "vllm 0.32, usage in every chunk": (
        "openai-chat",
        [
            chat(ROLE, prompt_token_ids=None) | usage(0),
            chat({"reasoning": "a"}) | usage(1),
            chat({"content": "b"}) | usage(2),
            chat({"content": "c"}, "stop") | usage(),
            LAST,
        ],
    ),
    "sglang": (
        "sglang",
        [*(completion(text, matched_stop=None) | {"usage": None} for text in "abc"), completion("", "length"), LAST],
    ),
    "llama.cpp": (
        "openai-chat",
        [
            chat(ROLE | {"content": None}),
            *(chat({"content": text}) for text in "abc"),
            chat({}, "length"),
            LAST | TIMINGS,
        ],
    ),
    "llama.cpp without usage": (
        "llama.cpp",
        [*({"content": text} | completion(text) for text in ("ab", "c")), completion("", "length") | TIMINGS],
    ),
}


@pytest.mark.parametrize("peer", PEERS)
def test_an_answer_of_three_tokens(
    peer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend, chunks = PEERS[peer]

    async def script(call: Call) -> None:
        await call.begin()
        for chunk in chunks:
            await asyncio.sleep(0.01)
            await call.event({"id": "x", "object": "chunk", "created": 1, "model": "m"} | chunk)
        await call.end()

    letters = Fast(models.BPE({letter: place for place, letter in enumerate("abc")}, []))  # a token each
    PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(tmp_path / "m")
    LlamaConfig().save_pretrained(tmp_path / "m")
    monkeypatch.setattr(datasets, "draw", lambda arguments, tokenizer, vocab_size: [Sample("ab", 5, 3)] * 2)
    saving = ["--save-result", "--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    with ScriptedServer(script) as server:
        words = ["--base-url", f"{server.url}/v1", "--backend", backend, "--model", str(tmp_path / "m")]
        assert main(["bench", "serve", *words, *saving]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (10, 6)
    assert found["generated_texts"] == ["abc"] * 2 and found["mean_tpot_ms"] == pytest.approx(
        sum(map(sum, found["itls"])) * 1000 / 2 / 2
    )  # of two answers, and of two tokens after the first
    assert capsys.readouterr().out.count("the server doesn't tell its device: add --device.") == 1
