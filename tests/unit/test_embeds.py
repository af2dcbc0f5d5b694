"""What may be sent as a prompt's embeddings, and what is refused in a sentence before it reaches the engine."""

import base64
import io
import json
import struct
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from headrace.config import Config
from headrace.engine.kv_cache import KVCache
from headrace.engine.request import Request
from headrace.errors import RequestError
from headrace.frontend.door import Door
from headrace.frontend.embeds import read_embeds, taken
from headrace.types import Embeds, EngineInfo, KVCacheLayout, KVGroup, SamplingParams, Submit
from headrace.vllm_names import tensor2base64

from .fake_engine import MODEL_LEN, FakeEngine

DIM = 8
VALUES = torch.linspace(-2, 2, 3 * DIM).reshape(3, DIM)


def info(**changes: Any) -> EngineInfo:
    found = FakeEngine(Config()).info
    found.hidden_size = DIM
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def sent(tensors: dict[str, torch.Tensor]) -> str:
    return base64.b64encode(save({name: tensor.clone() for name, tensor in tensors.items()})).decode()


def file(header: Any, data: bytes = b"") -> str:
    """A safetensors file as nobody's library would write it."""
    text = json.dumps(header).encode()
    return base64.b64encode(struct.pack("<Q", len(text)) + text + data).decode()


def pickled(value: Any) -> str:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_float_type_arrives_exactly(dtype: torch.dtype) -> None:
    given = VALUES.to(dtype)
    texts = sent({"any name": given}), tensor2base64(given.T.contiguous().T)
    for embeds in (*(read_embeds(text, info()) for text in texts), taken(given[None], info())):
        assert np.array_equal(np.frombuffer(embeds.data, np.float32).reshape(3, DIM), given.float().numpy())
    assert taken(given.float().numpy(), info()) == embeds


HOSTILE: dict[str, str] = {
    "no base64": "!!!",
    "nothing": "",
    "no file": base64.b64encode(b"hello, world").decode(),
    "a pickle": pickled(VALUES),
    "a sparse pickle": pickled(VALUES.to_sparse()),
    "two tensors": sent({"a": VALUES, "b": VALUES}),
    "no tensor": sent({}),
    "whole numbers": sent({"a": torch.ones(3, DIM, dtype=torch.int32)}),
    "float64": sent({"a": VALUES.double()}),
    "a vector": sent({"a": VALUES[0]}),
    "two prompts": sent({"a": torch.stack([VALUES, VALUES])}),
    "another width": sent({"a": VALUES[:, :4].contiguous()}),
    "not a number": sent({"a": VALUES * torch.nan}),
    "infinite": sent({"a": VALUES.bfloat16() * torch.inf}),
    "too many tokens": sent({"a": torch.zeros(MODEL_LEN, DIM)}),
    "too many characters": "A" * (MODEL_LEN * DIM * 8),
    "a negative size": file({"a": {"dtype": "F32", "shape": [-3, DIM], "data_offsets": [0, 96]}}, bytes(96)),
    "a size beyond its data": file({"a": {"dtype": "F32", "shape": [2**40, DIM], "data_offsets": [0, 96]}}, bytes(96)),
    "a size that overflows": file({"a": {"dtype": "F32", "shape": [2**61, DIM], "data_offsets": [0, 0]}}),
    "a header beyond the file": base64.b64encode(struct.pack("<Q", 2**60) + b"{}").decode(),
    "offsets beyond the data": file({"a": {"dtype": "F32", "shape": [3, DIM], "data_offsets": [0, 96]}}, bytes(8)),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_prompt_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_embeds(text, info())
    assert caught.value.param == "prompt_embeds"
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_tensors_are_checked_like_files() -> None:
    for wrong in (VALUES.to_sparse(), VALUES.double(), VALUES[:, :2], VALUES * torch.inf, [[1.0] * DIM], None):
        with pytest.raises(RequestError, match="prompt_embeds"):
            taken(wrong, info())
    large = VALUES * 1e5
    taken(large, info())
    with pytest.raises(RequestError, match="float16"):
        taken(large, info(dtype="float16"))


def test_only_who_enables_it_gets_it_and_only_what_can_be_done() -> None:
    prompt, params = {"prompt_embeds": VALUES}, SamplingParams()
    with pytest.raises(RequestError, match="--enable-prompt-embeds"):
        Door(Config(), info(), None).admit(prompt, params)
    door = Door(Config.from_kwargs(enable_prompt_embeds=True), info(), None)
    assert door.admit(prompt, params).token_ids == [0, 0, 0]
    for field, wanted in (("prompt_logprobs", params.clone(prompt_logprobs=1)), ("use_beam_search", None)):
        with pytest.raises(RequestError) as caught:
            door.admit(prompt, wanted or params.clone(use_beam_search=True, n=2))
        assert caught.value.param == field
    with pytest.raises(RequestError, match="truncate_prompt_tokens"):
        door.admit(prompt, params, truncate_prompt_tokens=2)
    with pytest.raises(RequestError, match="empty"):
        door.admit({"prompt_embeds": VALUES[:0]}, params)
    with pytest.raises(RequestError, match="nothing else"):
        door.admit({"prompt_embeds": VALUES, "prompt": "a"}, params)


def test_embeddings_share_blocks_with_their_equals_only() -> None:
    """Not with the ids that stand for them, whatever their salt, nor with others of the same length."""
    kv = KVCache(KVCacheLayout(4, 64, [KVGroup([0], None)], 1), True)
    one, other = Embeds(b"", bytes(range(32))), Embeds(b"", bytes(range(1, 33)))

    def request(embeds: Embeds | None, salt: str | None = None) -> Request:
        submit = Submit("r", [0] * 13, SamplingParams(), embeds=embeds, cache_salt=salt)
        return Request(submit, (0, 0), 0, 64, 1)

    first = request(one)
    assert kv.admit(first, kv.find_prefix(first), 13) is not None
    first.num_planned = 13
    kv.register_full_blocks(first)
    assert len(kv.find_prefix(request(one))[0]) == 3
    salts = (None, "\xff" + "".join(map(chr, range(32))), "".join(map(chr, range(32))))
    strangers = [request(other), request(one, "salt"), *(request(None, salt) for salt in salts)]
    assert [kv.find_prefix(stranger)[0] for stranger in strangers] == [[]] * len(strangers)
