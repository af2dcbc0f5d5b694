"""Sampling the next token of each row by the Gumbel-max trick: no softmax, no sort, noise that only depends on the row.

Owns the random numbers: a counter-based hash of (seed, position, token index), computed bit for bit alike by torch
and by Triton. Knows no requests and no penalties.
"""

import torch

from headrace.ops.registry import op

GREEDY_BELOW = 1e-5  # a temperature under this means argmax
NUMBERS_AT_ONCE = 65_536  # keeps the reference's temporaries in a CPU's cache
CANDIDATES = 64  # likeliest tokens looked at first; more only if a nucleus holds more
BEYOND_NOISE = 1e30  # taken off the scores of dropped tokens

# The mixing function is the finaliser of MurmurHash3 for 32 bits (Austin Appleby, public domain).
MULTIPLIER_1 = 0x85EBCA6B
MULTIPLIER_2 = 0xC2B2AE35


@op
def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    filtered: bool,
) -> torch.Tensor:
    """Draw a token id int64 [S] for each row of ``logits`` float32 [S, V], to which penalties have been applied.

    ``temperature`` float32 [S], under 1e-5: the largest logit. ``filtered``: some row has a ``top_k`` int32 > 0,
    ``top_p`` float32 < 1 or ``min_p`` float32 > 0 (each [S]). After division by the temperature, tokens less likely
    than min_p times the likeliest are dropped, then all but the top_k likeliest, then those outside the smallest set
    of the likeliest whose share of what remains reaches top_p; tokens tied with the last one kept are kept too.
    ``seeds`` and ``positions`` int64 [S] fix the noise: a row's draw does not depend on the other rows.

    Source: Gumbel (1954); the argmax of log p + Gumbel noise is a sample of p.
    """
    tokens = logits.max(dim=-1).indices  # of equals the first
    random = (temperature >= GREEDY_BELOW).nonzero().squeeze(-1)
    rows_at_once = max(NUMBERS_AT_ONCE // logits.shape[-1], 1)
    for start in range(0, len(random), rows_at_once):
        rows = random[start : start + rows_at_once]
        scaled = logits[rows] / temperature[rows, None]
        scores = gumbel(seeds[rows], positions[rows], logits.shape[-1]).add_(scaled)
        if filtered:
            dropped = scaled < thresholds(scaled, top_k[rows], top_p[rows], min_p[rows])[:, None]
            scores -= dropped * BEYOND_NOISE
        tokens[rows] = scores.max(dim=-1).indices
    return tokens


def thresholds(scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """The least of the ``scaled`` logits [S, V] each row keeps, float32 [S]; arguments as for ``sample``."""
    vocab = scaled.shape[-1]
    counts = torch.where(top_k > 0, top_k, vocab).clamp(max=vocab).long()
    limited = counts < vocab
    width = min(max(int((counts * limited).max()), CANDIDATES), vocab)
    best = scaled.topk(width).values  # descending
    least = best[:, 0] + min_p.log()  # -inf if off
    least = torch.where(limited, least.maximum(best.gather(1, counts[:, None].clamp(max=width) - 1)[:, 0]), least)
    narrowing = top_p < 1
    if not narrowing.any():
        return least
    peak = best[:, :1]
    wanted = ((scaled - peak).exp_() * (scaled >= least[:, None])).sum(dim=-1) * top_p
    while True:
        weights = (best - peak).exp_() * (best >= least[:, None])
        enough = weights.cumsum(dim=-1) >= wanted[:, None]
        if best.shape[-1] == vocab or enough[narrowing, -1].all():
            break
        best = scaled.topk(min(best.shape[-1] * 16, vocab)).values
    # The first token that makes the sum large enough; rounding of the sums may leave none.
    last = torch.where(enough[:, -1], enough.int().argmax(dim=-1), best.shape[-1] - 1)
    nucleus = best.gather(1, last[:, None])[:, 0]
    return torch.where(narrowing, least.maximum(nucleus), least)


def gumbel(seeds: torch.Tensor, positions: torch.Tensor, vocab: int) -> torch.Tensor:
    """Standard Gumbel noise float32 [S, vocab] of rows with these seeds and positions, int64 [S]."""
    return -uniform(seeds, positions, vocab).neg_().log1p_().neg_().log_()


def uniform(seeds: torch.Tensor, positions: torch.Tensor, vocab: int) -> torch.Tensor:
    """Uniform numbers float32 [S, vocab] in (0, 1), fine-grained towards 0: token t gets ``mix(mix(t ^ a) + b)``.

    The row's two 32-bit keys a and b are hashed from its seed and position, int64 [S] each.
    """
    state = mix(low_word(seeds))
    state = mix(state ^ low_word(seeds >> 32))
    state = mix(state ^ low_word(positions))
    first_key = mix(state ^ low_word(positions >> 32))[:, None]
    second_key = mix(first_key + 1)
    tokens = torch.arange(vocab, dtype=torch.int32, device=seeds.device)
    bits = mix(mix(tokens ^ first_key) + second_key)
    # The upper 31 bits, so that the number isn't negative; rounding may reach 1, which has no logarithm here.
    return bits.bitwise_right_shift_(1).bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2**-24)


def mix(x: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 values that scatters them; products wrap around, shifts bring in zeros."""
    x = (x >> 16).bitwise_and_(0xFFFF).bitwise_xor_(x).mul_(MULTIPLIER_1 - 2**32)
    x = (x >> 13).bitwise_and_(0x7FFFF).bitwise_xor_(x).mul_(MULTIPLIER_2 - 2**32)
    return (x >> 16).bitwise_and_(0xFFFF).bitwise_xor_(x)


def low_word(x: torch.Tensor) -> torch.Tensor:
    """The low 32 bits of int64 values, as int32."""
    return ((x << 32) >> 32).to(torch.int32)
