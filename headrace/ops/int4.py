"""Products with 4-bit weights on a CPU: multiplied as they are for a few rows, expanded before the product for many.

A block holds 32 neighbouring weights of one output in 20 bytes: 16 of codes 0 to 15 (the first of each two in the low
half), then a scale and a bias in float16; a weight is ``code * scale + bias``. Both of torch's kernels used here are
chosen by measurement (docs/performance.md); what they compute is ``expand_reference``.
"""

import torch
import torch.nn.functional as F

from headrace.ops.linear import linear

BLOCK, BLOCK_BYTES, CODE_BYTES = 32, 20, 16
ROWS_A_PASS = 128  # of weights that are repacked at a time: bounds the memory it takes
MULTIPLE = 16  # what the packed product wants the number of outputs to be divisible by


def codes(blocks: torch.Tensor) -> torch.Tensor:
    """The codes uint8 [N, K] of ``blocks`` uint8 [N, K / 32, 20]."""
    halves = blocks[..., :CODE_BYTES]
    return torch.stack((halves & 15, halves >> 4), dim=-1).flatten(1)


def scale_and_bias(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [N, K / 32] each."""
    scale, bias = blocks[..., CODE_BYTES:].contiguous().view(torch.float16).float().unbind(-1)
    return scale, bias


def expand_reference(blocks: torch.Tensor) -> torch.Tensor:
    """The weights float32 [N, K]."""
    scale, bias = (part.repeat_interleave(BLOCK, dim=1) for part in scale_and_bias(blocks))
    return codes(blocks) * scale + bias


def expand(blocks: torch.Tensor) -> torch.Tensor:
    """The same, at the speed of memory: to torch's embedding kernels each block is a row of a quantized table."""
    return torch.ops.quantized.embedding_bag_4bit_unpack(blocks.view(-1, BLOCK_BYTES)).view(blocks.shape[0], -1)


def pack(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``blocks`` as the packed product wants them: (codes uint8 [N, K / 2], in an order that depends on the CPU;
    scale and centre of each group bfloat16 [K / 32, N, 2], a weight being ``(code - 8) * scale + centre``).

    Outputs of zeros make N a multiple of 16.
    """
    blocks = F.pad(blocks, (0, 0, 0, 0, 0, -blocks.shape[0] % MULTIPLE))
    num_outputs, num_groups, _ = blocks.shape
    packed = torch.empty(num_outputs, num_groups * CODE_BYTES, dtype=torch.uint8)
    for start in range(0, num_outputs, ROWS_A_PASS):
        some = codes(blocks[start : start + ROWS_A_PASS]).int()
        packed[start : start + ROWS_A_PASS] = torch._convert_weight_to_int4pack_for_cpu(some, 1)
    scale, bias = scale_and_bias(blocks)
    groups = torch.stack((scale, bias + 8 * scale), dim=-1).transpose(0, 1).bfloat16().contiguous()
    return packed, groups


def linear_packed(x: torch.Tensor, packed: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """``x`` bfloat16 [M, K], contiguous, times what ``pack`` made: bfloat16 [M, N], summed in float32.

    Reads the codes anew for every four rows of x.
    """
    return torch._weight_int4pack_mm_for_cpu(x, packed, BLOCK, groups)


def linear_expanded(x: torch.Tensor, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` [M, K] times the weights in ``blocks``, multiplied in ``dtype``: [M, N] in x's dtype."""
    return linear(x.to(dtype), expand(blocks).to(dtype)).to(x.dtype)
