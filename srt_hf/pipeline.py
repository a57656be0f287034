"""The whole method in reading order: reflect, score, select; and its result, ready for the Hub."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf import hub
from srt_hf.card import CardData, Provenance, config_names, render
from srt_hf.errors import ConfigError, HubError
from srt_hf.prompts import Prompts
from srt_hf.reflection import Reflector
from srt_hf.report import Report, measure
from srt_hf.rows import flatten
from srt_hf.schema import CANDIDATES_COLUMNS, COUNTS, FLAT_COLUMNS, NLLS, ORIGINAL, SCORES_COLUMNS, batch_columns, features
from srt_hf.selection import Selector, select
from srt_hf.sources import prepare
from srt_hf.student import Student, as_score
from srt_hf.teacher import Teacher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Dataset

MODES = ("selective", "exhaustive")
_SCORING_BATCH = 128  # rows a map batch: enough to sort by length, few enough for the progress bar to move


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
) -> Recycled:
    """Recycle an instruction dataset for a student: the whole of Selective Reflection-Tuning.

    mode: "selective" (the paper's order: reflect the instruction, the student picks, reflect the winner's response, the student
        picks; two calls a row) or "exhaustive" (three calls; the candidates then serve any student). With a deterministic
        teacher both choose the same pairs.
    columns: the dataset's own names for instruction, input, output. id_column: its column of distinct ids.

    Each step is a `Dataset.map`, so `datasets` caches it. Raises DataError, ConfigError, StudentError or TeacherError.
    """
    if mode not in MODES:
        raise ConfigError(f"There is no mode {mode!r}.", f"Choose from {', '.join(MODES)}.")
    teacher = Teacher(teacher) if isinstance(teacher, str) else teacher
    student = Student(student) if isinstance(student, str) else student
    if not isinstance(teacher, Teacher) or not isinstance(student, Student):
        given = f"{type(teacher).__name__} and {type(student).__name__}"
        raise ConfigError(
            f"teacher and student are a Teacher and a Student or their names, not {given}.",
            "Save a model that is in memory with its tokenizer and give the folder.",
        )
    reflector = Reflector(teacher, prompts=prompts)
    rows = prepare(dataset, columns=columns, id_column=id_column)
    # Whatever is wrong with either model shows before the first call is paid for.
    teacher.identity()
    student.load()
    clock = _Clock()
    left_out = len(dataset) - len(rows)
    if mode == "exhaustive":
        rows = _exhaustive(rows, reflector, student, clock)
    else:
        rows = _selective(rows, reflector, student, selector, clock)
    with clock("select"):
        rows = rows.map(selector, desc="Student selects")
    report = Report(mode, selector.rule, selector.keep, seconds=clock.seconds)
    report.left_out = {"not one question and one answer": left_out} if left_out else {}
    report.teacher = {"name": str(teacher.identity()), **teacher.counts}
    report.student = {**student.scored_by(), "passes": student.count_passes}
    return Recycled(rows, measure(report, rows))


def _exhaustive(rows: Dataset, reflector: Reflector, student: Student, clock: _Clock) -> Dataset:
    with clock("reflect"):
        rows = rows.map(reflector.reflect, desc="Teacher reflects on instruction, response, both")
    with clock("score"):
        return _score(rows, student.score_candidates, "Student scores all candidates")


def _selective(rows: Dataset, reflector: Reflector, student: Student, selector: Selector, clock: _Clock) -> Dataset:
    with clock("reflect instructions"):
        rows = rows.map(reflector.reflect_instruction, desc="Teacher reflects on instructions")
    with clock("score instructions"):
        rows = _score(rows, StagedScorer(student, selector, "instruction"), "Student scores instructions")
        rows = rows.map(selector.instruction_winner, desc="Student picks instructions")
    with clock("reflect responses"):
        rows = rows.map(reflector.reflect_response, desc="Teacher reflects on responses")
    with clock("score responses"):
        return _score(rows, StagedScorer(student, selector, "response"), "Student scores responses")


def _score(rows: Dataset, scorer: Callable[..., Any], description: str) -> Dataset:
    return rows.map(scorer, batched=True, batch_size=_SCORING_BATCH, desc=description)


@dataclass(frozen=True)
class StagedScorer:
    """Scoring for one stage of selective mode, for `map(batched=True)`: only the losses that the decision still needs.

    Before the response reflection that is what stage 1 compares. After it, first what stage 2 compares, and everything about the
    original for the report; then everything about the choice. Losses that a row has already are kept.
    """

    student: Student
    selector: Selector
    stage: str

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        for row in rows:
            known = row.get("scores") or []
            row["scores"] = [*known, *(as_score({}) for _ in range(len(row["candidates"]) - len(known)))]
        self._measure(rows, self._compared)
        if self.stage == "response":
            self._measure(rows, self._chosen)
        scored_by = [self.student.scored_by()] * len(rows)
        return batch_columns(batch, {"scores": [row["scores"] for row in rows], "scored_by": scored_by})

    def _measure(self, rows: list[dict[str, Any]], wanted: Callable[..., dict[int, tuple[str, ...]]]) -> None:
        """Fill in the losses `wanted(row)` (candidate -> names) that the rows lack."""
        pairs, needs = [], []
        places: list[tuple[list[Any], int]] = []
        for row in rows:
            scores = row["scores"]
            for n, names in wanted(row).items():
                candidate = row["candidates"][n]
                if candidate["error"]:
                    scores[n] = as_score({"missing": "candidate_error"})
                    continue
                lacking = tuple(loss for loss in names if scores[n][loss] is None)
                if lacking:
                    pairs.append((candidate["instruction"], candidate["input"], candidate["output"]))
                    needs.append(lacking)
                    places.append((scores, n))
        for (scores, n), losses in zip(places, self.student.nlls(pairs, which=needs), strict=True):
            scores[n] = as_score({**{name: scores[n][name] for name in (*NLLS, *COUNTS)}, **losses})

    def _compared(self, row: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
        names = tuple(loss for name in self.selector.deciding_scores(self.stage) for loss in _BEHIND[name])
        candidates = row["candidates"]
        if self.stage == "instruction":
            return dict.fromkeys(range(len(candidates)), names)
        wanted = {row["choice"]: names, len(candidates) - 1: names}  # reflect_response appended the challenger
        return wanted | {n: NLLS for n, candidate in enumerate(candidates) if candidate["origin"] == ORIGINAL}

    def _chosen(self, row: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
        return {self.selector(row)["choice"]: NLLS}


# number of a score -> the losses that it is made of
_BEHIND = {"ifd": ("nll_y", "nll_y_given_x"), "r_ifd": ("nll_x", "nll_x_given_y"), "nll_y_given_x": ("nll_y_given_x",)}


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

    def __init__(self, rows: Dataset, report: Report) -> None:
        self.rows = rows
        self.report = report

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
    ) -> None:
        """Write exactly the Hub repo's folder: card, report and one folder of Parquet files a config.

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
    ) -> str:
        """Push configs, card and report in one commit and return its URL.

        Raises HubError: nothing was kept, a wrong token, a repo that this tool did not make or whose other students selected
        from other candidates (unless `overwrite`, which replaces its tables), or `private` asked of an existing public repo.
        """
        if not self.report.kept:
            raise HubError("No row was kept, so there is nothing to push.", f"Top reasons: {top_reasons(self.report)}.")
        configs = hub.check_target(repo_id, private=private, overwrite=overwrite)
        ours = {*config_names(self.report.student["student"]), "default"}
        with tempfile.TemporaryDirectory() as folder:
            self.save_to_disk(folder, repo_id=repo_id, provenance=provenance, other_configs=configs)
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
