"""One request through all weather, until a reply, its final failure or an outage. Holds no journal and knows no method."""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from srt_hf.errors import JournalError, RequestFailed, SrtError, TeacherError, TeacherUnreachable
from srt_hf.teacher.endpoint import Endpoint
from srt_hf.teacher.fleet import Fleet
from srt_hf.teacher.pacing import backoff
from srt_hf.teacher.protocol import Identity, Outcome, Request, Stumble, Weather

_STUMBLES = 3  # tries of one request that the server itself fails before the row gets a code
_LOOK = 5.0  # seconds between looks at the outage budget while waiting for a slot
_LAST_REPLIES = 120.0  # seconds that a run which ends still waits for the replies under way, which are paid for

logger = logging.getLogger("srt_hf")

Save = Callable[[Outcome], Awaitable[None]]


@dataclass
class _Loop:
    """What one event loop has under way. stop: resolves to why nothing more is sent. sends: calls of `send` that have not ended.
    end: the wait for the tries under way."""

    stop: asyncio.Future[SrtError]
    sends: int = 0
    tries: set[asyncio.Task[Outcome]] = field(default_factory=set)
    end: asyncio.Task[None] | None = None


class Sender:
    """Sends requests to a fleet and counts what it does.

    outage: seconds without any reply after which the run stops. Where a run ends, by an error or by Ctrl-C, nothing more is sent
    and the replies under way are still waited for and saved.
    """

    def __init__(self, fleet: Fleet, shown: str, outage: float) -> None:
        self.counts = dict.fromkeys(("requests", "retries", "prompt_tokens", "completion_tokens"), 0)
        self._fleet = fleet
        self._shown = shown
        self._outage = outage
        self._last_reply = 0.0
        self._warned_rejection = False
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()

    async def send(self, request: Request, identity: Identity, save: Save | None) -> Outcome:
        """The reply or the final failure, after `save` has it. Raises another TeacherError where the teacher fails, JournalError
        where a reply cannot be saved: either ends the run."""
        loop = asyncio.get_running_loop()
        state = self._loops.get(loop)
        if state is None or (state.stop.done() and not state.sends):
            self._forget_ended_loops()
            state = self._loops[loop] = _Loop(loop.create_future())
        state.sends += 1
        try:
            return await self._through_weather(request, identity, save, state)
        except (TeacherError, JournalError) as error:
            if not state.stop.done():
                state.stop.set_result(error)
            await self.last_replies()
            raise
        except asyncio.CancelledError:
            await self.last_replies()
            raise
        finally:
            state.sends -= 1

    def _forget_ended_loops(self) -> None:
        # A state's futures refer to their loop, so that a weak key alone frees nothing.
        for loop in [loop for loop, state in self._loops.items() if not loop.is_running() and not state.sends]:
            del self._loops[loop]

    async def last_replies(self) -> None:
        """Wait for what the running loop has sent: each reply is saved when it comes. For whatever ends a run, since the loop may
        never run again after it."""
        state = self._loops.get(asyncio.get_running_loop())
        if state is None:
            return
        if state.end is None or state.end.done():
            state.end = asyncio.ensure_future(_wait_for(state.tries))
        await asyncio.shield(state.end)

    async def _through_weather(self, request: Request, identity: Identity, save: Save | None, state: _Loop) -> Outcome:
        began = time.monotonic()
        stumbles = tries = 0
        while True:
            endpoint = await self._slot(began, state)
            sent_at = time.monotonic()
            try:
                return await self._try(endpoint, request, identity, save, state)
            except (Weather, Stumble) as error:
                problem = error
            if isinstance(problem, Stumble):
                stumbles += 1
                if stumbles >= _STUMBLES and await self._works(endpoint, sent_at, identity):
                    failure = RequestFailed(f"{problem.args[0]}, {stumbles} times", problem.code)
                    if save is not None:
                        await save(failure)
                    return failure
            self._check_outage(began, str(problem.args[0]))
            # What found nobody was not sent.
            self.counts["retries"] += isinstance(problem, Stumble) or problem.overloaded
            tries += 1
            await asyncio.wait([state.stop], timeout=backoff(tries, getattr(problem, "retry_after", None)))

    def _note(self, endpoint: Endpoint, problem: Weather | Stumble, sent_at: float) -> None:
        """What a try without an answer says about its server."""
        if isinstance(problem, Weather) and not problem.overloaded:
            self.counts["requests"] -= 1  # it found nobody
            self._fleet.lost(endpoint)
        else:
            overloaded = isinstance(problem, Weather)
            self._fleet.refused(endpoint, sent_at, overloaded, getattr(problem, "retry_after", None))

    async def _slot(self, began: float, state: _Loop) -> Endpoint:
        """A slot, unless sending has stopped or the outage has lasted too long."""
        # Kept, here as in `_ask`: a coroutine that is thrown away cleans up when no loop is running any more.
        loop, turn = asyncio.get_running_loop(), self._fleet.take()
        try:
            while True:
                if not turn.done():
                    both: list[asyncio.Future[Any]] = [turn, state.stop]
                    await asyncio.wait(both, timeout=min(_LOOK, self._outage), return_when=asyncio.FIRST_COMPLETED)
                if state.stop.done():
                    raise state.stop.result()
                if turn.done():
                    return turn.result()
                self._fleet.reclaim()
                self._check_outage(began, "no server takes a request")
        except BaseException:
            self._fleet.leave(turn, loop)
            raise

    async def _try(self, endpoint: Endpoint, request: Request, identity: Identity, save: Save | None, state: _Loop) -> Outcome:
        """Send once; where replies are saved in a task of its own, so that whoever stops waiting, a reply that comes is saved."""
        if save is None:
            return await self._ask(endpoint, request, identity, save)
        task = asyncio.ensure_future(self._ask(endpoint, request, identity, save))
        state.tries.add(task)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # a failure that nobody waits for is no news
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                state.tries.discard(task)
            else:
                task.add_done_callback(state.tries.discard)

    async def _ask(self, endpoint: Endpoint, request: Request, identity: Identity, save: Save | None) -> Outcome:
        self.counts["requests"] += 1
        sent_at, loop = time.monotonic(), asyncio.get_running_loop()
        outcome: Outcome
        try:
            outcome = await endpoint.backend.generate(request, identity)
        except RequestFailed as failure:
            self._warn_of_rejection(failure)
            outcome = failure
        except (Weather, Stumble) as problem:
            self._note(endpoint, problem, sent_at)  # before others get the slot
            raise
        else:
            self._fleet.succeeded(endpoint)
            self._last_reply = time.monotonic()
            self.counts["prompt_tokens"] += outcome.prompt_tokens or 0
            self.counts["completion_tokens"] += outcome.completion_tokens or 0
        finally:  # the server is free again, while the reply is being saved
            self._fleet.give_back(endpoint, loop)
        if save is not None:
            await save(outcome)
        return outcome

    def _check_outage(self, began: float, problem: str) -> None:
        if self._fleet.changed and not self._fleet.limit:
            raise TeacherError(
                f"The teacher at {self._shown} came back with another model: {self._fleet.changed}.",
                "Start the one that the run began with, or begin again with the other.",
            )
        if time.monotonic() - max(began, self._last_reply) > self._outage:
            raise TeacherUnreachable(f"No reply from {self._shown} for {self._outage:.0f} s ({problem}).")

    def _warn_of_rejection(self, failure: RequestFailed) -> None:
        """Show the server's words once: a wrong parameter is rejected in every row."""
        if failure.code == "rejected" and not self._warned_rejection:
            self._warned_rejection = True
            warnings.warn(f"{failure} Further rejections are counted, not shown.", stacklevel=2)

    async def _works(self, endpoint: Endpoint, since: float, identity: Identity) -> bool:
        """Whether this server answers others, so that what keeps failing is this one request and not an outage.

        Where no reply of its came to anybody in the meantime, one word is asked for.
        """
        if endpoint.last_reply > since:
            return True
        self.counts["requests"] += 1
        try:
            await endpoint.backend.generate(Request([{"role": "user", "content": "Say yes."}], 1, 0.0), identity)
        except (Weather, Stumble) as problem:
            self._note(endpoint, problem, time.monotonic())
            return False
        except TeacherError:
            return False
        return True


async def _wait_for(tries: set[asyncio.Task[Outcome]]) -> None:
    if tries:
        logger.warning("Waiting for the last %d replies, which are paid for (Ctrl-C leaves them).", len(tries))
        _, left = await asyncio.wait(set(tries), timeout=_LAST_REPLIES)
        if left:
            logger.warning("%d replies did not come in %.0f s and are not waited for any longer.", len(left), _LAST_REPLIES)
