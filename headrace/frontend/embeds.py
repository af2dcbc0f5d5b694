"""Prompts that come as embeddings: read from safetensors, or taken from tensors, and checked.

What a stranger sends is never unpickled: a safetensors file is a JSON header and dense numbers, and holds no more than
its own length. Knows the model's sizes; knows no engine and no HTTP.
"""

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors

from headrace.errors import RequestError
from headrace.frontend.validation import too_long
from headrace.types import Embeds, EngineInfo

if TYPE_CHECKING:
    import torch

FIELD = "prompt_embeds"
MAX_HEADER = 2**16  # bytes of a file that are no numbers
LARGEST_HALF = 65504.0  # beyond which float16 has infinity only
BASE64_NEEDED = "prompt_embeds must be a safetensors file in base64 (from safetensors.torch.save, not torch.save)"


def read_embeds(text: str, info: EngineInfo) -> Embeds:
    """The one tensor of a safetensors file in base64. Raises ``RequestError`` unless it is a prompt's embeddings."""
    most = info.max_model_len * info.hidden_size * 4 + MAX_HEADER
    if len(text) > -(-most // 3) * 4:
        raise RequestError(
            f"prompt_embeds of {len(text):,} characters are more than {info.max_model_len} tokens of "
            f"{info.hidden_size} numbers can take.",
            FIELD,
        )
    try:
        tensors = safetensors.deserialize(base64.b64decode(text, validate=True))
    except ValueError:
        raise RequestError(f"{BASE64_NEEDED}: it is no base64.", FIELD) from None
    except safetensors.SafetensorError as error:
        raise RequestError(f"{BASE64_NEEDED}: {error}.", FIELD) from None
    if len(tensors) != 1:
        raise RequestError(f"prompt_embeds must hold one tensor, got {len(tensors)}.", FIELD)
    [(_, tensor)] = tensors
    return checked(_floats(tensor["data"], tensor["dtype"]).reshape(tensor["shape"]), info)


def taken(values: Any, info: EngineInfo) -> Embeds:
    """A torch tensor or NumPy array as a prompt's embeddings. Raises ``RequestError`` unless it can be them."""
    if isinstance(values, Embeds):
        return values
    if not isinstance(values, np.ndarray):
        values = _array(values)
    if values.dtype not in (np.float32, np.float16):
        raise RequestError(f"prompt_embeds must be float32, float16 or bfloat16, not {values.dtype}.", FIELD)
    return checked(values, info)


def checked(values: npt.NDArray[Any], info: EngineInfo) -> Embeds:
    """``values`` [tokens, dim], maybe in a batch of one, if the model can take them for a prompt."""
    shape = list(values.shape)
    if values.ndim == 3 and shape[0] == 1:
        values = values[0]
    if values.ndim != 2 or values.shape[1] != info.hidden_size:
        raise RequestError(f"prompt_embeds must have the shape [tokens, {info.hidden_size}], not {shape}.", FIELD)
    if values.shape[0] >= info.max_model_len:
        raise too_long(f"one for the output at least; prompt_embeds hold {values.shape[0]}", info, FIELD)
    numbers = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(numbers).all():
        raise RequestError("prompt_embeds must be finite; some are infinite or not a number.", FIELD)
    if info.dtype == "float16" and np.abs(numbers).max(initial=0.0) > LARGEST_HALF:
        raise RequestError(f"prompt_embeds must be within ±{LARGEST_HALF:.0f}, as the model is float16.", FIELD)
    data = numbers.tobytes()
    return Embeds(data, hashlib.sha256(data).digest())


def _floats(data: bytes, dtype: str) -> npt.NDArray[Any]:
    """The numbers of a safetensors' tensor, flat."""
    if dtype == "BF16":  # the upper halves of float32s
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    if dtype not in ("F32", "F16"):
        raise RequestError(f"prompt_embeds must be float32, float16 or bfloat16, not {dtype}.", FIELD)
    return np.frombuffer(data, "<f4" if dtype == "F32" else "<f2")


def _array(tensor: "torch.Tensor") -> npt.NDArray[Any]:
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
        raise RequestError("prompt_embeds must be a dense tensor.", FIELD)
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    array: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return array
