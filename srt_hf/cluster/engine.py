"""`Cluster`: a run's reflection and scoring as streams of Ray Data, begun again where a node is lost."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf.cluster.actors import Score, version
from srt_hf.cluster.blocks import Blocks
from srt_hf.cluster.connection import HeadWatch, alive, connect, last_line, places, room
from srt_hf.cluster.environment import for_other_nodes, of_driver
from srt_hf.cluster.students import here, remote, students_of
from srt_hf.cluster.teaching import Ask, Teaching, Told
from srt_hf.errors import ClusterError
from srt_hf.identity import brief
from srt_hf.live import Live, Progress, progress
from srt_hf.reflection import Reflector
from srt_hf.report import Prices
from srt_hf.scoring import BATCH, Scoring

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("srt_hf")

_UNDER_WAY = 16  # blocks that reflection has in hand at most: 2,048 rows, twice what `Dataset.map` has under way
_TRIES = 3  # streams in a row that end without a single block, after which it is the cluster
_LAST_REPLIES = 150.0  # seconds for the replies under way where a run ends; the sender itself gives up before
_LOOK = 1.0  # seconds between looks whether the nodes with students live
_ANSWERS = 30.0  # seconds that the teacher's actor has to tell how it is doing
_GOES_ON = "The same command goes on from what is saved."
# mode -> its streams, in order: stage, the stage that it goes on from, name of the time in the report.
_STREAMS: dict[str, list[tuple[str, str | None, str]]] = {
    "exhaustive": [("all", None, "reflect and score")],
    "selective": [
        ("instruction", None, "reflect and score instructions"),
        ("response", "instruction", "reflect and score responses"),
    ],
}


class NodeLost(Exception):
    """A node that had students is gone: with it, maybe, the room for as many."""


class Cluster(AbstractContextManager["Cluster"]):
    """A run's reflection and scoring on a Ray cluster: the counterpart of the local engine, block for block the same numbers.

    address: as for `connect`. students: how many actors score, None for as many as the cluster has room for: one a GPU or, on a
    cluster without GPUs, one a node. `scoring` is the given one with students that live on the cluster. Raises ConfigError and
    ClusterError.
    """

    def __init__(
        self, reflector: Reflector, scoring: Scoring, prices: Prices | None, address: str | None, students: int | None
    ) -> None:
        self._reflector, self._prices = reflector, prices
        self._ours = connect(address)
        try:
            self._places = places(scoring.student.device, students)
        except BaseException:
            self._leave()
            raise
        self.scoring = remote(scoring, self._places.resources)
        self._watch = HeadWatch()
        self._watch.start()
        self._teaching: Any = None
        self._told: dict[int, Told] = {}
        self._warned: set[str] = set()

    def __exit__(self, *_: object) -> None:
        self._watch.stop()
        for student in students_of(self.scoring):
            student.release()
        self._leave()

    def _leave(self) -> None:
        import ray

        if self._ours:
            ray.shutdown()

    @property
    def counts(self) -> dict[str, int]:
        """What the run's teacher did, as `Teacher.counts`."""
        return self._progress().counts

    def run(self, rows: Dataset, mode: str, clock: Callable[[str], AbstractContextManager[None]]) -> Dataset:
        """Prepared rows with candidates, scores and, in selective mode, the instructions' winners."""
        blocks = Blocks(_folder(rows, self._reflector, here(self.scoring), mode), BATCH)
        blocks.folder.mkdir(parents=True, exist_ok=True)
        blocks.keep(rows)
        self._teaching = _start_teaching(self._reflector, blocks)
        try:
            for stage, before, name in _STREAMS[mode]:
                with clock(name), Live(self._progress, len(rows), self._prices):
                    self._through(blocks, len(rows), stage, before)
        finally:
            self._finish()
        return blocks.join(rows, stage)

    def _through(self, blocks: Blocks, rows: int, stage: str, before: str | None) -> None:
        """Every block through a stage; what a lost node had in hand once more."""
        from datasets import are_progress_bars_disabled
        from ray.exceptions import RayError, RayTaskError
        from tqdm import tqdm

        missing, in_vain = blocks.missing(stage, rows), 0
        where = "GPUs" if "num_gpus" in self._places.resources else "CPUs"
        what = f"Teacher reflects, students on {where} ({self._places.students}) score"
        what += "" if stage == "all" else f" {stage}s"
        with tqdm(total=rows, desc=what, unit=" examples", disable=are_progress_bars_disabled()) as bar:
            bar.update(rows - sum(blocks.rows_in(n, rows) for n in missing))
            while missing:
                try:
                    for n, content in self._stream(missing, stage, before):
                        blocks.write(stage, n, content)
                        bar.update(blocks.rows_in(n, rows))
                except RayTaskError as error:  # a fault in what runs there, which another try would meet again
                    raise ClusterError(f"A task on the cluster failed: {last_line(error)}") from error
                except (RayError, NodeLost) as error:
                    left = blocks.missing(stage, rows)
                    in_vain = in_vain + 1 if left == missing else 0
                    if in_vain == _TRIES:
                        raise ClusterError(f"The Ray cluster fails again and again: {brief(error)}", _GOES_ON) from error
                    logger.warning("%s The %d blocks left go on without it.", brief(error), len(left))
                missing = blocks.missing(stage, rows)

    def _stream(self, missing: list[int], stage: str, before: str | None) -> Iterator[tuple[int, bytes]]:
        """The blocks as they come from the students. Raises the errors of ours that came up on the cluster."""
        import pyarrow as pa
        import ray.data

        nodes = room(self._places.resources)
        students = min(self._places.students, sum(nodes.values()), len(missing))
        if not students:
            raise ClusterError("No node is left in the Ray cluster that has room for a student.", _GOES_ON)
        dataset = ray.data.from_arrow([pa.table({"block": [n]}) for n in missing])
        dataset = dataset.map(
            Ask,
            fn_constructor_args=(self._teaching, stage, before),
            compute=ray.data.ActorPoolStrategy(
                size=1, max_concurrent_calls_per_actor=_UNDER_WAY, enable_true_multi_threading=True
            ),
            num_cpus=0,
            label_selector=_this_node(),
        )
        dataset = dataset.map(
            Score,
            fn_constructor_args=(
                pickle.dumps(here(self.scoring)),
                [student.scored_by() for student in students_of(self.scoring)],
                stage,
                for_other_nodes(),
                version(),
            ),
            compute=ray.data.ActorPoolStrategy(size=students),
            **self._places.resources,
        )
        context = dataset.context
        context.custom_execution_callback_classes = [_watching(frozenset(nodes))]
        context.enable_progress_bars = context.print_on_execution_start = False  # the run has a display of its own
        for row in dataset.iter_rows():
            self.scoring.student.count_passes += row["passes"]
            self._progress()
            self._warn(json.loads(row["warnings"]))
            self._warn_of_teacher()
            if row["error"]:
                raise pickle.loads(row["error"])
            yield row["block"], row["content"]

    def _progress(self) -> Progress:
        """What all processes of the teacher's actor did, as far as they told, after what this process did."""
        import ray
        from ray.exceptions import RayError

        if self._teaching is not None:
            try:
                told = ray.get(self._teaching.told.remote(), timeout=_ANSWERS)
                self._told[told.process] = told
            except RayError:  # it is being started, again maybe
                pass
        first = progress(self._reflector)
        found = [told.progress for told in self._told.values()]
        counts = {name: count + sum(one.counts[name] for one in found) for name, count in first.counts.items()}
        outcomes = sum((one.outcomes for one in found), Counter())
        return Progress(sum(one.rows_done for one in found), outcomes, counts, found[-1].load if found else first.load)

    def _warn(self, texts: Iterable[str]) -> None:
        """Say here what was warned of there, once where several say the same with other numbers."""
        for text in texts:
            kind = re.sub(r"[\d.,]+", "#", text)
            if kind not in self._warned:
                self._warned.add(kind)
                warnings.warn(text, stacklevel=2)

    def _warn_of_teacher(self) -> None:
        self._warn(text for told in list(self._told.values()) for text in told.warnings)

    def _finish(self) -> None:
        """Let the teacher's actor go, when the replies that are paid for are saved."""
        import ray
        from ray.exceptions import RayError

        in_flight, _ = self._progress().load
        self._warn_of_teacher()
        if in_flight:
            logger.warning("Waiting for the last replies, which are paid for (Ctrl-C leaves them).")
        try:
            ray.get(self._teaching.finish.remote(), timeout=_LAST_REPLIES)
            self._progress()
        except RayError as error:
            logger.warning("The last replies are not waited for any longer: %s", brief(error))
        finally:
            ray.kill(self._teaching)
            self._teaching = None


def _folder(rows: Dataset, *of: Any) -> Path:
    """The run's folder: the same for the same command, and another where anything is that makes a difference."""
    from datasets import config
    from datasets.fingerprint import Hasher

    return Path(config.HF_DATASETS_CACHE) / "srt_hf-ray" / Hasher.hash((rows._fingerprint, BATCH, *of))


def _start_teaching(reflector: Reflector, blocks: Blocks) -> Any:
    import ray
    from ray import cloudpickle

    return (
        ray.remote(Teaching)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, label_selector=_this_node())
        .remote(cloudpickle.dumps(reflector), cloudpickle.dumps(blocks), os.getcwd(), of_driver())
    )


def _this_node() -> dict[str, str]:
    """The label of the driver's node."""
    import ray

    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def _watching(nodes: frozenset[str]) -> type:
    """What has Ray Data's stream end where one of these nodes is gone: Ray would wait for another node in its place."""
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Watch(ExecutionCallback):
        looked = 0.0

        def on_execution_step(self, executor: Any) -> None:
            if time.monotonic() - self.looked > _LOOK:
                self.looked = time.monotonic()
                lost = len(nodes - alive().keys())
                if lost:
                    raise NodeLost(f"The Ray cluster lost {lost} of {len(nodes)} nodes with students.")

    return Watch
