"""The students' side of a run on a cluster: the pool that scores blocks, and a student for a driver that has none of its own."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from srt_hf.cluster.blocks import pack, unpack
from srt_hf.errors import ClusterError, SrtError
from srt_hf.identity import brief
from srt_hf.schema import NLLS, SCORED_COLUMNS
from srt_hf.scoring import Scoring
from srt_hf.student import Student


class Score:
    """For `ray.data.Dataset.map` in a pool of actors: a reflected block -> the columns that this stage adds to it.

    passes: what the student ran for it. An error of ours is a value of the row, which the driver raises: the pool lives on.
    """

    def __init__(self, scoring: Scoring, stage: str, version: str) -> None:
        self._scoring, self._stage, self._version = scoring, stage, version

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        result = {"block": row["block"], "content": b"", "passes": 0, "warnings": "[]", "error": row["error"]}
        if row["error"]:
            return result
        before = self._scoring.student.count_passes
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                check_version(self._version)
                result["content"] = self._score(row["content"])
            except SrtError as error:
                result["error"] = pickle.dumps(error)
        passes = self._scoring.student.count_passes - before
        return {**result, "passes": passes, "warnings": json.dumps([str(one.message) for one in told])}

    def _score(self, content: bytes) -> bytes:
        rows = unpack(content)
        columns = self._scoring.scorer(self._stage)({name: [row[name] for row in rows] for name in rows[0]})
        rows = [{**row, **{name: columns[name][n] for name in SCORED_COLUMNS}} for n, row in enumerate(rows)]
        added = ["candidates", *SCORED_COLUMNS]
        if self._stage == "all":
            return pack(rows, added)
        if self._stage == "instruction":
            rows = [{**row, **self._scoring.selector.instruction_winner(row)} for row in rows]
        return pack(rows, [*added, "choice"])


def version() -> str:
    """Of this package, on this machine."""
    return importlib.metadata.version("srt_hf")


def check_version(driver: str) -> None:
    """Raises ClusterError where this machine has another version of this package than the driver."""
    if driver != version():
        raise ClusterError(f"A node of the cluster has srt_hf {version()}, and the driver {driver}.", "Install one everywhere.")


class Holder:
    """An actor that holds one student, for the few things that the driver asks it."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self._student = Student(**configuration)

    def load(self, driver: str) -> tuple[Student, dict[str, Any]]:
        """The student with everything resolved as it is here (dtype, commit), and its `scored_by`."""
        check_version(driver)
        return self._student, self._student.scored_by()

    def nlls(self, *arguments: Any) -> list[dict[str, Any]]:
        return self._student.nlls(*arguments)

    def in_float32(self) -> Student | str:
        return self._student.in_float32()


class RemoteStudent(Student):
    """A student for the driver, which need not have its weights, nor a GPU: what it is asked, an actor of the cluster answers.

    resources: of that actor. `here` is the plain student that the pool's actors load.
    """

    def __init__(self, student: Student, resources: dict[str, Any]) -> None:
        names = inspect.signature(Student).parameters
        self._configuration = {name: getattr(student, name) for name in names}
        if Path(student.model).is_dir():
            self._configuration["model"] = str(Path(student.model).resolve())
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

        if self._holder is None:
            self._holder = ray.remote(Holder).options(**self._resources).remote(self._configuration)
        try:
            return ray.get(getattr(self._holder, name).remote(*arguments))
        except RayTaskError as failure:
            raise (failure.cause if isinstance(failure.cause, SrtError) else failure) from None
        except RayActorError as error:
            raise ClusterError(f"The process of the student {self.model} on the cluster died: {brief(error)}") from error


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
