"""The whole method in reading order: reflect, score, select."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf.checks import flag
from srt_hf.errors import ConfigError, DataError
from srt_hf.live import Live
from srt_hf.prompts import Prompts
from srt_hf.reflection import Reflector
from srt_hf.report import NOT_ONE_TURN, Prices, Report, measure
from srt_hf.result import Recycled
from srt_hf.schema import CANDIDATES_COLUMNS, SCORED_COLUMNS
from srt_hf.scoring import Scoring, check_proxy, check_rounding
from srt_hf.selection import Selector, select
from srt_hf.sources import prepare
from srt_hf.student import Student
from srt_hf.teacher import Teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from datasets import Dataset

    from srt_hf.cluster.engine import Cluster

MODES = ("selective", "exhaustive")
# Who runs the stages.
ENGINES = {"local": "this process, stage after stage", "ray": "a Ray cluster, students beside the teacher"}


def recycle(
    dataset: Dataset,
    *,
    teacher: Teacher | str,
    student: Student | str,
    mode: str = "selective",
    selector: Selector = select,
    prompts: Prompts | str | Path | None = None,
    columns: dict[str, str] | None = None,
    id_column: str | None = None,
    proxy: Student | str | None = None,
    margin: float = 0.05,
    structured: bool = False,
    retry: Collection[str] = (),
    prices: Prices | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    students: int | None = None,
) -> Recycled:
    """Recycle an instruction dataset for a student: the whole of Selective Reflection-Tuning.

    mode: "selective" (the paper's order: reflect the instruction, the student picks, reflect the winner's response, the student
        picks; two calls a row) or "exhaustive" (three calls; the candidates then serve any student). With a deterministic
        teacher both choose the same pairs.
    columns: the dataset's own names for instruction, input, output. id_column: its column of distinct ids.
    proxy: a smaller model that scores first (Superfiltering, arXiv 2402.00530). Only rows whose decision it leaves within
        `margin` (in units of ifd and r_ifd) go to the student; `scored_by` says whose scores a row has. The report tells how
        many passes that saved and, from a sample that the student scores too, how many decisions it changed.
    selector: the rule, `srt_hf.select` or a `Selector`. prompts, structured, retry: as for `Reflector`.
    prices: of the teacher's tokens, for the report and for the line that is shown while the teacher works.
    engine: "local", or "ray": students score on a Ray cluster, one a GPU, while the teacher still reflects; the result is the
        same row for row. ray_address: HOST:PORT of the cluster, or "auto"; None for RAY_ADDRESS, or else one that is started on
        this machine. students: how many score there; None for as many as there is room for. A student's folder must be one that
        all nodes see.

    Each step is a `Dataset.map`, so `datasets` caches it; with "ray" its folder beside them does. Raises DataError, ConfigError,
    StudentError, TeacherError or ClusterError.
    """
    check_mode(mode)
    check_engine(engine, ray_address, students)
    teacher = Teacher(teacher) if isinstance(teacher, str) else teacher
    if not isinstance(teacher, Teacher):
        raise ConfigError(f"teacher is a Teacher or its target, not {type(teacher).__name__}.")
    scoring = _scoring(student, selector, proxy, margin)
    reflector = Reflector(teacher, prompts=prompts, structured=structured, retry=retry)
    rows = prepare(dataset, columns=columns, id_column=id_column)
    left_out = len(dataset) - len(rows)
    # Whatever is wrong with either model shows before the first call is paid for.
    teacher.identity()
    with _engine(engine, reflector, scoring, prices, ray_address, students) as work:
        work.scoring.load()
        run = _Run(selector, mode, work.scoring)
        rows, report = run.finish(work.run(rows, mode, run.clock))
        report.teacher = {"name": str(teacher.identity()), **work.counts}
    report.left_out = {NOT_ONE_TURN: left_out} if left_out else {}
    return Recycled(rows, measure(report, rows, prices), teacher.journal)


def reselect(
    candidates: Dataset,
    *,
    student: Student | str | None = None,
    selector: Selector = select,
    proxy: Student | str | None = None,
    margin: float = 0.05,
) -> Recycled:
    """Let another student choose from candidates that exist, without a teacher: score, select.

    candidates: the table `candidates` of an earlier run (`srt_hf.load_candidates`), best of an exhaustive one, whose rows hold
    whatever a student may choose. student: None where the table has scores already (`load_candidates(scores=...)`): then no model
    is loaded. The rest is as for `recycle`. Raises DataError, ConfigError or StudentError.
    """
    needed = (*CANDIDATES_COLUMNS, *(() if student else SCORED_COLUMNS))
    absent = [name for name in needed if name not in candidates.column_names]
    if absent:
        cure = "Load them with srt_hf.load_candidates" + ("." if student else ", its scores too, or name a student.")
        raise DataError(f"The candidates lack the column {', '.join(absent)}.", cure)
    if not student and proxy:
        raise ConfigError("A proxy scores in a student's place, and here nobody scores.", "Name the student, or leave it out.")
    if not student:
        run = _Run(selector, "candidates")
        rows, report = run.finish(candidates)
        report.student = {**candidates[0]["scored_by"], "passes": 0}
        return Recycled(rows, measure(report, rows))
    scoring = _scoring(student, selector, proxy, margin)
    scoring.load()
    run = _Run(selector, "candidates", scoring)
    with run.clock("score"):
        rows = scoring.run(candidates, "all", "Student scores all candidates")
    rows, report = run.finish(rows)
    return Recycled(rows, measure(report, rows))


def _scoring(student: Student | str, selector: Selector, proxy: Student | str | None, margin: float) -> Scoring:
    if not margin >= 0:
        raise ConfigError(f"margin={margin} is not a distance.", "Give a number of at least 0.")
    student = Student(student) if isinstance(student, str) else student
    if not isinstance(student, Student):
        raise ConfigError(
            f"student is a Student or a model's name, not {type(student).__name__}.",
            "Save a model that is in memory with its tokenizer and give the folder.",
        )
    return Scoring(student, selector, student.like(proxy) if isinstance(proxy, str) else proxy, margin)


class _Run:
    """What every run does around its own stages: it is timed, rows are decided, and the report says by whom."""

    def __init__(self, selector: Selector, mode: str, scoring: Scoring | None = None) -> None:
        self.clock = _Clock()
        self._selector = selector
        self._mode = mode
        self._scoring = scoring
        self._passes_before = scoring.student.count_passes if scoring else 0

    def finish(self, rows: Dataset) -> tuple[Dataset, Report]:
        """The decided rows, and the report as far as students go."""
        selector = self._selector
        with self.clock("select"):
            rows = rows.map(selector, desc="Student selects")
        with self.clock("look at texts"):
            rows = flag(rows)
        report = Report(self._mode, selector.rule, selector.keep, seconds=self.clock.seconds)
        if self._scoring:
            self._add_student(report, rows, self._scoring)
        return rows, report

    def _add_student(self, report: Report, rows: Dataset, scoring: Scoring) -> None:
        passes = scoring.student.count_passes - self._passes_before
        report.student = {**scoring.student.scored_by(), "passes": passes}
        if scoring.proxy:
            with self.clock("check proxy"):
                report.proxy = check_proxy(rows, scoring, self._mode)
        if report.student["dtype"] != "float32":
            with self.clock("check rounding"):
                report.rounding = check_rounding(rows, scoring.student)


def check_mode(mode: str) -> None:
    """Raises ConfigError where no mode has this name."""
    if mode not in MODES:
        raise ConfigError(f"There is no mode {mode!r}.", f"Choose from {', '.join(MODES)}.")


def check_engine(engine: str, ray_address: str | None = None, students: int | None = None) -> None:
    """Raises ConfigError where no engine has this name, or where the options of one are given to the other."""
    if engine not in ENGINES:
        raise ConfigError(f"There is no engine {engine!r}.", f"Choose from {', '.join(ENGINES)}.")
    if engine != "ray" and (ray_address is not None or students is not None):
        raise ConfigError("ray_address and students are about the engine ray.", "Choose it (--engine ray), or leave them out.")
    if students is not None and students < 1:
        raise ConfigError(f"students={students} is nobody.", "Give at least 1, or leave it out for as many as there is room for.")


def _engine(
    engine: str, reflector: Reflector, scoring: Scoring, prices: Prices | None, ray_address: str | None, students: int | None
) -> AbstractContextManager[_Here | Cluster]:
    if engine == "ray":
        from srt_hf.cluster.engine import Cluster

        return Cluster(reflector, scoring, prices, ray_address, students)
    return nullcontext(_Here(reflector, scoring, prices))


class _Here:
    """The engine `local`: each stage a `Dataset.map` of this process over all rows."""

    def __init__(self, reflector: Reflector, scoring: Scoring, prices: Prices | None) -> None:
        self.scoring = scoring
        self._reflector = reflector
        self._prices = prices

    @property
    def counts(self) -> dict[str, int]:
        """What the teacher did."""
        return self._reflector.teacher.counts

    def run(self, rows: Dataset, mode: str, clock: _Clock) -> Dataset:
        """Prepared rows with candidates, scores and, in selective mode, the instructions' winners."""
        return (self._exhaustive if mode == "exhaustive" else self._selective)(rows, clock)

    def _exhaustive(self, rows: Dataset, clock: _Clock) -> Dataset:
        with clock("reflect"):
            rows = self._teach(rows, self._reflector.reflect, "Teacher reflects on instruction, response, both")
        with clock("score"):
            return self.scoring.run(rows, "all", "Student scores all candidates")

    def _selective(self, rows: Dataset, clock: _Clock) -> Dataset:
        with clock("reflect instructions"):
            rows = self._teach(rows, self._reflector.reflect_instruction, "Teacher reflects on instructions")
        with clock("score instructions"):
            rows = self.scoring.run(rows, "instruction", "Student scores instructions")
            rows = rows.map(self.scoring.selector.instruction_winner, desc="Student picks instructions")
        with clock("reflect responses"):
            rows = self._teach(rows, self._reflector.reflect_response, "Teacher reflects on responses")
        with clock("score responses"):
            return self.scoring.run(rows, "response", "Student scores responses")

    def _teach(self, rows: Dataset, step: Callable[..., Any], description: str) -> Dataset:
        with Live(self._reflector, len(rows), self._prices):
            return rows.map(step, desc=description)


class _Clock:
    """Wall seconds of each stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start
