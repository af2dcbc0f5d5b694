"""Sampling the next token of each row by the Gumbel-max trick: no softmax, no sort, noise that only depends on the row.

Owns the random numbers: a counter-based hash of (seed, position, token index), computed bit for bit alike by torch
and by Triton. Knows no requests and no penalties.
"""

from __future__ import annotations

import torch

from headrace.ops.jit import await_predecessor, early, jit, tl
from headrace.ops.registry import next_power_of_2, op

GREEDY_BELOW = 1e-5  # a temperature under this means argmax
NUMBERS_AT_ONCE = 65_536  # keeps the reference's temporaries in a CPU's cache
CANDIDATES = 64  # likeliest tokens looked at first; more only if a nucleus holds more
BEYOND_NOISE = 1e30  # taken off the scores of dropped tokens
TOKENS_A_PROGRAM = 2048

# The mixing function is the finaliser of MurmurHash3 for 32 bits (Austin Appleby, public domain).
MULTIPLIER_1 = 0x85EBCA6B
MULTIPLIER_2 = 0xC2B2AE35


@op
def sample(
    logits: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    floats: torch.Tensor,
    integers: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Draw a token id int64 [S] for each row of ``logits`` [S, V], to which penalties have been applied.

    ``rows`` int32 [S] of the persistent rows, R in number, have their parameters in ``floats`` float32 [3, R]
    (temperature, top_p, min_p) and ``integers`` int64 [2, R] (seed, top_k). A draw is also written into ``tokens``
    int32 [R, L], at its row and its place in ``positions`` int32 [S].

    A temperature under 1e-5 takes the largest logit. After division by the temperature, tokens less likely than min_p
    times the likeliest are dropped, then all but the top_k likeliest, if top_k is positive, then those outside the
    smallest set of the likeliest whose share of what remains reaches top_p; tokens tied with the last one kept are kept
    too. Seed and position fix the noise: a row's draw does not depend on the other rows.

    Source: Gumbel (1954); the argmax of log p + Gumbel noise is a sample of p.
    """
    temperature, top_p, min_p = floats.index_select(1, rows)
    seeds, top_k = integers.index_select(1, rows)
    chosen = logits.max(dim=-1).indices  # of equals the first
    random = (temperature >= GREEDY_BELOW).nonzero().squeeze(-1)
    rows_at_once = max(NUMBERS_AT_ONCE // logits.shape[-1], 1)
    for start in range(0, len(random), rows_at_once):
        some = random[start : start + rows_at_once]
        scaled = logits[some].float() / temperature[some, None]
        scores = gumbel(seeds[some], positions[some].long(), logits.shape[-1]).add_(scaled)
        limits = top_k[some], top_p[some], min_p[some]
        if (limits[0] > 0).any() or (limits[1] < 1).any() or (limits[2] > 0).any():
            scores -= (scaled < thresholds(scaled, *limits)[:, None]) * BEYOND_NOISE
        chosen[some] = scores.max(dim=-1).indices
    tokens[rows.long(), positions.long()] = chosen.int()
    return chosen


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
    rows: torch.Tensor,
    positions: torch.Tensor,
    floats: torch.Tensor,
    integers: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Reads the logits once, and some 60 times more, out of the L2 cache, to search the threshold of a filtered row."""
    num_rows, vocab = logits.shape
    logits = logits.contiguous()
    parts = -(-vocab // TOKENS_A_PROGRAM)
    least, scores = floats.new_empty(num_rows), floats.new_empty(num_rows, parts)
    found = tokens.new_empty(num_rows, parts)
    chosen = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        _threshold_kernel[(num_rows,)](
            *(logits, rows, floats, integers, floats.stride(0), least, vocab, GREEDY_BELOW, 2 * TOKENS_A_PROGRAM),
            num_warps=16,
            **early(logits.device),
        )
        _gumbel_max_kernel[(num_rows, parts)](
            *(logits, rows, floats, integers, least, positions, scores, found, vocab, GREEDY_BELOW, TOKENS_A_PROGRAM),
            **early(logits.device),
        )
        _choose_kernel[(num_rows,)](
            *(scores, found, rows, positions, chosen, tokens, tokens.stride(0), parts, next_power_of_2(parts)),
            num_warps=1,
            **early(logits.device),
        )
    return chosen


@jit
def _gumbel_max_kernel(
    logits,
    rows,
    floats,
    integers,
    least,
    positions,
    scores,
    found,
    vocab,
    GREEDY_BELOW: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The best score and its token of ``BLOCK`` tokens; a first of equals."""
    await_predecessor(EARLY)
    line, part = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + line)
    heat = tl.load(floats + row)
    token = part * BLOCK + tl.arange(0, BLOCK)
    score = _scaled(logits, heat, line, token, vocab, GREEDY_BELOW)
    if heat >= GREEDY_BELOW:
        score = tl.where(score >= tl.load(least + line), score, float("-inf"))
        score += _gumbel(tl.load(integers + row), tl.load(positions + line).to(tl.int64), token)
    # Whatever a broken model computes, the token chosen exists.
    score = tl.where((token < vocab) & (score == score), score, float("-inf"))
    place = line * tl.num_programs(1) + part
    best, best_place = tl.max(score, axis=0, return_indices=True)
    tl.store(scores + place, best)
    tl.store(found + place, part * BLOCK + best_place)


@jit
def _choose_kernel(
    scores,
    found,
    rows,
    positions,
    chosen,
    tokens,
    token_stride,
    parts,
    PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The token of the best score among the ``parts`` of the vocabulary."""
    await_predecessor(EARLY)
    line = tl.program_id(0)
    part = tl.arange(0, PARTS)
    best = tl.argmax(tl.load(scores + line * parts + part, mask=part < parts, other=float("-inf")), axis=0)
    token = tl.load(found + line * parts + best)
    tl.store(chosen + line, token.to(tl.int64))
    tl.store(tokens + tl.load(rows + line).to(tl.int64) * token_stride + tl.load(positions + line), token)


@jit
def _threshold_kernel(
    logits,
    rows,
    floats,
    integers,
    stride,
    least,
    vocab,
    GREEDY_BELOW: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The least scaled logit that is kept: the reference's ``thresholds`` by bisection instead of sorting."""
    await_predecessor(EARLY)
    line = tl.program_id(0)
    row = tl.load(rows + line)
    heat, share, smallest = tl.load(floats + row), tl.load(floats + stride + row), tl.load(floats + 2 * stride + row)
    count = tl.load(integers + stride + row)
    kept = tl.full([], float("-inf"), tl.float32)
    if (heat >= GREEDY_BELOW) & ((share < 1.0) | (smallest > 0.0) | (count > 0)):
        peak = kept
        for start in range(0, vocab, BLOCK):
            token = start + tl.arange(0, BLOCK)
            peak = tl.maximum(peak, tl.max(_scaled(logits, heat, line, token, vocab, GREEDY_BELOW), axis=0))
        if smallest > 0.0:
            kept = peak + tl.log(smallest)
        if (count > 0) & (count < vocab):
            wanted = count.to(tl.float32)
            found = _largest_kept(logits, heat, line, vocab, peak, kept, wanted, False, GREEDY_BELOW, BLOCK)
            kept = tl.maximum(kept, found)
        if share < 1.0:
            wanted = share * _amount(logits, heat, line, vocab, peak, kept, True, GREEDY_BELOW, BLOCK)
            # What lies 60 below the peak has no weight in float32.
            kept = tl.maximum(kept, peak - 60.0)
            kept = _largest_kept(logits, heat, line, vocab, peak, kept, wanted, True, GREEDY_BELOW, BLOCK)
    tl.store(least + line, kept)


@jit
def _largest_kept(
    logits,
    heat,
    line,
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
        amount = _amount(logits, heat, line, vocab, peak, threshold, WEIGHTS, GREEDY_BELOW, BLOCK)
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
    heat,
    line,
    vocab,
    peak,
    threshold,
    WEIGHTS: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many tokens of a line reach the threshold, or the sum of their probabilities in units of the likeliest."""
    amounts = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        scaled = _scaled(logits, heat, line, token, vocab, GREEDY_BELOW)
        amounts += tl.where((scaled >= threshold) & (token < vocab), tl.exp(scaled - peak) if WEIGHTS else 1.0, 0.0)
    return tl.sum(amounts, axis=0)


@jit
def _scaled(logits, heat, line, token, vocab, GREEDY_BELOW: tl.constexpr):
    """Some logits of a line, divided by its temperature; -inf outside the vocabulary."""
    values = tl.load(logits + line.to(tl.int64) * vocab + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    if heat >= GREEDY_BELOW:
        values = tl.div_rn(values, tl.broadcast_to(heat, values.shape))
    return values


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
