"""How much one caller may ask for: so many unfinished requests, and so many in a minute. Knows no routes, no engine."""

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.errors import QueueFullError

MINUTE = 60.0
REMEMBERED = 10_000  # callers; beyond, those with a whole minute's requests to spare are forgotten
NETWORK_BITS = 64  # of an IPv6 address: one customer has at least so many addresses


class Quota:
    """The callers' accounts. A limit of None is none."""

    def __init__(
        self,
        unfinished: int | None,
        per_minute: int | None,
        on_refused: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        """``on_refused`` is told the option of each refusal."""
        self._unfinished, self._per_minute = unfinished, per_minute
        self._on_refused, self._clock = on_refused, clock
        self._open: Counter[str] = Counter()
        self._paid: dict[str, float] = {}  # when a caller's requests so far are paid for, at the allowed rate

    @contextmanager
    def request(self, caller: str) -> Iterator[None]:
        """One request, from its beginning to the end of its answer. Raises ``QueueFullError``."""
        if self._unfinished is not None and self._open[caller] >= self._unfinished:
            self._on_refused("max_queued_per_key")
            raise QueueFullError(
                f"You have {self._open[caller]} unfinished requests, as many as --max-queued-per-key allows; "
                "wait for one of them."
            )
        if self._per_minute is not None:
            self._pay(caller, MINUTE / self._per_minute)
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]

    def _pay(self, caller: str, price: float) -> None:
        """The generic cell rate algorithm (ITU-T I.371): a minute's requests may come at once, then one every ``price``
        seconds.
        """
        now = self._clock()
        paid = max(now, self._paid.get(caller, now)) + price
        if (wait := paid - now - MINUTE) > 1e-6:
            self._on_refused("max_requests_per_minute_per_key")
            raise QueueFullError(
                f"You have sent the {self._per_minute} requests that --max-requests-per-minute-per-key allows in a "
                "minute.",
                retry_after=math.ceil(wait),
            )
        self._paid[caller] = paid
        if len(self._paid) > REMEMBERED:
            self._paid = {name: until for name, until in self._paid.items() if until > now}


def address_of(client: str | None) -> str:
    """Who a client without a key is: its address, or all of its IPv6 network; "" behind a Unix socket."""
    try:
        address = ipaddress.ip_address((client or "").partition("%")[0])
    except ValueError:
        return ""
    address = getattr(address, "ipv4_mapped", None) or address
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, NETWORK_BITS), strict=False))
