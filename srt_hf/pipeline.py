"""The whole method in reading order: reflect, score, select; and its result, ready for the Hub."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf import hub
from srt_hf.card import CardData, Provenance, config_names, render
from srt_hf.errors import ConfigError, DataError, HubError
from srt_hf.journal import Journal
from srt_hf.live import Live
from srt_hf.prompts import Prompts
from srt_hf.reflection import Reflector
from srt_hf.report import Prices, Report, measure
from srt_hf.rows import flatten
from srt_hf.schema import CANDIDATES_COLUMNS, FLAT_COLUMNS, SCORES_COLUMNS, features
from srt_hf.scoring import Scoring, check_proxy, check_rounding
from srt_hf.selection import Selector, select
from srt_hf.sources import prepare
from srt_hf.student import Student
from srt_hf.teacher import Teacher
from srt_hf.teacher.replay import write_replies

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from datasets import Dataset

MODES = ("selective", "exhaustive")


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

    Each step is a `Dataset.map`, so `datasets` caches it. Raises DataError, ConfigError, StudentError or TeacherError.
    """
    check_mode(mode)
    teacher = Teacher(teacher) if isinstance(teacher, str) else teacher
    if not isinstance(teacher, Teacher):
        raise ConfigError(f"teacher is a Teacher or its target, not {type(teacher).__name__}.")
    scoring = _scoring(student, selector, proxy, margin)
    reflector = Reflector(teacher, prompts=prompts, structured=structured, retry=retry)
    rows = prepare(dataset, columns=columns, id_column=id_column)
    # Whatever is wrong with either model shows before the first call is paid for.
    teacher.identity()
    scoring.load()
    run = _Run(scoring, mode)
    teaching = _Teaching(reflector, prices)
    left_out = len(dataset) - len(rows)
    rows = (_exhaustive if mode == "exhaustive" else _selective)(rows, teaching, scoring, run.clock)
    rows, report = run.finish(rows)
    report.left_out = {"not one question and one answer": left_out} if left_out else {}
    report.teacher = {"name": str(teacher.identity()), **teacher.counts}
    return Recycled(rows, measure(report, rows, prices), teacher.journal)


def reselect(
    candidates: Dataset,
    *,
    student: Student | str,
    selector: Selector = select,
    proxy: Student | str | None = None,
    margin: float = 0.05,
) -> Recycled:
    """Let another student choose from candidates that exist, without a teacher: score, select.

    candidates: the table `candidates` of an earlier run (`srt_hf.load_candidates`), best of an exhaustive one, whose rows hold
    whatever a student may choose. The rest is as for `recycle`. Raises DataError, ConfigError or StudentError.
    """
    absent = [name for name in CANDIDATES_COLUMNS if name not in candidates.column_names]
    if absent:
        raise DataError(f"The candidates lack the column {', '.join(absent)}.", "Load them with srt_hf.load_candidates.")
    scoring = _scoring(student, selector, proxy, margin)
    scoring.load()
    run = _Run(scoring, "candidates")
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

    def __init__(self, scoring: Scoring, mode: str) -> None:
        self.clock = _Clock()
        self._scoring = scoring
        self._mode = mode
        self._passes_before = scoring.student.count_passes

    def finish(self, rows: Dataset) -> tuple[Dataset, Report]:
        """The decided rows, and the report as far as students go."""
        scoring, selector, clock = self._scoring, self._scoring.selector, self.clock
        with clock("select"):
            rows = rows.map(selector, desc="Student selects")
        report = Report(self._mode, selector.rule, selector.keep, seconds=clock.seconds)
        passes = scoring.student.count_passes - self._passes_before
        report.student = {**scoring.student.scored_by(), "passes": passes}
        if scoring.proxy:
            with clock("check proxy"):
                report.proxy = check_proxy(rows, scoring, self._mode)
        if report.student["dtype"] != "float32":
            with clock("check rounding"):
                report.rounding = check_rounding(rows, scoring.student)
        return rows, report


def check_mode(mode: str) -> None:
    """Raises ConfigError where no mode has this name."""
    if mode not in MODES:
        raise ConfigError(f"There is no mode {mode!r}.", f"Choose from {', '.join(MODES)}.")


@dataclass(frozen=True)
class _Teaching:
    """Who reflects, and what it costs."""

    reflector: Reflector
    prices: Prices | None

    def run(self, rows: Dataset, step: Callable[..., Any], description: str) -> Dataset:
        with Live(self.reflector, len(rows), self.prices):
            return rows.map(step, desc=description)


def _exhaustive(rows: Dataset, teaching: _Teaching, scoring: Scoring, clock: _Clock) -> Dataset:
    with clock("reflect"):
        rows = teaching.run(rows, teaching.reflector.reflect, "Teacher reflects on instruction, response, both")
    with clock("score"):
        return scoring.run(rows, "all", "Student scores all candidates")


def _selective(rows: Dataset, teaching: _Teaching, scoring: Scoring, clock: _Clock) -> Dataset:
    with clock("reflect instructions"):
        rows = teaching.run(rows, teaching.reflector.reflect_instruction, "Teacher reflects on instructions")
    with clock("score instructions"):
        rows = scoring.run(rows, "instruction", "Student scores instructions")
        rows = rows.map(scoring.selector.instruction_winner, desc="Student picks instructions")
    with clock("reflect responses"):
        rows = teaching.run(rows, teaching.reflector.reflect_response, "Teacher reflects on responses")
    with clock("score responses"):
        return scoring.run(rows, "response", "Student scores responses")


class _Clock:
    """Wall seconds of each stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


class Recycled:
    """The result of `recycle`.

    rows: every row with its candidates, scores and decision. dataset: only the kept rows, flat, ready for SFT. candidates,
    scores: the tables of the Hub repo, the first without any trace of the student. report: the run in numbers.
    """

    def __init__(self, rows: Dataset, report: Report, journal: Journal | None = None) -> None:
        self.rows = rows
        self.report = report
        self._journal = journal

    @cached_property
    def dataset(self) -> Dataset:
        kept = self.rows.select([n for n, keep in enumerate(self.rows["kept"]) if keep])
        if not len(kept):  # `map` would run no function and add no column
            return kept.from_dict({name: [] for name in FLAT_COLUMNS}, features=features(FLAT_COLUMNS))
        extra = [name for name in kept.column_names if name not in FLAT_COLUMNS]
        return kept.map(flatten, remove_columns=extra, desc="Flattening").select_columns(list(FLAT_COLUMNS))

    @cached_property
    def candidates(self) -> Dataset:
        return self.rows.select_columns(list(CANDIDATES_COLUMNS))

    @cached_property
    def scores(self) -> Dataset:
        return self.rows.select_columns(list(SCORES_COLUMNS))

    def save_to_disk(
        self,
        folder: str | Path,
        *,
        repo_id: str | None = None,
        provenance: Provenance | None = None,
        other_configs: list[dict[str, Any]] | None = None,
        replies: bool = False,
    ) -> None:
        """Write exactly the Hub repo's folder: card, report and one folder of Parquet files a config.

        replies: also `replies.jsonl`, what the journal holds for these rows, as the teacher wrote it; `replay:` reads it.

        An earlier result in the folder, if its tables are others, is moved aside. Without kept rows there is no flat config,
        since an empty split cannot be loaded back. `provenance` goes on the card; `other_configs` are configs already on the
        repo's card. Raises ConfigError where the folder cannot be written or holds other things.
        """
        target = Path(folder).resolve()
        hub.check_folder(target)
        title = (repo_id or str(target)).rstrip("/").rpartition("/")[2]
        card = CardData(title, repo_id or str(folder), self.report, provenance or Provenance(), self._examples())
        card.other_configs = other_configs or []
        candidates, flat, scores = config_names(self.report.student["student"])
        with tempfile.TemporaryDirectory(dir=target, prefix=hub.UNFINISHED) as fresh:
            new = Path(fresh)
            hub.write_table(self.candidates, new / candidates)
            hub.write_table(self.scores, new / scores)
            if self.report.kept:
                hub.write_table(self.dataset, new / flat)
            if replies and self._journal is not None:
                write_replies(self._journal, set(self.rows["id"]), new / "replies.jsonl")
            self.report.save(new / "report.json")
            (new / "README.md").write_text(render(card), encoding="utf-8")
            hub.replace_result(target, new)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        create_pr: bool = False,
        overwrite: bool = False,
        provenance: Provenance | None = None,
        replies: bool = False,
    ) -> str:
        """Push configs, card and report in one commit, and the teacher's `replies`, and return the commit's URL.

        Raises HubError: nothing was kept, a wrong token, a repo that this tool did not make or whose other students selected
        from other candidates (unless `overwrite`, which replaces its tables), or `private` asked of an existing public repo.
        """
        if not self.report.kept:
            raise HubError("No row was kept, so there is nothing to push.", f"Top reasons: {top_reasons(self.report)}.")
        configs = hub.check_target(repo_id, private=private, overwrite=overwrite)
        ours = {*config_names(self.report.student["student"]), "default"}
        with tempfile.TemporaryDirectory() as folder:
            self.save_to_disk(folder, repo_id=repo_id, provenance=provenance, other_configs=configs, replies=replies)
            return hub.push_folder(
                Path(folder),
                repo_id,
                message=f"Recycle {self.report.rows:,} rows for {self.report.student['student']}: {self.report.kept:,} kept",
                private=private,
                create_pr=create_pr,
                overwrite=overwrite,
                other_students=any(config.get("config_name") not in ours for config in configs),
            )

    def _examples(self) -> list[dict[str, Any]]:
        """Three kept rows: the first, the middle and the last, so that nobody picked them."""
        count = len(self.dataset) if self.report.kept else 0
        return [self.dataset[n] for n in sorted({0, count // 2, count - 1})] if count else []


def top_reasons(report: Report, most: int = 3) -> str:
    """The commonest reasons with their counts, in words."""
    return ", ".join(f"{reason} ({count:,})" for reason, count in list(report.reasons.items())[:most])
