"""The students' processes on the cluster: the pool that scores blocks, and one that answers the driver's questions.

Nothing is imported here that reads the environment before it is the driver's, nor anything that a node may lack.
"""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import socket
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf.cluster.environment import take_over
from srt_hf.errors import ClusterError, SrtError

if TYPE_CHECKING:
    from srt_hf.scoring import Scoring
    from srt_hf.student import Student


class Score:
    """For `ray.data.Dataset.map` in a pool of actors: a reflected block -> the columns that this stage adds to it.

    scoring: pickled. by: what the driver knows of its students (Student.scored_by), which must be the same here. environment,
    driver: the driver's, and its version. passes: what the student ran for a block. An error of ours is a value of the row, which
    the driver raises: the pool lives on.
    """

    def __init__(self, scoring: bytes, by: list[dict[str, Any]], stage: str, environment: dict[str, str], driver: str) -> None:
        take_over(environment)
        self._pickled, self._by, self._stage, self._driver = scoring, by, stage, driver
        self._scoring: Scoring | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        result = {"block": row["block"], "content": b"", "passes": 0, "warnings": "[]", "error": row["error"]}
        if row["error"]:
            return result
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                result["content"], result["passes"] = self._score(row["content"])
            except SrtError as error:
                result["error"] = pickle.dumps(error)
        return {**result, "warnings": json.dumps([str(one.message) for one in told if issubclass(one.category, UserWarning)])}

    def _score(self, content: bytes) -> tuple[bytes, int]:
        from srt_hf.cluster.blocks import pack, unpack
        from srt_hf.schema import SCORED_COLUMNS

        scoring = self._ready()
        before = scoring.student.count_passes
        rows = unpack(content)
        columns = scoring.scorer(self._stage)({name: [row[name] for row in rows] for name in rows[0]})
        rows = [{**row, **{name: columns[name][n] for name in SCORED_COLUMNS}} for n, row in enumerate(rows)]
        added = ["candidates", *SCORED_COLUMNS]
        if self._stage == "instruction":
            rows = [{**row, **scoring.selector.instruction_winner(row)} for row in rows]
        if self._stage != "all":
            added.append("choice")
        return pack(rows, added), scoring.student.count_passes - before

    def _ready(self) -> Scoring:
        """The scoring, when its students are known to be the driver's. Raises ClusterError where they are not."""
        if self._scoring is None:
            check_version(self._driver)
            scoring: Scoring = pickle.loads(self._pickled)
            for student, by in zip(filter(None, (scoring.student, scoring.proxy)), self._by, strict=True):
                check_folder(student.model)
                if (found := student.scored_by()) != by:
                    raise ClusterError(
                        f"The student {student.model} is another one on {socket.gethostname()}: {_differing(found, by)}.",
                        "Put the same files and libraries on every node, or name the student by its Hub id.",
                    )
            self._scoring = scoring
        return self._scoring


def _differing(here: dict[str, Any], by: dict[str, Any]) -> str:
    return ", ".join(f"{name} {here[name]} and not {value}" for name, value in by.items() if here[name] != value)


class Holder:
    """An actor that holds one student, for the few things that the driver asks it."""

    def __init__(self, configuration: dict[str, Any], environment: dict[str, str]) -> None:
        take_over(environment)
        self._configuration = configuration
        self._student: Student | None = None

    def load(self, driver: str) -> tuple[Student, dict[str, Any]]:
        """The student with everything resolved as it is here (dtype, commit), and its `scored_by`."""
        check_version(driver)
        check_folder(self._configuration["model"])
        return self._own(), self._own().scored_by()

    def nlls(self, *arguments: Any) -> list[dict[str, Any]]:
        return self._own().nlls(*arguments)

    def in_float32(self) -> Student | str:
        return self._own().in_float32()

    def _own(self) -> Student:
        if self._student is None:
            from srt_hf.student import Student

            self._student = Student(**self._configuration)
        return self._student


def version() -> str:
    """Of this package, on this machine."""
    return importlib.metadata.version("srt_hf")


def check_version(driver: str) -> None:
    """Raises ClusterError where this machine has another version of this package than the driver."""
    if driver != version():
        raise ClusterError(
            f"{socket.gethostname()} in the cluster has srt_hf {version()}, and the driver {driver}.", "Install one everywhere."
        )


def check_folder(model: str) -> None:
    """Raises ClusterError where a student's folder is not on this machine: its path would pass for a name on the Hub."""
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise ClusterError(
            f"{model} is no folder on {socket.gethostname()} in the cluster.",
            "Put the student there too, or name it by its Hub id.",
        )
