"""KV-cache blocks: who holds which, which hold known prefixes, which to reuse next.

Owns block ids, reference counts and prefix hashes in pure Python; knows neither tensors nor scheduling. Every KV group
draws from one pool: a block is ``block_size`` tokens of one group's layers.
"""

import hashlib
from collections import OrderedDict

from headrace.engine.request import Request
from headrace.types import KVCacheLayout, NewBlocks

BlockKey = tuple[int, bytes]  # KV group, hash of the block's tokens and of all before them


class BlockPool:
    """Reference-counted blocks. Free blocks keep their contents and key until reused.

    Those without a key, which nobody can look up, are reused first, then the least recently freed.
    """

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._key_of: list[BlockKey | None] = [None] * num_blocks
        self._block_of: dict[BlockKey, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))  # block 0 is never handed out

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0 to 1."""
        return 1.0 - len(self._free) / (self.num_blocks - 1)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` free blocks, forgetting the prefixes they held. The caller has checked ``num_free``."""
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
            key = self._key_of[block]
            if key is not None:
                del self._block_of[key]
                self._key_of[block] = None
        return blocks

    def is_free(self, block: int) -> bool:
        return self._references[block] == 0

    def share(self, block: int) -> None:
        """Add a holder to a block found by ``lookup``."""
        if self._references[block] == 0:
            del self._free[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block] == 0:
            self._free[block] = None
            if self._key_of[block] is None:
                self._free.move_to_end(block, last=False)

    def lookup(self, key: BlockKey) -> int | None:
        return self._block_of.get(key)

    def register(self, block: int, key: BlockKey) -> None:
        """Offer a block's contents under ``key``, unless another block offers the same already."""
        if key not in self._block_of and self._key_of[block] is None:
            self._block_of[key] = block
            self._key_of[block] = key

    def forget_prefixes(self) -> None:
        self._block_of.clear()
        self._key_of = [None] * self.num_blocks

    def check_integrity(self, held: list[int]) -> None:
        """Raise if counts, free list and keys disagree; ``held`` lists the blocks of all requests, repeats and all."""
        references = [0] * self.num_blocks
        for block in held:
            references[block] += 1
        if references != self._references:
            wrong = [b for b in range(self.num_blocks) if references[b] != self._references[b]]
            raise RuntimeError(f"blocks {wrong[:8]} are counted wrongly: requests hold {len(held)} blocks")
        if set(self._free) != {b for b in range(1, self.num_blocks) if references[b] == 0}:
            raise RuntimeError("the free list and the reference counts disagree")
        for key, block in self._block_of.items():
            if self._key_of[block] != key:
                raise RuntimeError(f"block {block} is filed under a key it doesn't hold")


class KVCache:
    """Gives requests the blocks their tokens need, shares known prefixes, and takes back what no layer will read."""

    def __init__(self, layout: KVCacheLayout, enable_prefix_caching: bool):
        self.block_size = layout.block_size
        self.windows = [group.window for group in layout.groups]
        self._has_windows = any(self.windows)
        self.pool = BlockPool(layout.num_blocks)
        self.enable_prefix_caching = enable_prefix_caching
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    def find_prefix(self, request: Request) -> list[list[int]]:
        """The cached blocks of the longest usable prefix, one list a group (equal lengths; 0 = outside the window).

        At least one token is left to compute, since its logits are needed.
        """
        if not self.enable_prefix_caching or request.needs_whole_prompt:
            return [[] for _ in self.windows]
        length = (len(request.token_ids) - 1) // self.block_size
        self._hash_blocks(request, length)
        while True:
            found = [self._longest_run(group, request.hashes[:length]) for group in range(len(self.windows))]
            shortest = min(map(len, found))
            if shortest == length:
                return found
            length = shortest

    def _longest_run(self, group: int, hashes: list[bytes]) -> list[int]:
        """Blocks of the longest prefix of ``hashes`` that ``group`` can go on from."""
        window = self.windows[group]
        if window is None:
            blocks: list[int] = []
            for digest in hashes:
                block = self.pool.lookup((group, digest))
                if block is None:
                    break
                blocks.append(block)
            return blocks
        # A window needs only the blocks that hold the window-1 tokens before the next one: search from the end.
        needed = -(-(window - 1) // self.block_size)
        blocks = [0] * len(hashes)
        end = len(hashes)
        for index in range(len(hashes) - 1, -1, -1):
            block = self.pool.lookup((group, hashes[index]))
            if block is None:
                end = index
                continue
            blocks[index] = block
            if end - index >= needed:
                return [0] * index + blocks[index:end]
        return blocks[:end] if needed else [0] * len(hashes)

    def admit(self, request: Request, prefix: list[list[int]], num_new_tokens: int) -> list[NewBlocks] | None:
        """Give a waiting request its cached ``prefix`` and room for more tokens; None (and no change) without room."""
        for group, blocks in enumerate(prefix):
            request.blocks[group] = list(blocks)
        revived = sum(self.pool.is_free(block) for blocks in prefix for block in blocks if block)
        start = len(prefix[0]) * self.block_size
        missing = self._num_missing(request, start + num_new_tokens) * len(self.windows)
        if revived + missing > self.pool.num_free:
            request.blocks = [[] for _ in self.windows]
            return None
        for blocks in prefix:
            for block in filter(None, blocks):
                self.pool.share(block)
        request.num_planned = start
        request.num_registered = len(prefix[0])
        shared = [NewBlocks(g, request.row, 0, blocks) for g, blocks in enumerate(prefix) if blocks]
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_counted = start
            self.num_queried_tokens += len(request.token_ids)
            self.num_hit_tokens += start
        extended = self.extend(request, num_new_tokens)
        assert extended is not None
        return shared + extended

    def extend(self, request: Request, num_new_tokens: int) -> list[NewBlocks] | None:
        """Give ``request`` room for its next tokens; None (and no change) if too few blocks are free."""
        if self._has_windows:
            self._free_outside_windows(request)
        missing = self._num_missing(request, request.num_planned + num_new_tokens)
        if missing <= 0:
            return []
        if missing * len(self.windows) > self.pool.num_free:
            return None
        new = []
        for group, blocks in enumerate(request.blocks):
            ids = self.pool.allocate(missing)
            new.append(NewBlocks(group, request.row, len(blocks), ids))
            blocks.extend(ids)
        return new

    def register_full_blocks(self, request: Request) -> None:
        """Offer the blocks that the planned steps fill with known tokens to later requests."""
        full = min(request.num_planned, len(request.token_ids)) // self.block_size
        if not self.enable_prefix_caching or full <= request.num_registered:
            return
        self._hash_blocks(request, full)
        for index in range(request.num_registered, full):
            for group, blocks in enumerate(request.blocks):
                if blocks[index]:
                    self.pool.register(blocks[index], (group, request.hashes[index]))
        request.num_registered = full

    def free(self, request: Request) -> None:
        """Take every block back; the end of the prefix goes first, so that its beginning stays cached longest."""
        for blocks in request.blocks:
            for block in reversed(blocks):
                if block:
                    self.pool.release(block)
        request.blocks = [[] for _ in self.windows]
        request.num_registered = 0

    def _num_missing(self, request: Request, num_tokens: int) -> int:
        """Blocks of each group that ``num_tokens`` need beyond what there is: all groups have them for equal tokens."""
        return -(-num_tokens // self.block_size) - len(request.blocks[0])

    def _free_outside_windows(self, request: Request) -> None:
        for window, blocks in zip(self.windows, request.blocks, strict=True):
            if window is None:
                continue
            for index in range((request.num_planned - window + 1) // self.block_size - 1, -1, -1):
                if not blocks[index]:
                    break  # everything before was freed earlier
                self.pool.release(blocks[index])
                blocks[index] = 0

    def _hash_blocks(self, request: Request, count: int) -> None:
        """Extend ``request.hashes`` to ``count`` blocks: each hashes its parent's digest and its own token ids.

        The first one's parent is what else tells prompts apart: the salt and, after a byte that no text holds, what
        stands for the token ids of a prompt of embeddings.
        """
        size = self.block_size
        if len(request.hashes) >= count:
            return
        if request.hashes:
            parent = request.hashes[-1]
        else:
            salt = (request.cache_salt or "").encode() + (b"\xff" + request.embeds.digest if request.embeds else b"")
            parent = hashlib.sha256(salt).digest()
        first = len(request.hashes) * size
        data = request.token_ids[first : count * size].tobytes()
        for offset in range(0, len(data), 4 * size):
            parent = hashlib.sha256(parent + data[offset : offset + 4 * size]).digest()
            request.hashes.append(parent)


def blocks_for(windows: list[int | None], block_size: int, num_tokens: int, max_step_tokens: int) -> int:
    """Blocks one request of ``num_tokens`` may hold at once, when a step adds at most ``max_step_tokens``."""
    total = -(-num_tokens // block_size)
    return sum(
        total if window is None else min(total, -(-(window - 1 + max_step_tokens) // block_size) + 1)
        for window in windows
    )
