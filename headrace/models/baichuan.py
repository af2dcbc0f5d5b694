"""Baichuan 1 and 2: fused projections; the 7B models rotate, the 13B ones use ALiBi; Baichuan 2 normalises its head.

Source: the modeling code in the checkpoints' repositories (transformers has none).
"""

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from headrace.models.declare import attention, decoder, head_dim, mlp, plain_rope
from headrace.models.names import Rename
from headrace.models.spec import Spec

VOCAB_OF_BAICHUAN_1 = 64_000


def baichuan(config: PretrainedConfig, max_positions: int) -> Spec:
    # Only the 13B models, which know no limit by positions, give their length as model_max_length alone.
    alibi = getattr(config, "max_position_embeddings", None) is None
    rope = None if alibi else plain_rope(head_dim(config), 10_000.0)
    renames = [Rename(r"\.self_attn\.W_pack\.", ".attention.qkv.")]
    if config.vocab_size != VOCAB_OF_BAICHUAN_1:
        renames.append(Rename(r"^lm_head\.", "head.", unit_rows))
    slot = attention(config, max_positions, rope=rope, alibi=alibi)
    return decoder(config, max_positions, slot, mlp(config), renames=tuple(renames))


def unit_rows(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` [rows, dim] with each row at length one."""
    return F.normalize(weight.float(), dim=-1)
