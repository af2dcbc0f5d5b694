"""The periodic log line about the engine's work. Knows the observer's records only."""

import asyncio
import logging
import time
from collections import deque

from headrace.frontend.observer import Observer, added_up
from headrace.types import Stats

logger = logging.getLogger(__name__)

INTERVAL = 10.0  # seconds
RECENT = 1000  # lookups that the prefix hit rate is taken over


class StatsLog(Observer):
    """Observer that sums up what happened since ``now`` and logs it every ``INTERVAL`` seconds; quiet when idle.

    Times are time.monotonic() seconds.
    """

    def __init__(self, now: float) -> None:
        self._latest, self._sum = Stats(), Stats()  # the second since the last line
        self._lookups: deque[tuple[int, int]] = deque(maxlen=RECENT)  # (hits, queries)
        self._since = now
        self._was_idle = True

    def on_stats(self, stats: Stats) -> None:
        self._latest, self._sum = stats, added_up(self._sum, stats)
        if stats.prefix_cache_queries:
            self._lookups.append((stats.prefix_cache_hits, stats.prefix_cache_queries))

    async def run(self) -> None:
        """Log for ever; cancel to end."""
        while True:
            await asyncio.sleep(INTERVAL)
            self.log(time.monotonic())

    def log(self, now: float) -> None:
        """Log the time since the last call, unless it and the one before were idle."""
        seconds, stats, total = max(now - self._since, 1e-9), self._latest, self._sum
        idle = not (total.prompt_tokens or total.generation_tokens or stats.num_running or stats.num_waiting)
        if not (idle and self._was_idle):
            hits, queries = (sum(column) for column in zip((0, 0), *self._lookups, strict=True))
            logger.info(
                "Engine 000: Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, "
                "Running: %d reqs, Waiting: %d reqs, GPU KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%",
                total.prompt_tokens / seconds,
                total.generation_tokens / seconds,
                stats.num_running,
                stats.num_waiting,
                stats.kv_cache_usage * 100,
                100 * hits / queries if queries else 0.0,
            )
        self._sum, self._since, self._was_idle = Stats(), now, idle
