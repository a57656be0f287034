"""How many requests at once, and how long to wait before the next try. Pure numbers."""

from __future__ import annotations

import random
import time

_START = 16  # requests at once for a server that does not tell its limit
_CEILING = 1_000  # what `Dataset.map` runs at most
_REST = 30.0  # round trips at what the server took before one more is tried
_NEARLY = 0.9  # of what it took before: an overload above that is the one request too many
_LONGEST_ASKED = 300.0  # seconds; a server that asks for more is asked again after these


class AdaptiveLimit:
    """How many requests one server takes at once. `value` is at least 1 and never exceeds what the server said that it takes.

    One more per reply (doubled per round trip) until the first overload. That halves it, once per round trip, and tells where the
    server is full: back to one below that at the same pace, some round trips there, then one more per round trip to see whether
    it takes more by now. A server without a queue refuses the first request too many, so plain halving and creeping up again
    (TCP's additive increase) would leave a third of it idle. Where an overload comes well below what it took before, the server
    has become smaller, and only the creeping is left.
    """

    def __init__(self, server_limit: int | None = None) -> None:
        self._ceiling = float(server_limit or _CEILING)
        self._full = self._ceiling  # what it is thought to take
        self._to_full_fast = server_limit is None
        self._rest = 0.0  # round trips left at `_full`
        self._last_cut = 0.0
        self.value = float(server_limit or _START)

    def succeeded(self) -> None:
        """A reply came: room for more."""
        if self._to_full_fast and self.value < self._full:
            self.value = min(self._full, self.value + 1)
        elif self._rest > 0:
            self._rest -= 1 / self.value
        else:
            self.value = min(self._ceiling, self.value + 1 / self.value)

    def overloaded(self, sent_at: float, in_flight: int) -> None:
        """The server refused a request sent at `sent_at` (time.monotonic) while so many were in flight, itself among them."""
        if sent_at <= self._last_cut or in_flight > self.value:
            return  # of the round trip that was answered already: its requests are still on their way back
        one_too_many = self._full == _CEILING or self.value > _NEARLY * self._full
        self._full = max(1.0, min(self.value, in_flight) - 1 if one_too_many else self.value / 2)
        self._to_full_fast = one_too_many
        self._rest = _REST if one_too_many else 0.0
        self.value = max(1.0, self.value / 2)
        self._last_cut = time.monotonic()

    def restart(self) -> None:
        """It answered nobody: one request at a time until it does, and then back to where it was as fast as at the start."""
        self.value, self._to_full_fast = 1.0, True


def backoff(tries: int, retry_after: float | None = None) -> float:
    """Seconds to wait before try number `tries` + 1: exponential with full jitter up to 30 s, and no less than the server asked
    for, unless that is more than five minutes."""
    return max(min(retry_after or 0.0, _LONGEST_ASKED), random.uniform(0.05, min(30.0, 0.25 * 2.0 ** min(tries, 10))))
