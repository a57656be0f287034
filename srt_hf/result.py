"""What a run results in: the tables, the report and the card, in a folder or on the Hub."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf import hub
from srt_hf.card import CardData, config_names, default_student, render, report_folder, reviewed_config, without
from srt_hf.errors import DataError, HubError
from srt_hf.handwritten import read, warn_of_edits
from srt_hf.journal import Journal
from srt_hf.plots import Plot, draw
from srt_hf.published import load_run, readable_report
from srt_hf.report import Provenance, Report
from srt_hf.rows import flatten
from srt_hf.schema import ABLATION_TAG, CANDIDATES_COLUMNS, FLAT_COLUMNS, REVIEWED, SCORES_COLUMNS, features
from srt_hf.teacher.replay import write_replies
from srt_hf.viewer import write_page

if TYPE_CHECKING:
    from datasets import Dataset


# What two reports of one run have in common.
_SAME_RUN = ("rows", "kept", "rule", "keep", "reasons", "scores")


class Recycled:
    """The result of `recycle`.

    rows: every row with its candidates, scores and decision. dataset: only the kept rows, flat, ready for SFT. candidates,
    scores: the tables of the Hub repo, the first without any trace of the student. report: the run in numbers.
    """

    def __init__(self, rows: Dataset, report: Report, journal: Journal | None = None) -> None:
        self.rows = rows
        self.report = report
        self._journal = journal

    @classmethod
    def load(cls, source: str, student: str | None = None, revision: str | None = None) -> Recycled:
        """A student's run from a repo or output folder of this tool: candidates, scores and decisions, without the source's other
        columns. student: None is the only one that selected there. Raises DataError where there is no such run."""
        return cls(*load_run(source, student, revision))

    @cached_property
    def dataset(self) -> Dataset:
        return flat(self.rows, FLAT_COLUMNS)

    @cached_property
    def candidates(self) -> Dataset:
        return self.rows.select_columns(list(CANDIDATES_COLUMNS))

    @cached_property
    def scores(self) -> Dataset:
        return self.rows.select_columns(list(SCORES_COLUMNS))

    @property
    def page(self) -> str:
        """Where in the folder or repo the page to look through all rows is."""
        return f"{report_folder(self.report.student['student'])}/report.html"

    @cached_property
    def plots(self) -> list[Plot]:
        """The pictures of card and report."""
        return draw(self.dataset, self.scores, self.report.reasons)

    def save_to_disk(
        self,
        folder: str | Path,
        *,
        repo_id: str | None = None,
        provenance: Provenance | None = None,
        replies: bool = False,
    ) -> None:
        """Write exactly the Hub repo's folder: the card, one folder of Parquet files a config, and `reports/<student>` with the
        report (report.json), the page to look through all rows (report.html) and the pictures.

        replies: also `replies.jsonl`, what the journal holds for these rows, as the teacher wrote it; `replay:` reads it.

        An earlier result in the folder, if its tables are others, is moved aside; what people made of this one stays. Without
        kept rows there is no flat config, since an empty split cannot be loaded back. `provenance` goes on the card. Raises
        ConfigError where the folder cannot be written or holds other things.
        """
        review = self._review(Path(folder).glob("reports/*/report.json"))
        self._save(folder, repo_id or str(folder), provenance or Provenance(), replies, review, {}, [], "")

    def _save(
        self,
        folder: str | Path,
        name: str,
        provenance: Provenance,
        replies: bool,
        review: dict[str, Any],
        header: dict[str, Any],
        others: list[Report],
        own: str,
    ) -> None:
        """`save_to_disk` with what stays of a card that is there: its header, the other students' runs, people's own part."""
        target = Path(folder).resolve()
        hub.check_folder(target)
        title = (target.name if name == str(folder) else name).rpartition("/")[2]
        report = replace(
            self.report,
            provenance=provenance,
            review=review,
            examples=self._examples(),
            plots=[{"name": plot.name, "title": plot.title, "words": plot.words} for plot in self.plots],
        )
        candidates, chosen, scores = config_names(report.student["student"])
        with tempfile.TemporaryDirectory(dir=target, prefix=hub.UNFINISHED) as fresh:
            new = Path(fresh)
            hub.write_table(self.candidates, new / candidates)
            hub.write_table(self.scores, new / scores)
            if report.kept:
                hub.write_table(self.dataset, new / chosen)
            if replies and self._journal is not None:
                write_replies(self._journal, set(self.rows["id"]), report.teacher["writers"], new / "replies.jsonl")
            self._write_report(report, title, new / report_folder(report.student["student"]))
            card = CardData(title, name, in_order([report, *others], header), header, own)
            (new / "README.md").write_text(render(card), encoding="utf-8")
            hub.replace_result(target, new)

    def _write_report(self, report: Report, title: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        report.save(folder / "report.json")
        for plot in self.plots:
            (folder / f"{plot.name}.png").write_bytes(plot.png)
        write_page(folder / "report.html", title, report, self.rows, self.plots)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        create_pr: bool = False,
        revision: str | None = None,
        overwrite: bool = False,
        provenance: Provenance | None = None,
        replies: bool = False,
    ) -> str:
        """Push configs, card and report in one commit, and the teacher's `replies`, and return the commit's URL.

        revision: the branch to write to, made from main where there is none; default main. The commit is tagged with student and
        date. Raises HubError: nothing was kept, a wrong token, a repo that this tool did not make or whose other students
        selected from other candidates (unless `overwrite`, which replaces its tables), `private` asked of an existing public
        repo, or somebody else's commit at the same moment.
        """
        if not self.report.kept:
            raise HubError("No row was kept, so there is nothing to push.", f"Top reasons: {top_reasons(self.report)}.")
        where: dict[str, Any] = {"private": private, "overwrite": overwrite, "revision": revision, "create_pr": create_pr}
        student = self.report.student["student"]
        existing = hub.check_target(repo_id, **where)
        others = other_runs(existing, student, repo_id)
        earlier = read(existing.card)
        warn_of_edits(earlier, repo_id, existing.commit)
        header = {name: value for name, value in earlier.header.items() if not (overwrite and name == "configs")}
        review = self._review(existing.reports)
        stale = [] if review else [reviewed_config(student)]
        if any(config.get("config_name") in stale for config in header.get("configs") or []):
            warnings.warn(f"{repo_id} holds a review of other rows than these, which goes; its history has it.", stacklevel=2)
            header["configs"] = without(header["configs"], stale)
        own = {*config_names(student), reviewed_config(student), "default", REVIEWED}
        foreign = [config for config in header.get("configs") or [] if config.get("config_name") not in own]
        with tempfile.TemporaryDirectory() as folder:
            self._save(folder, repo_id, provenance or Provenance(), replies, review, header, others, earlier.own)
            return hub.push_folder(
                Path(folder),
                repo_id,
                message=f"Recycle {self.report.rows:,} rows for {student}: {self.report.kept:,} kept",
                tag=f"{config_names(student)[1]}-{self.report.made}",
                parent_commit=existing.commit,
                other_students=bool(foreign),
                stale=stale,
                **where,
            )

    def _review(self, reports: Iterable[Path]) -> dict[str, Any]:
        """What people made of this run, by an earlier report of it."""
        earlier = same_run(reports, self.report)
        return earlier.review if earlier else {}

    def _examples(self) -> list[dict[str, Any]]:
        """Three kept rows: the first, the middle and the last, so that nobody picked them."""
        count = len(self.dataset) if self.report.kept else 0
        return [self.dataset[n] for n in sorted({0, count // 2, count - 1})] if count else []


def flat(rows: Dataset, columns: Sequence[str]) -> Dataset:
    """The kept rows, each as its chosen pair, with these columns."""
    kept = rows.select([n for n, keep in enumerate(rows["kept"]) if keep])
    if not len(kept):  # `map` would run no function and add no column
        return kept.from_dict({name: [] for name in columns}, features=features(columns))
    extra = [name for name in kept.column_names if name not in columns]
    return kept.map(flatten, remove_columns=extra, desc="Flattening").select_columns(list(columns))


def top_reasons(report: Report, most: int = 3) -> str:
    """The commonest reasons with their counts, in words."""
    return ", ".join(f"{reason} ({count:,})" for reason, count in list(report.reasons.items())[:most])


def same_run(reports: Iterable[Path], report: Report) -> Report | None:
    """The report among these files that is of the same run, however often that was saved."""
    for path in reports:
        if path.parent.name == config_names(str(report.student["student"]))[1]:
            found = readable_report(path)
            return found if found and all(getattr(found, name) == getattr(report, name) for name in _SAME_RUN) else None
    return None


def other_runs(existing: hub.Existing, student: str, repo_id: str) -> list[Report]:
    """The runs of other students that a repo holds. Raises HubError where one of them has the configs that `student` would have
    (org1/model and org2/model), and for an ablation's repo. A report that cannot be read costs its figures on the card, with a
    warning."""
    if existing.reports and ABLATION_TAG in (read(existing.card).header.get("tags") or []):
        raise HubError(f"{repo_id} holds the arms of an ablation.", "Name another repo, or pass --overwrite.")
    found = []
    for path in existing.reports:
        try:
            run = Report.load(path)
        except DataError as error:
            warnings.warn(f"{path.parent.name}: {error} The card will name its configs and no figures.", stacklevel=2)
            continue
        name = str(run.student.get("student"))
        if path.parent.name != config_names(student)[1]:
            found.append(run)
        elif name != student:
            raise HubError(
                f"{repo_id} holds the selection of {name}, whose configs {student} would write over.",
                "Push to another repo, or pass --overwrite to replace everything in it.",
            )
    return found


def in_order(runs: Sequence[Report], header: Mapping[str, Any]) -> list[Report]:
    """The run first that `default` names, or else the first one."""
    slugs = [config_names(run.student["student"])[1] for run in runs]
    default = default_student(header) or slugs[0]
    return [run for _, run in sorted(zip(slugs, runs, strict=True), key=lambda named: named[0] != default)]
