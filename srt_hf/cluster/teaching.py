"""The teacher's side of a run on a cluster: one actor on the driver's machine, which holds the one Reflector of the run.

Reflection waits for a server and is no work for several machines. One process keeps one journal, so that nothing is bought twice
and nothing has to be merged, and one limit a server, so that a server is not flooded. Only students are spread over the cluster.

Nothing is imported here that reads the environment, before it is the driver's.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from srt_hf.cluster.environment import take_over
from srt_hf.errors import ClusterError

if TYPE_CHECKING:
    from srt_hf.cluster.blocks import Blocks
    from srt_hf.live import Progress

_LOOK = 0.02  # seconds between looks whether the servers have a slot that no row waits for
_STEPS = {"all": "reflect", "instruction": "reflect_instruction", "response": "reflect_response"}


class Told(NamedTuple):
    """What the actor says of itself. process: another one where the actor was started again, which counts from 0."""

    process: int
    progress: Progress
    warnings: list[str]


class Teaching:
    """The actor. reflector: pickled. folder, environment: the driver's, for relative paths, caches and logins.

    Started again after it was killed, it goes on from the journal.
    """

    def __init__(self, reflector: bytes, blocks: bytes, folder: str, environment: dict[str, str]) -> None:
        os.chdir(folder)
        take_over(environment)
        self._reflector: Any = pickle.loads(reflector)
        self._blocks: Blocks = pickle.loads(blocks)
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Future[Any]] = set()
        self._ended = False
        self._warnings: list[str] = []
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: self._warnings.append(str(message))

    async def reflect(self, stage: str, n: int, before: str | None) -> bytes:
        """Block n, as an earlier stage left it, with its candidates for this stage. Raises what the reflector raises."""
        from srt_hf.cluster.blocks import pack
        from srt_hf.schema import SCORED_COLUMNS, TRIPLE

        rows = self._blocks.read(n, before)
        async with self._turn:  # blocks begin one after the other, so that the first is ready while others wait for a slot
            await self._reflector.teacher.who()
            while self._running and not self._has_room():
                await asyncio.sleep(_LOOK)
            if self._ended:
                raise ClusterError("The run has ended.")
            work = asyncio.gather(*(getattr(self._reflector, _STEPS[stage])(row) for row in rows))
            self._running.add(work)
            await asyncio.sleep(_LOOK)  # in which it takes its slots
        try:
            found = await work
        finally:
            self._running.discard(work)
        known = [name for name in (*SCORED_COLUMNS, "choice") if name in rows[0]]
        return pack([{**row, **columns} for row, columns in zip(rows, found, strict=True)], ["id", *TRIPLE, "candidates", *known])

    def _has_room(self) -> bool:
        in_flight, limit = self._reflector.teacher.load
        return in_flight < limit

    async def told(self) -> Told:
        """Progress and warnings so far."""
        from srt_hf.live import progress

        return Told(os.getpid(), progress(self._reflector), self._warnings)

    async def finish(self) -> None:
        """Ask nothing more, and return when the replies under way, which are paid for, are saved."""
        self._ended = True
        for work in self._running:
            work.cancel()
        if self._running:
            await asyncio.wait(self._running)


class Ask:
    """For `ray.data.Dataset.map` in a pool of one actor with several calls at once: a block's number -> the reflected block."""

    def __init__(self, teaching: Any, stage: str, before: str | None) -> None:
        self._teaching, self._stage, self._before = teaching, stage, before

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray
        from ray.exceptions import RayTaskError

        from srt_hf.errors import SrtError

        try:
            content, error = ray.get(self._teaching.reflect.remote(self._stage, row["block"], self._before)), b""
        except RayTaskError as failure:
            if not isinstance(failure.cause, SrtError):
                raise
            content, error = b"", pickle.dumps(failure.cause)
        return {"block": row["block"], "content": content, "error": error}
