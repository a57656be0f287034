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
        self._settled = server_limit is not None
        self._last_cut = 0.0
        # Slots by the loop that holds them: a map that fails leaves its loop standing, and slots that nobody will give back.
        self._held: dict[asyncio.AbstractEventLoop, int] = {}
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """Slots in use."""
        return sum(self._held.values())

    def slot(self) -> _Slot:
        """`async with limit.slot():` waits for a slot and gives it back."""
        return _Slot(self)

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

    def take(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        """A slot for `loop` at once (None), or the future that resolves when there is one."""
        with self._lock:
            if self.in_flight >= int(self.limit):
                self._reclaim()
            if self.in_flight < int(self.limit):
                self._hold(loop)
                return None
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, turn))
            return turn

    def give_back(self, loop: asyncio.AbstractEventLoop) -> None:
        """Return a slot that `loop` held."""
        with self._lock:
            if self._held.get(loop):  # else it was reclaimed
                self._held[loop] -= 1
            self._hand_out()

    def _hold(self, loop: asyncio.AbstractEventLoop) -> None:
        self._held[loop] = self._held.get(loop, 0) + 1

    def _reclaim(self) -> None:
        """Free the slots and places of loops that stand still. A loop that only pauses may exceed the limit for a moment."""
        for loop in [loop for loop in self._held if not loop.is_running()]:
            del self._held[loop]

    def _hand_out(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            loop, turn = self._waiting.popleft()
            if turn.cancelled() or loop.is_closed():
                continue
            self._hold(loop)
            loop.call_soon_threadsafe(_give, turn, self, loop)


class _Slot:
    """One slot of an AdaptiveLimit, for `async with`."""

    def __init__(self, limit: AdaptiveLimit) -> None:
        self._limit = limit
        # Kept, because a coroutine that is thrown away gives its slot back when no loop is running any more.
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> None:
        turn = self._limit.take(self._loop)
        if turn is None:
            return
        try:
            await turn
        except asyncio.CancelledError:
            # The slot may have been handed over in the same instant: pass it on.
            if turn.done() and not turn.cancelled():
                self._limit.give_back(self._loop)
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._limit.give_back(self._loop)


def _give(turn: asyncio.Future[None], limit: AdaptiveLimit, loop: asyncio.AbstractEventLoop) -> None:
    if turn.cancelled():
        limit.give_back(loop)
    else:
        turn.set_result(None)


def backoff(tries: int, retry_after: float | None = None) -> float:
    """Seconds to wait before try number `tries` + 1: exponential with full jitter up to 30 s, and no less than the server asked
    for, unless that is more than five minutes."""
    return max(min(retry_after or 0.0, 300.0), random.uniform(0.05, min(30.0, 0.25 * 2.0 ** min(tries, 10))))
