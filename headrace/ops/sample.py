"""Sampling the next token of each row by the Gumbel-max trick: no softmax, no sort, noise that only depends on the row.

Owns the random numbers: a counter-based hash of (seed, position, token index), computed bit for bit alike by torch
and by Triton. Knows no requests and no penalties.
"""

from __future__ import annotations

import torch

from headrace.ops.jit import await_predecessor, early, jit, tl
from headrace.ops.registry import op

GREEDY_BELOW = 1e-5  # a temperature under this means argmax
NUMBERS_AT_ONCE = 65_536  # keeps the reference's temporaries in a CPU's cache
CANDIDATES = 64  # likeliest tokens looked at first; more only if a nucleus holds more
BEYOND_NOISE = 1e30  # taken off the scores of dropped tokens
TOKENS_A_PROGRAM = 4096

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
    """Draw a token id int64 [S] for each row of ``logits`` [S, V], to which penalties have been applied.

    ``temperature`` float32 [S], under 1e-5: the largest logit. ``filtered``: some row has a ``top_k`` int32 > 0,
    ``top_p`` float32 < 1 or ``min_p`` float32 > 0 (each [S]). After division by the temperature, tokens less likely
    than min_p times the likeliest are dropped, then all but the top_k likeliest, then those outside the smallest set
    of the likeliest whose share of what remains reaches top_p; tokens tied with the last one kept are kept too.
    ``seeds`` and ``positions`` int64 [S] fix the noise: a row's draw does not depend on the other rows. All
    arguments of shape [S] are contiguous.

    Source: Gumbel (1954); the argmax of log p + Gumbel noise is a sample of p.
    """
    tokens = logits.max(dim=-1).indices  # of equals the first
    random = (temperature >= GREEDY_BELOW).nonzero().squeeze(-1)
    rows_at_once = max(NUMBERS_AT_ONCE // logits.shape[-1], 1)
    for start in range(0, len(random), rows_at_once):
        rows = random[start : start + rows_at_once]
        scaled = logits[rows].float() / temperature[rows, None]
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


@sample.on_triton
def _sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    filtered: bool,
) -> torch.Tensor:
    """Reads the logits once, and if filtered some 60 times more, out of the L2 cache, to search the thresholds."""
    num_rows, vocab = logits.shape
    logits = logits.contiguous()
    parts = -(-vocab // TOKENS_A_PROGRAM)
    least = temperature.new_empty(num_rows) if filtered else None
    scores = temperature.new_empty(num_rows, parts)
    tokens = torch.empty(num_rows, parts, dtype=torch.int64, device=logits.device)
    if num_rows and filtered:
        _threshold_kernel[(num_rows,)](
            logits, temperature, top_k, top_p, min_p, least, vocab, GREEDY_BELOW, TOKENS_A_PROGRAM, num_warps=16
        )
    if num_rows:
        _gumbel_max_kernel[(num_rows, parts)](
            *(logits, temperature, least, seeds, positions, scores, tokens, vocab, GREEDY_BELOW, TOKENS_A_PROGRAM),
            **early(logits.device),
        )
    return tokens.gather(1, scores.max(dim=-1, keepdim=True).indices).squeeze(1)


@jit
def _gumbel_max_kernel(
    logits,
    temperature,
    least,
    seeds,
    positions,
    scores,
    tokens,
    vocab,
    GREEDY_BELOW: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The best score and its token of one row's ``BLOCK`` tokens; a first of equals."""
    await_predecessor(EARLY)
    row = tl.program_id(0)
    part = tl.program_id(1)
    token = part * BLOCK + tl.arange(0, BLOCK)
    score = _scaled(logits, temperature, row, token, vocab, GREEDY_BELOW)
    if least is not None:
        score = tl.where(score >= tl.load(least + row), score, float("-inf"))
    if tl.load(temperature + row) >= GREEDY_BELOW:
        score += _gumbel(tl.load(seeds + row), tl.load(positions + row), token)
    # Whatever a broken model computes, the token chosen exists.
    score = tl.where((token < vocab) & (score == score), score, float("-inf"))
    place = row * tl.num_programs(1) + part
    tl.store(scores + place, tl.max(score, axis=0))
    tl.store(tokens + place, (part * BLOCK + tl.argmax(score, axis=0)).to(tl.int64))


@jit
def _threshold_kernel(
    logits, temperature, top_k, top_p, min_p, least, vocab, GREEDY_BELOW: tl.constexpr, BLOCK: tl.constexpr
):
    """The least scaled logit one row keeps: the reference's ``thresholds`` by bisection instead of sorting."""
    row = tl.program_id(0)
    peak = tl.full([], float("-inf"), tl.float32)
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        peak = tl.maximum(peak, tl.max(_scaled(logits, temperature, row, token, vocab, GREEDY_BELOW), axis=0))
    smallest = tl.load(min_p + row)
    kept = tl.full([], float("-inf"), tl.float32)
    if smallest > 0.0:
        kept = peak + tl.log(smallest)
    count = tl.load(top_k + row)
    if (count > 0) & (count < vocab):
        wanted = count.to(tl.float32)
        found = _largest_kept(logits, temperature, row, vocab, peak, kept, wanted, False, GREEDY_BELOW, BLOCK)
        kept = tl.maximum(kept, found)
    share = tl.load(top_p + row)
    if share < 1.0:
        total = _amount(logits, temperature, row, vocab, peak, kept, True, GREEDY_BELOW, BLOCK)
        # What lies 60 below the peak has no weight in float32.
        kept = tl.maximum(kept, peak - 60.0)
        wanted = share * total
        kept = _largest_kept(logits, temperature, row, vocab, peak, kept, wanted, True, GREEDY_BELOW, BLOCK)
    tl.store(least + row, kept)


@jit
def _largest_kept(
    logits,
    temperature,
    row,
    vocab,
    peak,
    kept,
    wanted,
    WEIGHTS: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest threshold, but at least ``kept``, over which the ``_amount`` is still as large as ``wanted``."""
    low = _ordered(kept).to(tl.int64)
    high = _ordered(peak).to(tl.int64) + 1
    while high - low > 1:
        middle = (low + high) // 2
        threshold = _unordered(middle.to(tl.int32))
        amount = _amount(logits, temperature, row, vocab, peak, threshold, WEIGHTS, GREEDY_BELOW, BLOCK)
        if amount >= wanted:
            low = middle
        else:
            high = middle
        if not WEIGHTS:  # whole numbers: once the count is right there is nothing more to tell apart
            high = tl.where(amount == wanted, low + 1, high)
    return _unordered(low.to(tl.int32))


@jit
def _amount(
    logits,
    temperature,
    row,
    vocab,
    peak,
    threshold,
    WEIGHTS: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many tokens of a row reach the threshold, or the sum of their probabilities in units of the likeliest."""
    amounts = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        scaled = _scaled(logits, temperature, row, token, vocab, GREEDY_BELOW)
        amounts += tl.where((scaled >= threshold) & (token < vocab), tl.exp(scaled - peak) if WEIGHTS else 1.0, 0.0)
    return tl.sum(amounts, axis=0)


@jit
def _scaled(logits, temperature, row, token, vocab, GREEDY_BELOW: tl.constexpr):
    """The logits of some tokens of a row, divided by its temperature; -inf outside the vocabulary."""
    heat = tl.load(temperature + row)
    heat = tl.where(heat < GREEDY_BELOW, 1.0, heat)
    values = tl.load(logits + row.to(tl.int64) * vocab + token, mask=token < vocab, other=float("-inf"))
    return tl.div_rn(values.to(tl.float32), tl.broadcast_to(heat, values.shape))


@jit
def _ordered(value):
    """A float32 as an int32 that compares alike."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def _unordered(key):
    """The float32 that ``_ordered`` made ``key`` of."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def _gumbel(seed, position, token):
    u = _uniform(seed, position, token)
    # -log(1 - u); near 0, where the difference would lose the digits that matter, by its series.
    near = 1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6 + u * (1 / 7))))))
    return -tl.log(tl.where(u < 0.0625, u * near, -tl.log(1.0 - u)))


@jit
def _uniform(seed, position, token):
    """As the reference's ``uniform``, bit for bit."""
    state = _mix(seed.to(tl.uint32))
    state = _mix(state ^ (seed >> 32).to(tl.uint32))
    state = _mix(state ^ position.to(tl.uint32))
    first_key = _mix(state ^ (position >> 32).to(tl.uint32))
    second_key = _mix(first_key + 1)
    bits = _mix(_mix(token.to(tl.uint32) ^ first_key) + second_key)
    numbers = ((bits >> 1).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10
    return tl.minimum(numbers, 0.99999994)


@jit
def _mix(x):
    """As the reference's ``mix``."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)
