"""Blocks: which prefixes are found, what windows give back, what is reused first, and that refusals change nothing."""

import pytest

from headrace.engine.kv_cache import BlockPool, KVCache, blocks_for
from headrace.engine.request import Request, State
from headrace.types import FinishReason, KVCacheLayout, KVGroup, NewBlocks, SamplingParams, Submit

SIZE = 4


def new_cache(num_blocks: int = 20, windows: tuple[int | None, ...] = (None,), prefix_caching: bool = True) -> KVCache:
    groups = [KVGroup([index], window) for index, window in enumerate(windows)]
    return KVCache(KVCacheLayout(SIZE, num_blocks + 1, groups, 1), prefix_caching)


def new_request(cache: KVCache, prompt: list[int], salt: str | None = None, **params: int) -> Request:
    submit = Submit("r", prompt, SamplingParams(max_tokens=100, **params), cache_salt=salt)
    request = Request(submit, (0, 0), 0, 1000, len(cache.windows))
    request.row = 0
    return request


def start(cache: KVCache, request: Request) -> list[NewBlocks] | None:
    """Admit with all its tokens in one step."""
    prefix = cache.find_prefix(request)
    count = len(request.token_ids) - len(prefix[0]) * SIZE
    blocks = cache.admit(request, prefix, count)
    if blocks is not None:
        request.num_planned += count
        cache.register_full_blocks(request)
    return blocks


def held(*requests: Request) -> list[int]:
    return [block for request in requests for blocks in request.blocks for block in blocks if block]


PREFIXES = [  # known prompt, new prompt, blocks found
    (range(12), range(12), 2),  # the last token is always computed, so its block is
    (range(12), range(13), 3),
    (range(12), [*range(8), 99, 100, 101, 102, 103], 2),
    (range(12), [99, *range(1, 12)], 0),  # a block stands for all tokens before it, too
    (range(7), range(12), 1),  # only full blocks are known
    (range(3), range(3), 0),
    (range(4), range(5), 1),
    ([0] * 8, [0] * 20, 2),  # equal blocks in other places are other blocks
]


@pytest.mark.parametrize(("known", "prompt", "found"), PREFIXES)
@pytest.mark.parametrize("running", [True, False], ids=["held", "free"])
def test_longest_prefix(known: range, prompt: range, found: int, running: bool) -> None:
    cache = new_cache()
    first = new_request(cache, list(known))
    start(cache, first)
    blocks = first.blocks[0][:found]
    if not running:
        cache.free(first)
    second = new_request(cache, list(prompt))
    assert cache.find_prefix(second) == [blocks]
    new = start(cache, second)
    assert new is not None and second.blocks[0][:found] == blocks
    assert [block for part in new for block in part.block_ids] == second.blocks[0]
    assert second.num_cached_tokens == found * SIZE
    cache.pool.check_integrity(held(first, second))


@pytest.mark.parametrize(
    ("salt", "params", "prefix_caching"),
    [("other", {}, True), (None, {}, True), ("salt", {"prompt_logprobs": 1}, True), ("salt", {}, False)],
)
def test_what_finds_no_prefix(salt: str | None, params: dict[str, int], prefix_caching: bool) -> None:
    """Another salt or none; prompt logprobs, for which all must be computed; prefix caching turned off."""
    cache = new_cache(prefix_caching=prefix_caching)
    start(cache, new_request(cache, list(range(12)), "salt"))
    assert cache.find_prefix(new_request(cache, list(range(12)), salt, **params)) == [[]]


def test_outputs_are_prefixes_as_well() -> None:
    cache = new_cache()
    first = new_request(cache, list(range(6)))
    start(cache, first)
    for token_id in (50, 51, 52):
        first.append(token_id)
        assert cache.extend(first, 1) is not None
        first.num_planned += 1
        cache.register_full_blocks(first)
    assert cache.find_prefix(new_request(cache, [*range(6), 50, 51, 52])) == [first.blocks[0][:2]]


def test_tokens_in_flight_name_no_block() -> None:
    """A block whose last token the host doesn't know yet can't be offered, though it is planned."""
    cache = new_cache()
    first = new_request(cache, list(range(3)))
    start(cache, first)
    cache.extend(first, 1)
    first.num_planned += 1
    cache.register_full_blocks(first)
    assert first.num_registered == 0
    first.append(3)
    cache.register_full_blocks(first)
    assert cache.find_prefix(new_request(cache, list(range(5)))) == [first.blocks[0]]


def test_the_end_of_the_oldest_prefix_is_forgotten_first() -> None:
    cache = new_cache(num_blocks=6)
    old, young = new_request(cache, [1] * 12), new_request(cache, [2] * 12)
    for request in (old, young):
        start(cache, request)
    for request in (old, young):
        cache.free(request)
    found = []
    for _ in range(6):
        cache.pool.allocate(1)
        found.append([len(cache.find_prefix(new_request(cache, [token] * 13))[0]) for token in (1, 2)])
    assert found == [[2, 3], [1, 3], [0, 3], [0, 2], [0, 1], [0, 0]]


def test_a_refusal_changes_nothing() -> None:
    cache = new_cache(num_blocks=5)
    first = new_request(cache, list(range(12)))
    start(cache, first)
    second = new_request(cache, [*range(8), *range(50, 62)])  # shares two blocks, needs three more, two are free
    assert start(cache, second) is None
    assert (second.blocks, second.num_planned, second.num_cached_tokens) == ([[]], 0, None)
    assert cache.extend(first, 9) is None
    assert len(first.blocks[0]) == 3 and cache.pool.num_free == 2
    cache.pool.check_integrity(held(first))
    cache.free(first)  # now the shared blocks are free themselves, and the three must come beside them
    assert start(cache, second) is not None and cache.pool.num_free == 0
    cache.pool.check_integrity(held(second))


def test_forgotten_prefixes_stay_with_those_who_hold_them() -> None:
    cache = new_cache()
    first = new_request(cache, list(range(12)))
    start(cache, first)
    cache.pool.forget_prefixes()
    assert cache.find_prefix(new_request(cache, list(range(12)))) == [[]]
    cache.pool.check_integrity(held(first))
    assert len(first.blocks[0]) == 3


@pytest.mark.parametrize("window", [1, 2, 4, 5, 9, 13])
def test_a_window_gives_back_what_no_layer_will_read(window: int) -> None:
    cache = new_cache(windows=(window, None))
    request = new_request(cache, [1])
    start(cache, request)
    for position in range(1, 30):
        assert cache.extend(request, 1) is not None
        first_needed = max(0, position - window + 1) // SIZE
        kept = [block != 0 for block in request.blocks[0]]
        assert kept == [False] * first_needed + [True] * (len(kept) - first_needed)
        assert all(request.blocks[1])
        cache.pool.check_integrity(held(request))
        request.num_planned += 1
    assert len(held(request)) <= blocks_for([window, None], SIZE, 30, 1)


@pytest.mark.parametrize(
    ("window", "shape"),  # of the five blocks of 20 known tokens, those that token 20 reads
    [(2, "----x"), (5, "----x"), (6, "---xx"), (9, "---xx"), (10, "--xxx"), (100, "xxxxx")],
)
def test_a_window_takes_over_only_what_it_reads(window: int, shape: str) -> None:
    cache = new_cache(windows=(window,))
    first = new_request(cache, list(range(20)))
    start(cache, first)
    blocks = list(first.blocks[0])
    cache.free(first)
    found = cache.find_prefix(new_request(cache, list(range(21))))[0]
    assert found == [block if mark == "x" else 0 for block, mark in zip(blocks, shape, strict=True)]


def test_groups_agree_on_the_longest_prefix_all_can_go_on_from() -> None:
    cache = new_cache(windows=(5, None))
    first = new_request(cache, list(range(20)))
    start(cache, first)
    windowed, whole = (list(blocks) for blocks in first.blocks)
    cache.free(first)
    del cache.pool._block_of[(1, first.hashes[3])]  # the whole-context group knows three blocks only
    cache.pool._key_of[whole[3]] = None
    second = new_request(cache, list(range(21)))
    assert cache.find_prefix(second) == [[0, 0, windowed[2]], whole[:3]]
    start(cache, second)
    cache.pool.check_integrity(held(second))


@pytest.mark.parametrize(
    ("windows", "num_tokens", "step", "blocks"),
    [([None], 17, 8, 5), ([None, None], 16, 8, 8), ([5], 100, 8, 4), ([5], 8, 100, 2), ([None, 5], 100, 8, 29)],
)
def test_blocks_for(windows: list[int | None], num_tokens: int, step: int, blocks: int) -> None:
    assert blocks_for(windows, SIZE, num_tokens, step) == blocks


def test_block_0_is_nobodys() -> None:
    pool = BlockPool(5)
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4] and pool.num_free == 0 and pool.usage == 1.0


def test_a_wrong_count_is_noticed() -> None:
    pool = BlockPool(5)
    blocks = pool.allocate(2)
    pool.check_integrity(blocks)
    with pytest.raises(RuntimeError, match="counted wrongly"):
        pool.check_integrity(blocks[:1])


def test_illegal_transitions_raise() -> None:
    request = new_request(new_cache(), [1])
    request.enter(State.RUNNING)
    request.enter(State.WAITING)
    request.enter(State.FINISHED)
    with pytest.raises(RuntimeError, match="can't go from finished to running"):
        request.enter(State.RUNNING)


def test_ends_of_a_request() -> None:
    """A stop id counts from min_tokens on; the limit is the prompt and max_tokens, or the context."""
    params = SamplingParams(max_tokens=4, min_tokens=2, stop_token_ids=[7])
    request = Request(Submit("r", [1], params, eos_token_ids=[2]), (0, 0), 0, 100, 1)
    assert [request.append(token) for token in (7, 5)] == [(None, None), (None, None)]
    assert request.append(7) == (FinishReason.STOP, 7)
    request = Request(Submit("r", [1], params, eos_token_ids=[2]), (0, 0), 0, 4, 1)
    assert [request.append(token)[0] for token in (5, 5, 5)] == [None, None, FinishReason.LENGTH]
    request = Request(Submit("r", [1], params, eos_token_ids=[2]), (0, 0), 0, 100, 1)
    assert [request.append(token)[0] for token in (5, 2)] == [None, FinishReason.STOP]
