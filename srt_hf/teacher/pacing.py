"""How many requests at once, and how long to wait before the next try. Pure numbers."""

from __future__ import annotations

import random
import time

_START = 16  # requests at once for a server that does not tell its limit
_CEILING = 1_000  # what `Dataset.map` runs at most
_LONGEST_ASKED = 300.0  # seconds; a server that asks for more is asked again after these


class AdaptiveLimit:
    """How many requests one server takes at once: doubled per round trip until the first overload, then one more per round trip,
    halved at an overload (additive increase, multiplicative decrease, as TCP does).

    `value` never exceeds what the server said that it takes, and is at least 1.
    """

    def __init__(self, server_limit: int | None = None) -> None:
        self._ceiling = server_limit or _CEILING
        self._settled = server_limit is not None
        self._last_cut = 0.0
        self.value = float(server_limit or _START)

    def succeeded(self) -> None:
        """A reply came: room for more."""
        self.value = min(self._ceiling, self.value + (1 / self.value if self._settled else 1))

    def overloaded(self, sent_at: float) -> None:
        """The server refused a request sent at `sent_at` (time.monotonic): halve, once per round trip."""
        self._settled = True
        if sent_at > self._last_cut:
            self.value = max(1.0, self.value / 2)
            self._last_cut = time.monotonic()


def backoff(tries: int, retry_after: float | None = None) -> float:
    """Seconds to wait before try number `tries` + 1: exponential with full jitter up to 30 s, and no less than the server asked
    for, unless that is more than five minutes."""
    return max(min(retry_after or 0.0, _LONGEST_ASKED), random.uniform(0.05, min(30.0, 0.25 * 2.0 ** min(tries, 10))))
