"""How many requests at once, and how long to wait before the next try."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from types import TracebackType

_START = 16  # requests at once for a server that does not tell its limit
_CEILING = 1_000  # what `Dataset.map` runs at most


class AdaptiveLimit:
    """Requests in flight, at most `limit`: doubled per round trip until the first overload, then one more per round trip,
    halved at an overload (additive increase, multiplicative decrease, as TCP does).

    One instance serves all event loops of a process (every `Dataset.map` makes its own), so the waiting is done with one
    future per waiter on the waiter's own loop. `limit` never exceeds what the server said that it takes.
    """

    def __init__(self, server_limit: int | None = None) -> None:
        self.ceiling = server_limit or _CEILING
        self.limit = float(server_limit or _START)
        self.in_flight = 0
        self._settled = server_limit is not None
        self._last_cut = 0.0
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        with self._lock:
            if self.in_flight < int(self.limit):
                self.in_flight += 1
                return
            loop = asyncio.get_running_loop()
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, turn))
        try:
            await turn
        except asyncio.CancelledError:
            # The slot may have been handed over in the same instant: pass it on.
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._release()

    def succeeded(self) -> None:
        """A reply came: room for more."""
        with self._lock:
            self.limit = min(self.ceiling, self.limit + (1 / self.limit if self._settled else 1))
            self._hand_out()

    def overloaded(self, sent_at: float) -> None:
        """The server refused a request sent at `sent_at` (time.monotonic): halve, once per round trip."""
        with self._lock:
            self._settled = True
            if sent_at > self._last_cut:
                self.limit = max(1.0, self.limit / 2)
                self._last_cut = time.monotonic()

    def _release(self) -> None:
        with self._lock:
            self.in_flight -= 1
            self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            loop, turn = self._waiting.popleft()
            if turn.cancelled() or loop.is_closed():
                continue
            self.in_flight += 1
            loop.call_soon_threadsafe(_give, turn, self)


def _give(turn: asyncio.Future[None], limit: AdaptiveLimit) -> None:
    if turn.cancelled():
        limit._release()
    else:
        turn.set_result(None)


def backoff(tries: int, retry_after: float | None = None, longest: float = 30.0) -> float:
    """Seconds to wait before try number `tries` + 1: exponential with full jitter, never less than the server asked for."""
    return max(retry_after or 0.0, random.uniform(0.05, min(longest, 0.25 * 2.0 ** min(tries, 10))))
