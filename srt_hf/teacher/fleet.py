"""The servers of one teacher, each with its own limit: work goes to the freest, a dead one is left out and taken back.

One fleet serves all event loops of a process (every `Dataset.map` makes its own), so the waiting is done with one future per
waiter on the waiter's own loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from srt_hf.errors import ConfigError, SrtError, TeacherError, TeacherUnreachable
from srt_hf.teacher.endpoint import Endpoint
from srt_hf.teacher.pacing import backoff
from srt_hf.teacher.protocol import Backend, Identity, without_query
from srt_hf.teacher.roster import Roster

_IN_A_ROW = 8  # failures without a reply between them, after which a server is thought to answer nobody
# Seconds between looks at a server that is away: the first soon, because a single refused connection need not mean much.
_LOOKS = (0.2, 1.0, 2.0, 5.0, 10.0)
_ROSTER_LOOKS = 5.0  # seconds between looks at a file of servers

logger = logging.getLogger("srt_hf")


class Fleet:
    """All servers of a teacher. `identity` first; then `take` and `give_back` around each request.

    roster: where they are named, if that may change: it is looked at again every few seconds.
    """

    def __init__(self, backends: Sequence[Backend], roster: Roster | None = None) -> None:
        self._endpoints = [Endpoint(backend) for backend in backends]
        self._identity: Identity | None = None
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[Endpoint]]] = deque()
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._roster = roster
        self._follower: threading.Thread | None = None
        self.changed: str | None = None  # what a server that came back serves instead

    @property
    def backends(self) -> list[Backend]:
        return [endpoint.backend for endpoint in self._endpoints]

    @property
    def in_flight(self) -> int:
        """Slots in use."""
        return sum(endpoint.held.total() for endpoint in self._endpoints)

    @property
    def limit(self) -> int:
        """Requests at once that the servers which answer take now."""
        return sum(int(endpoint.limit.value) for endpoint in self._endpoints if not (endpoint.away or endpoint.gone))

    def identity(self) -> Identity:
        """Ask all servers who they are. The smallest of their windows is the fleet's.

        A server that does not answer is left out with a warning, unless none does. Raises TeacherUnreachable then, ConfigError
        where two serve different models, and what else asking raises.
        """
        asked = [endpoint for endpoint in self._endpoints if not endpoint.gone]
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(_ask, asked))
        known = [answer for answer in answers if isinstance(answer, Identity)]
        if not known:
            raise next(answer for answer in answers if isinstance(answer, TeacherUnreachable))
        names = sorted({str(identity) for identity in known})
        if len(names) > 1:
            raise ConfigError(f"The teacher's servers serve different models: {', '.join(names)}.", "Give servers of one model.")
        windows = [identity.max_total_tokens for identity in known if identity.max_total_tokens]
        inputs = [identity.max_input_tokens for identity in known if identity.max_input_tokens]
        window, most_input = min(windows, default=None), min(inputs, default=None)
        self._identity = replace(known[0], max_concurrent_requests=None, max_total_tokens=window, max_input_tokens=most_input)
        self.changed = None
        for endpoint, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Identity):
                endpoint.answers(answer)
            elif not endpoint.away:
                warnings.warn(f"{answer.message} It is left out until it answers.", stacklevel=3)
                self.lost(endpoint)
        self._follow_roster()
        return self._identity

    def _follow_roster(self) -> None:
        with self._lock:
            if self._roster is not None and self._follower is None:
                following = (weakref.ref(self), self._roster)
                self._follower = threading.Thread(target=_follow, args=following, name="srt_hf-roster", daemon=True)
                self._follower.start()

    def change(self, named: Mapping[str, Backend]) -> None:
        """From now on these servers, by their addresses: new ones of the same model join, and the others get no new requests.

        Nothing changes, with a warning, where no server would be left. Blocking: new ones are asked who they are.
        """
        known = {endpoint.backend: endpoint for endpoint in self._endpoints}
        new = [
            endpoint
            for address, backend in named.items()
            if backend not in known and (endpoint := self._admitted(address, backend))
        ]
        wanted = set(named.values())
        if not new and not wanted & known.keys():
            warnings.warn("No server of this model would be left: the run goes on with those that it has.", stacklevel=2)
            return
        with self._lock:
            before = sum(not endpoint.gone for endpoint in self._endpoints)
            for endpoint in self._endpoints:
                endpoint.gone = endpoint.backend not in wanted
            stay = sum(not endpoint.gone for endpoint in self._endpoints)
            self._endpoints = [*(one for one in self._endpoints if not one.gone or one.held), *new]
            self._hand_out()
        logger.warning("The teacher's servers are now %d: %d joined, %d left.", stay + len(new), len(new), max(0, before - stay))
        for endpoint in self._endpoints:
            if endpoint.away and not endpoint.gone:
                self.lost(endpoint)

    def _admitted(self, address: str, backend: Backend) -> Endpoint | None:
        """A new server; None, with a warning, where it may not join: it has another model or a smaller window."""
        endpoint, shown = Endpoint(backend), without_query(address)
        assert self._identity is not None
        try:
            found = backend.identity()
        except TeacherUnreachable as error:
            warnings.warn(f"{error.message} It is left out until it answers.", stacklevel=2)
            endpoint.away = True
            return endpoint
        except SrtError as error:
            warnings.warn(f"{shown} does not join: {error}", stacklevel=2)
            return None
        windows = [(getattr(found, name), getattr(self._identity, name)) for name in ("max_total_tokens", "max_input_tokens")]
        if str(found) != str(self._identity):
            warnings.warn(f"{shown} does not join: it serves {found}, and the run has {self._identity}.", stacklevel=2)
        elif any(theirs and ours and theirs < ours for theirs, ours in windows):
            warnings.warn(f"{shown} does not join: its window is smaller than that of the run's other servers.", stacklevel=2)
        else:
            endpoint.answers(found)
            return endpoint
        return None

    def take(self) -> asyncio.Future[Endpoint]:
        """A slot of the freest server for the running loop, as a future: done at once where there is one."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[Endpoint] = loop.create_future()
        with self._lock:
            endpoint = self._freest()
            if endpoint is None:
                self._reclaim()
                endpoint = self._freest()
            if endpoint is None:
                self._waiting.append((loop, turn))
            else:
                endpoint.held[loop] += 1
                turn.set_result(endpoint)
        return turn

    def give_back(self, endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        """Return a slot that `loop` held."""
        with self._lock:
            if endpoint.held[loop]:  # else it was reclaimed
                endpoint.held[loop] -= 1
            if not endpoint.held[loop]:
                del endpoint.held[loop]  # a key would keep the loop, and with it its connections
            if endpoint.gone and not endpoint.held:
                self._endpoints = [one for one in self._endpoints if one is not endpoint]
            self._hand_out()

    def leave(self, turn: asyncio.Future[Endpoint], loop: asyncio.AbstractEventLoop) -> None:
        """Give up a turn that `take` returned, whether it has come or not."""
        if not turn.cancel() and not turn.cancelled():
            self.give_back(turn.result(), loop)

    def succeeded(self, endpoint: Endpoint) -> None:
        """A reply came."""
        with self._lock:
            endpoint.last_reply = time.monotonic()
            endpoint.not_before, endpoint.failures, endpoint.rests = 0.0, 0, 0
            endpoint.limit.succeeded()
            self._hand_out()

    def refused(self, endpoint: Endpoint, sent_at: float, overloaded: bool, retry_after: float | None) -> None:
        """It did not answer a request sent at `sent_at` (time.monotonic): it is full (`overloaded`), or it failed.

        Where it asks for time, or answers nobody any more, it is left alone for a while: many rows wait, and each would try.
        """
        with self._lock:
            if overloaded:
                endpoint.limit.overloaded(sent_at, endpoint.held.total())
            endpoint.failures += 1
            # One bad reply in three is no reason to leave a server alone.
            full = overloaded and endpoint.limit.value == 1 and endpoint.last_reply < sent_at
            answers_nobody = full or (not overloaded and endpoint.failures >= _IN_A_ROW)
            now = time.monotonic()
            if now < endpoint.not_before or not (answers_nobody or retry_after):
                return
            endpoint.rests += 1
            if not overloaded:
                endpoint.limit.restart()
            pause = backoff(endpoint.rests, retry_after)
            endpoint.not_before = now + pause
        asyncio.get_running_loop().call_later(pause, self.reclaim)

    def reclaim(self) -> None:
        """Look again at what is free: time has passed, or a loop was left standing with its slots."""
        with self._lock:
            self._reclaim()
            self._hand_out()

    def lost(self, endpoint: Endpoint) -> None:
        """It cannot be reached: leave it out, and look after it from a thread until it is back."""
        with self._lock:
            endpoint.away = True
            if self._watcher is None:
                self._watcher = threading.Thread(target=_watch, args=(weakref.ref(self),), name="srt_hf-fleet", daemon=True)
                self._watcher.start()

    def look(self) -> bool:
        """Ask those that are away who they are, instead of sending them work. Returns whether all are back."""
        for endpoint in [endpoint for endpoint in self._endpoints if endpoint.away and not endpoint.gone]:
            try:
                found = endpoint.backend.identity()
            except SrtError:
                continue
            if self._identity is None or str(found) == str(self._identity):
                endpoint.answers(found)
                self.changed = None
            elif found.named:  # else it answers, but not yet who it is
                self.changed = str(found)
        with self._lock:
            self._hand_out()
            back = not any(endpoint.away and not endpoint.gone for endpoint in self._endpoints)
            if back:
                self._watcher = None
        return back

    def _freest(self) -> Endpoint | None:
        best = max(self._endpoints, key=lambda endpoint: endpoint.free)
        return best if best.free > 0 else None

    def _reclaim(self) -> None:
        """Free the slots of loops that stand still. A loop that only pauses may exceed the limit for a moment."""
        for endpoint in self._endpoints:
            for loop in [loop for loop in endpoint.held if not loop.is_running()]:
                del endpoint.held[loop]

    def _hand_out(self) -> None:
        while self._waiting and (endpoint := self._freest()) is not None:
            loop, turn = self._next()
            if turn.cancelled() or loop.is_closed():
                continue
            endpoint.held[loop] += 1
            loop.call_soon_threadsafe(self._give, turn, endpoint, loop)

    def _next(self) -> tuple[asyncio.AbstractEventLoop, asyncio.Future[Endpoint]]:
        """The first waiter whose loop runs, so that a loop left standing keeps nobody waiting; else the first of all."""
        place = next((place for place, (loop, _) in enumerate(self._waiting) if loop.is_running()), 0)
        found = self._waiting[place]
        del self._waiting[place]
        return found

    def _give(self, turn: asyncio.Future[Endpoint], endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        if turn.cancelled():
            self.give_back(endpoint, loop)
        else:
            turn.set_result(endpoint)


_fleets: weakref.WeakValueDictionary[tuple[object, ...], Fleet] = weakref.WeakValueDictionary()


def shared_fleet(make: Callable[[], Fleet], *of: object) -> Fleet:
    """The fleet of this description in this process: one budget for all teachers at the same servers."""
    key = (os.getpid(), *of)  # not across a fork, which copies waiters that will never run
    fleet = _fleets.get(key)
    if fleet is None:
        fleet = _fleets[key] = make()
    return fleet


def _ask(endpoint: Endpoint) -> Identity | TeacherError:
    try:
        return endpoint.backend.identity()
    except TeacherUnreachable as error:
        return error


def _watch(fleet: weakref.ref[Fleet]) -> None:
    """Look after a fleet until every server is back, or nobody has the fleet any more."""
    looks = 0
    while True:
        time.sleep(_LOOKS[min(looks, len(_LOOKS) - 1)])
        looks += 1
        alive = fleet()
        if alive is None or alive.look():
            return
        del alive


def _follow(fleet: weakref.ref[Fleet], roster: Roster) -> None:
    """Bring what a file of servers says to a fleet, until nobody has the fleet any more."""
    while True:
        time.sleep(_ROSTER_LOOKS)
        alive = fleet()
        if alive is None:
            return
        named = roster.news()
        if named is not None:
            alive.change(named)
        del alive
