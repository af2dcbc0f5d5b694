"""Embeddings, scores and ranks of real weights, through HTTP and the clients people use; docs/embeddings.md runs."""

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers
from openai import OpenAI

from headrace import LLM

from .minilm import minilm
from .server import SECONDS, Server

PAGE = Path(__file__).parents[2] / "docs" / "embeddings.md"
TEXTS = [
    "The capital of France is Paris.",
    "Horses and cows are both animals.",
    "A headrace is the channel that feeds a turbine. " * 12,
    "¿Dónde está la biblioteca?",
    "x",
]
DOCUMENTS = ["The capital of Brazil is Brasilia.", "The capital of France is Paris.", "Horses and cows are animals."]


@pytest.fixture(scope="module")
def embedder() -> Iterator[Server]:
    with Server(str(minilm()), "--served-model-name", "minilm") as started:
        yield started


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder of random weights with MiniLM's tokenizer."""
    path: Path = tmp_path_factory.mktemp("judge")
    for file in minilm().glob("*token*"):
        shutil.copy(file, path)
    config = transformers.BertConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64, num_labels=1
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(path)
    return path


def reference(texts: list[str]) -> np.ndarray[Any, Any]:
    """sentence-transformers' recipe: MiniLM's last states, averaged and normalised."""
    tokenizer, model = (cls.from_pretrained(minilm()) for cls in (transformers.AutoTokenizer, transformers.AutoModel))
    rows = []
    for text in texts:
        with torch.inference_mode():
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            rows.append(torch.nn.functional.normalize(model(**ids).last_hidden_state[0].mean(0), dim=0).numpy())
    return np.stack(rows)


def test_real_weights() -> None:
    llm = LLM(str(minilm()), dtype="float32")
    outputs = llm.embed(TEXTS, use_tqdm=False)
    vectors = np.array([output.outputs.embedding for output in outputs])
    assert (np.sum(vectors * reference(TEXTS), axis=1) > 0.99999).all()
    scores = [output.outputs.score for output in llm.score(TEXTS[0], TEXTS, use_tqdm=False)]
    assert np.allclose(scores, vectors @ vectors[0], atol=1e-5)
    llm.shutdown()


def test_openai_client(embedder: Server) -> None:
    client = OpenAI(base_url=f"{embedder.url}/v1", api_key="none", max_retries=0)
    expected = reference(TEXTS)
    answer = client.embeddings.create(model="minilm", input=TEXTS)  # base64, as this client asks for by default
    assert np.sum(np.array([item.embedding for item in answer.data]) * expected, axis=1).min() > 0.99999
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
    for name in ("use_activation", "normalize"):
        raw = client.embeddings.create(model="minilm", input=TEXTS[0], extra_body={name: False}).data[0].embedding
        assert abs(np.linalg.norm(raw) - 1) > 0.1
    plain = client.embeddings.create(model="minilm", input=TEXTS[0], encoding_format="float", dimensions=8)
    short = expected[0][:8] / np.linalg.norm(expected[0][:8])
    assert np.allclose(plain.data[0].embedding, short, atol=1e-5)
    tokens = client.embeddings.create(model="minilm", input=[[101, 1060, 102]])
    assert np.dot(tokens.data[0].embedding, expected[-1]) > 0.99999


def post(server: Server, path: str, **body: Any) -> Any:
    return httpx.post(server.url + path, json=body, timeout=SECONDS).json()


def test_pooling_and_scores(embedder: Server) -> None:
    answer = post(embedder, "/pooling", input=TEXTS[:2], task="token_embed", dimensions=3)
    assert [np.shape(item["data"]) for item in answer["data"]] == [(9, 3), (9, 3)]
    coded = post(embedder, "/pooling", input="x", encoding_format="base64")["data"][0]["data"]
    assert np.allclose(np.frombuffer(base64.b64decode(coded), "<f4"), reference(["x"])[0], atol=1e-5)
    one, two = (post(embedder, path, text_1=TEXTS[0], text_2=DOCUMENTS) for path in ("/score", "/v1/score"))
    assert np.allclose([item["score"] for item in one["data"]], [item["score"] for item in two["data"]], atol=1e-5)
    ranked = post(embedder, "/v2/rerank", query="What is the capital of France?", documents=DOCUMENTS, top_n=2)
    assert [result["index"] for result in ranked["results"]] == [1, 0]
    assert ranked["results"][0]["document"]["text"] == DOCUMENTS[1]
    assert ranked["usage"]["total_tokens"] > 0
    bare = post(embedder, "/rerank", query="a", documents=[{"text": "b"}], return_documents=False)
    assert set(bare["results"][0]) == {"index", "relevance_score"}


def test_cohere_embeds(embedder: Server) -> None:
    kinds = ["float", "base64", "binary", "ubinary"]
    asked = {"texts": TEXTS[:2], "input_type": "search_query", "output_dimension": 16}
    answer = post(embedder, "/v2/embed", **asked, embedding_types=kinds)
    found = {kind: answer["embeddings"][kind] for kind in kinds}
    vectors = np.array(found["float"])
    expected = reference(TEXTS[:2])[:, :16]
    assert np.allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-3)
    assert np.allclose([np.frombuffer(base64.b64decode(each), "<f4") for each in found["base64"]], vectors)
    assert found["ubinary"] == np.packbits(vectors > 0, axis=1).tolist()
    assert (np.array(found["binary"]) + 128).tolist() == found["ubinary"]
    assert answer["texts"] == TEXTS[:2] and answer["meta"]["billed_units"]["input_tokens"] == 18
    whole, cut = (post(embedder, "/v2/embed", texts=["x " * 300], **more) for more in ({}, {"max_tokens": 10}))
    assert [each["meta"]["billed_units"]["input_tokens"] for each in (whole, cut)] == [256, 10]
    assert (
        "length is 256 tokens" in post(embedder, "/v2/embed", texts=["x " * 300], truncate="NONE")["error"]["message"]
    )
    assert "text only" in post(embedder, "/v2/embed", texts=["x"], images=["data:"])["error"]["message"]


def test_one_route_for_all(embedder: Server) -> None:
    vectors = post(embedder, "/invocations", input="x")["data"]
    assert np.allclose(vectors[0]["embedding"], reference(["x"])[0], atol=1e-5)
    assert post(embedder, "/invocations", query="a", documents=["b"])["results"]
    assert post(embedder, "/invocations", text_1="a", text_2="b")["data"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/completions", {"prompt": "x"}, "does not generate"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "does not generate"),
        ("/classify", {"input": "x"}, "can't classify"),
        ("/v1/embeddings", {"input": "x", "dimensions": 385}, "at most the model's 384"),
        ("/v1/embeddings", {"input": ""}, None),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": "x " * 300}, "length is 256 tokens"),
        ("/v1/embeddings", {"input": "x " * 300, "truncate_prompt_tokens": -1}, None),
        ("/v1/embeddings", {"input": [[30522]]}, "token id 30522"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "one query"),
        ("/v1/embeddings", {"input": "x", "encoding_format": None, "dimensions": None}, None),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": ["b"], "max_tokens_per_doc": 9}, "together"),
        ("/pooling", {"input": "x", "task": "nothing"}, "task must be"),
        ("/pooling", {"input": "x", "tokenization_kwargs": 7}, "Send add_special_tokens"),
        ("/pooling", {"input": "x", "padding": "max_length"}, "never padded"),
        ("/v1/embeddings", {"input": "x", "truncation_side": "left"}, "truncation_side"),
        ("/v1/embeddings", {"input": "x", "truncation_side": "right"}, None),
        ("/v1/embeddings", {"messages": [], "chat_template_kwargs": 7}, "chat_template_kwargs"),
        ("/v2/embed", {"texts": ["x"], "dimensions": 7, "truncate_prompt_tokens": 1}, None),
    ],
)
def test_answers_and_refusals(embedder: Server, path: str, body: dict[str, Any], words: str | None) -> None:
    answer = httpx.post(embedder.url + path, json=body, timeout=SECONDS)
    assert answer.status_code == (200 if words is None else 400), answer.text
    assert words is None or words in answer.json()["error"]["message"]


def test_cross_encoder(judge: Path) -> None:
    model = transformers.BertForSequenceClassification.from_pretrained(judge).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(judge)
    with torch.inference_mode():
        pairs = tokenizer([TEXTS[0]] * 3, DOCUMENTS, return_tensors="pt", padding=True)
        expected = model(**pairs).logits[:, 0].sigmoid().tolist()
    with Server(str(judge), "--dtype", "float32") as server:
        answer = post(server, "/score", queries=TEXTS[0], documents=DOCUMENTS)
        assert np.allclose([item["score"] for item in answer["data"]], expected, atol=1e-4)
        ranked = post(server, "/v1/rerank", query=TEXTS[0], documents=DOCUMENTS)["results"]
        assert [result["index"] for result in ranked] == sorted(range(3), key=lambda index: -expected[index])
        classified = post(server, "/classify", input=TEXTS[0])["data"][0]
        assert classified["label"] == "LABEL_0" and classified["num_classes"] == len(classified["probs"]) == 1
        assert "can't embed" in post(server, "/v1/embeddings", input="x")["error"]["message"]
        assert "leave them out" in post(server, "/classify", input="x", dimensions=1)["error"]["message"]


def test_generating_models_refuse(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": "x"}, timeout=SECONDS)
    assert answer.status_code == 400 and "--task embed" in answer.json()["error"]["message"]


def test_examples_of_the_page_run(embedder: Server) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) >= 3
    for code in examples:
        code = code.replace("http://localhost:8000", embedder.url).replace(
            '"path/to/all-MiniLM-L6-v2"', repr(str(minilm()))
        )
        exec(compile(code, PAGE.name, "exec"), {})
