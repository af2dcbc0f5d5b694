"""Encoders, classifiers and poolers against transformers, on tiny random checkpoints in float32, through the engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

from headrace import LLM, PoolingParams
from headrace.errors import ConfigError, RequestError

from .util import random_model

TOLERANCE = 1e-4
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [3, 99, 4] * 6]
SECOND = 4  # where the second text of a pair begins
OPTIONS: dict[str, Any] = {"skip_tokenizer_init": True, "kv_cache_memory_bytes": 2**22, "dtype": "float32"}
ALL_HEADS = {"num_key_value_heads": 4}
ENCODERS = ["BertModel", "RobertaModel", "XLMRobertaModel"]


def saved(directory: Path, architecture: str, **options: Any) -> transformers.PreTrainedModel:
    model = random_model(architecture, **ALL_HEADS, **options)
    model.save_pretrained(directory)
    return model


@torch.no_grad()
def hidden(model: Any, ids: list[int], **inputs: Any) -> torch.Tensor:
    """The last hidden states [tokens, dim] by transformers."""
    found: torch.Tensor = model(torch.tensor([ids]), **inputs, output_hidden_states=True).hidden_states[-1][0]
    return found


def close(found: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=TOLERANCE, rtol=TOLERANCE)


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_encoders(tmp_path: Path, architecture: str) -> None:
    model = saved(tmp_path, architecture)
    llm = LLM(str(tmp_path), **OPTIONS)
    assert llm.info.tasks[0] == "embed" and llm.info.embedding_sizes == [64]
    for ids, output in zip(PROMPTS, llm.embed(PROMPTS, use_tqdm=False), strict=True):
        close(output.outputs.embedding, unit(hidden(model, ids)[0]))
    for ids, output in zip(PROMPTS, llm.encode(PROMPTS, use_tqdm=False, pooling_task="token_embed"), strict=True):
        close(output.outputs.data, unit(hidden(model, ids)))
    with pytest.raises(RequestError, match="does not generate"):
        llm.generate([5, 6])
    llm._engine.scheduler.check_integrity()  # type: ignore[union-attr]
    llm.shutdown()


def test_marked_pairs(tmp_path: Path) -> None:
    model = saved(tmp_path, "BertForSequenceClassification", num_labels=1)
    llm = LLM(str(tmp_path), **OPTIONS)
    params = [PoolingParams(second_segment=SECOND), PoolingParams()]
    found = llm.encode([PROMPTS[0], PROMPTS[0]], params, use_tqdm=False)
    for output, second in zip(found, (SECOND, len(PROMPTS[0])), strict=True):
        types = torch.tensor([[int(place >= second) for place in range(len(PROMPTS[0]))]])
        with torch.inference_mode():
            logits = model(torch.tensor([PROMPTS[0]]), token_type_ids=types).logits[0]
        close(output.outputs.data, logits.sigmoid())
    llm.shutdown()


@pytest.mark.parametrize("architecture", ["RobertaFor", "XLMRobertaFor", "Qwen2For", "LlamaFor"])
def test_classifiers(tmp_path: Path, architecture: str) -> None:
    model = saved(tmp_path, f"{architecture}SequenceClassification", num_labels=3)
    llm = LLM(str(tmp_path), **OPTIONS)
    raw = llm.encode(PROMPTS, PoolingParams(use_activation=False), use_tqdm=False)
    for ids, output, plain in zip(PROMPTS, llm.classify(PROMPTS, use_tqdm=False), raw, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0]
        close(output.outputs.probs, logits.softmax(-1))
        close(plain.outputs.data, logits)
    llm.shutdown()


@pytest.mark.parametrize("kind", ["LAST", "MEAN", "CLS"])
def test_decoders_in_chunks(tmp_path: Path, kind: str) -> None:
    """However a prompt is cut into steps, cached or preempted, its vector is the same."""
    model = saved(tmp_path, "Qwen3ForCausalLM")
    tight = {"max_num_batched_tokens": 7, "max_num_seqs": 3, "long_prefill_token_threshold": 3, "block_size": 4}
    options = OPTIONS | tight | {"max_model_len": 24, "num_gpu_blocks_override": 8}
    llm = LLM(str(tmp_path), convert="embed", pooler_config={"pooling_type": kind, "task": "token_embed"}, **options)
    prompts = [*PROMPTS, *([start, *range(40, 60)] for start in range(3))]
    for _ in range(2):
        for ids, output in zip(prompts, llm.embed(prompts, use_tqdm=False), strict=True):
            states = hidden(model, ids)
            expected = {"LAST": states[-1], "MEAN": states.mean(0), "CLS": states[0]}[kind]
            close(output.outputs.embedding, unit(expected))
    tokens = llm.encode([PROMPTS[3]], use_tqdm=False)[0].outputs.data
    close(tokens, unit(hidden(model, PROMPTS[3])))
    assert llm._engine is not None and llm._engine.scheduler.stats().num_preemptions
    llm._engine.scheduler.check_integrity()
    llm.shutdown()


def test_sentence_transformers_files(tmp_path: Path) -> None:
    model = saved(tmp_path, "BertModel")
    modules = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize")
    listed = [{"path": path, "type": f"sentence_transformers.models.{name}"} for name, path in modules]
    write(tmp_path / "modules.json", listed)
    write(tmp_path / "1_Pooling/config.json", {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
    write(tmp_path / "2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"})
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 20})
    write(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "Query: "}})
    dense = torch.nn.Linear(64, 16)
    state = {f"linear.{name}": tensor.contiguous() for name, tensor in dense.state_dict().items()}
    save_file(state, tmp_path / "2_Dense/model.safetensors")
    with pytest.raises(ConfigError, match="task classify can't be had of this model: embed, token_embed can"):
        LLM(str(tmp_path), pooler_config={"task": "classify"}, **OPTIONS)
    llm = LLM(str(tmp_path), **OPTIONS)
    assert llm.info.max_model_len == 20 and llm.info.embedding_sizes == [16]
    assert llm.info.prompts == {"query": "Query: "}
    short = llm.embed(PROMPTS, use_tqdm=False, pooling_params=PoolingParams(dimensions=5))
    for ids, output in zip(PROMPTS, short, strict=True):
        whole = dense(hidden(model, ids).mean(0)).tanh()
        close(output.outputs.embedding, unit(whole[:5]).detach())
    llm.shutdown()


def test_bge_m3_heads(tmp_path: Path) -> None:
    model = saved(tmp_path, "XLMRobertaModel")
    vectors, weights = torch.nn.Linear(64, 64), torch.nn.Linear(64, 1)
    torch.save(vectors.state_dict(), tmp_path / "colbert_linear.pt")
    torch.save(weights.state_dict(), tmp_path / "sparse_linear.pt")
    llm = LLM(str(tmp_path), **OPTIONS)
    assert llm.info.tasks == ["embed", "token_embed", "token_classify"]
    params = [PoolingParams(task=task) for task in llm.info.tasks]
    ids = [1, *PROMPTS[0], 2]  # between the tokens that begin and end a text
    dense, multi, sparse = (output.outputs.data for output in llm.encode([ids] * 3, params, use_tqdm=False))
    states = hidden(model, ids)
    close(dense, unit(states[0]))
    close(multi, unit(vectors(states[1:])).detach())
    close(sparse, weights(states[1:-1]).relu().detach())
    llm.shutdown()


def test_what_a_checkpoint_is_not_for(tmp_path: Path) -> None:
    saved(tmp_path, "BertModel")
    for options in ({"task": "generate"}, {"task": "classify"}, {"task": "embed", "convert": "classify"}):
        with pytest.raises(ConfigError):
            LLM(str(tmp_path), **options, **OPTIONS)
    llm = LLM(str(tmp_path), **OPTIONS)
    for params in (PoolingParams(task="classify"), PoolingParams(dimensions=65)):
        with pytest.raises(RequestError):
            llm.encode([PROMPTS[0]], params)
    llm.shutdown()


def test_judging_by_the_next_token(tmp_path: Path) -> None:
    """Qwen3-Reranker's rule: the probability of "yes" against "no" after the prompt."""
    model = saved(tmp_path, "Qwen3ForCausalLM", max_position_embeddings=128)
    words = {f"w{number}": number for number in range(126)} | {"no": 126, "yes": 127}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(tmp_path)
    llm = LLM(str(tmp_path), task="score", **OPTIONS | {"skip_tokenizer_init": False})
    [output] = llm.score("w5 w6", "w7", use_tqdm=False)
    with torch.inference_mode():
        logits = model(torch.tensor([output.prompt_token_ids])).logits[0, -1]
    close(output.outputs.score, logits[[126, 127]].softmax(-1)[1])
    assert len(output.prompt_token_ids) > 40  # the judge's instructions are there
    cut = llm.score("w5 w6", "w7 " * 200, use_tqdm=False, pooling_params=PoolingParams(truncate_prompt_tokens=90))
    assert cut[0].prompt_token_ids[-3:] == output.prompt_token_ids[-3:] and len(cut[0].prompt_token_ids) == 90
    [filled] = llm.score("<|im_start|> w5", "w7", use_tqdm=False)
    assert len(filled.prompt_token_ids) < 10
    llm.shutdown()
    vllms = {"architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": ["no", "yes"]}
    llm = LLM(str(tmp_path), hf_overrides=vllms, **OPTIONS | {"skip_tokenizer_init": False})
    assert llm.score("w5 w6", "w7", use_tqdm=False)[0].outputs.score == pytest.approx(output.outputs.score)
    llm.shutdown()


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
