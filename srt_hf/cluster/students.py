"""A student for a driver that has none of its own: it lives on the cluster."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from srt_hf.cluster.actors import Holder, version
from srt_hf.cluster.connection import last_line
from srt_hf.cluster.environment import for_other_nodes
from srt_hf.errors import ClusterError, SrtError
from srt_hf.schema import NLLS
from srt_hf.scoring import Scoring
from srt_hf.student import Student

logger = logging.getLogger("srt_hf")

_PATIENCE = 10.0  # seconds for an actor's answer, after which something else may have its place


class RemoteStudent(Student):
    """A student for the driver, which need not have its weights, nor a GPU: what it is asked, an actor of the cluster answers.

    resources: of that actor. `here` is the plain student that the pool's actors load.
    """

    def __init__(self, student: Student, resources: dict[str, Any]) -> None:
        names = inspect.signature(Student).parameters
        self._configuration = {name: getattr(student, name) for name in names}
        if Path(student.model).is_dir():
            self._configuration["model"] = str(Path(student.model).resolve())
        if student.device is not None and student.device.startswith("cuda"):
            self._configuration["device"] = "cuda"  # Ray shows each actor its own GPU, and no other
        super().__init__(**self._configuration)
        self._resources = resources
        self._by: dict[str, Any] = {}
        self._holder: Any = None
        self.here = student

    def load(self, rank: int | None = None) -> Any:
        """Load it where it will score, so that whatever is wrong with it shows at once."""
        if not self._by:
            self.here, self._by = self._ask("load", version())
            self.release()

    def scored_by(self) -> dict[str, Any]:
        self.load()
        return self._by

    def identity(self) -> str:
        return self.here.identity()

    def __getstate__(self) -> dict[str, Any]:
        return self.here.__getstate__()

    def nlls(
        self,
        pairs: Sequence[tuple[str | None, str | None, str | None]],
        which: Sequence[str] | Sequence[Sequence[str]] = NLLS,
        rank: int | None = None,
    ) -> list[dict[str, Any]]:
        return self._ask("nlls", pairs, which)

    def in_float32(self) -> Student | str:
        found = self._ask("in_float32")
        self.release()
        return found if isinstance(found, str) else RemoteStudent(found, self._resources)

    def release(self) -> None:
        """Give the actor's GPU back."""
        import ray

        if self._holder is not None:
            ray.kill(self._holder)
            self._holder = None

    def _ask(self, name: str, *arguments: Any) -> Any:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        started = self._holder is None
        if started:
            self._holder = ray.remote(Holder).options(**self._resources).remote(self._configuration, for_other_nodes())
        answer = getattr(self._holder, name).remote(*arguments)
        if started and not ray.wait([answer], timeout=_PATIENCE)[0]:
            logger.warning("Waiting for the student %s: it loads, or others have its place in the cluster.", self.model)
        try:
            return ray.get(answer)
        except RayTaskError as failure:
            raise (failure.cause if isinstance(failure.cause, SrtError) else failure) from None
        except RayActorError as error:
            raise ClusterError(
                f"The process of the student {self.model} on the cluster died: {last_line(error)}",
                "Every node needs the same srt_hf and what it stands on.",
            ) from error


def remote(scoring: Scoring, resources: dict[str, Any]) -> Scoring:
    """The same scoring by students that live on the cluster."""
    proxy = RemoteStudent(scoring.proxy, resources) if scoring.proxy else None
    return replace(scoring, student=RemoteStudent(scoring.student, resources), proxy=proxy)


def students_of(scoring: Scoring) -> list[RemoteStudent]:
    """Its students, as they are here."""
    return [student for student in (scoring.student, scoring.proxy) if isinstance(student, RemoteStudent)]


def here(scoring: Scoring) -> Scoring:
    """The same scoring for an actor that loads its students itself."""
    by = {id(student): student.here for student in students_of(scoring)}
    return replace(scoring, student=by[id(scoring.student)], proxy=by.get(id(scoring.proxy)))
