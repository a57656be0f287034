"""What a review leaves: the table, everybody's answers, and the place of both beside the run, in its folder or repo."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf import hub
from srt_hf.card import CardData, render, report_folder, reviewed_config
from srt_hf.errors import HubError
from srt_hf.evaluation.files import read_rows, write_rows
from srt_hf.handwritten import read, warn_of_edits
from srt_hf.report import Report, decimal, render_table
from srt_hf.result import flat, in_order, other_runs, same_run
from srt_hf.schema import REVIEW_STATUSES, REVIEWED_COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset


class Reviewed:
    """The result of `pull`.

    rows: every row, decided by people where they decided (columns schema.REVIEW_COLUMNS besides). dataset: the pairs that are
    kept now, flat (schema.REVIEWED_COLUMNS), ready for SFT. report: the run's, with the review in its field `review`. answers:
    all that anybody answered, drafts included, with {dataset, id, shown, user, status, values}.
    """

    def __init__(self, rows: Dataset, report: Report, answers: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.report = report
        self.answers = answers

    @cached_property
    def dataset(self) -> Dataset:
        rows = self.rows
        if self.report.review["only_reviewed"]:
            rows = rows.select([n for n, status in enumerate(rows["review_status"]) if status != "unreviewed"])
        return flat(rows, REVIEWED_COLUMNS)

    @property
    def config(self) -> str:
        """The name of the dataset's config."""
        return reviewed_config(self._student)

    @property
    def _student(self) -> str:
        return str(self.report.student["student"])

    def save_to_disk(self, folder: str | Path) -> None:
        """Write the dataset as Parquet into a folder of its config's name, and `answers.jsonl`, which no push uploads. Where the
        folder is the run's own, its card and report are brought up to date. Answers of an earlier pull that the server has no
        more stay in the file. Raises ConfigError where it cannot be written, or holds other things."""
        target = Path(folder).resolve()
        if not target.is_dir() or not (target / "answers.jsonl").exists():
            hub.check_folder(target)
        write_rows(target / "answers.jsonl", self._all_answers(target / "answers.jsonl"))
        paths = tuple(sorted(target.glob("reports/*/report.json")))
        readme = target / "README.md"
        card = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
        run = same_run(paths, self.report)
        if run is None:
            self._write_table(target)
        else:
            self._write(target, hub.Existing(None, card, paths), run, str(folder))

    def push_to_hub(self, repo_id: str, *, create_pr: bool = False, revision: str | None = None) -> str:
        """Add the dataset to the run's repo in one commit, with card and report brought up to date, and return the commit's URL.

        Raises HubError: nobody kept anything, the repo does not hold this run, a wrong token, or somebody else's commit at the
        same moment.
        """
        if not self.report.review["kept"]:
            raise HubError("No row is kept after the review, so there is nothing to push.")
        existing = hub.check_target(repo_id, revision=revision, create_pr=create_pr)
        run = same_run(existing.reports, self.report)
        if run is None:
            raise HubError(
                f"{repo_id} does not hold the run of {self._student} that was reviewed.",
                "Push to the repo that the rows came from; another run there needs a review of its own.",
            )
        warn_of_edits(read(existing.card), repo_id, existing.commit)
        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder), existing, run, repo_id)
            return hub.push_folder(
                Path(folder),
                repo_id,
                message=f"Review {self.report.review['reviewed']:,} rows of {self._student}: {self.report.review['kept']:,} kept",
                tag=f"{self.config}-{self.report.made}",
                create_pr=create_pr,
                revision=revision,
                parent_commit=existing.commit,
                added_to=report_folder(self._student),
            )

    def _all_answers(self, path: Path) -> list[dict[str, Any]]:
        """These answers, and those that a file has besides."""
        earlier = read_rows(path) if path.exists() and path.stat().st_size else []
        return list({_whose(answer): answer for answer in [*earlier, *self.answers]}.values())

    def _write(self, folder: Path, existing: hub.Existing, run: Report, name: str) -> None:
        """Table, report and card, as they stand beside the run."""
        earlier = read(existing.card)
        before, now = (review.get("reviewed", 0) for review in (run.review, self.report.review))
        if before > now:
            warnings.warn(f"The review in {name} decided {before:,} rows; this one, of {now:,}, takes its place.", stacklevel=3)
        report = replace(run, review=self.report.review)
        runs = in_order([report, *other_runs(existing, self._student, name)], earlier.header)
        self._write_table(folder)
        path = folder / report_folder(self._student) / "report.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        report.save(path)
        card = CardData(name.rstrip("/").rpartition("/")[2], name, runs, earlier.header, earlier.own)
        (folder / "README.md").write_text(render(card), encoding="utf-8")

    def _write_table(self, folder: Path) -> None:
        """The dataset in its own folder, in place of an earlier pull's; no folder where nothing is kept, since an empty split
        cannot be loaded back."""
        table = folder / self.config
        if table.is_dir():
            shutil.rmtree(table)
        if self.report.review["kept"]:
            hub.write_table(self.dataset, table)

    def table(self) -> str:
        """The review as the one table that a command prints at its end."""
        found = self.report.review
        lines = [["rows", f"{self.report.rows:,}"], ["decided by people", f"{found['reviewed']:,}"]]
        lines += [[f"  {name}", f"{found['statuses'].get(name, 0):,}"] for name in REVIEW_STATUSES if found["statuses"].get(name)]
        several = f"{found['answered_by_several']:,} rows answered by several, {found['all_alike']:,} of them alike"
        several += f", alpha {decimal(found['alpha'])}"
        lines += [["reviewers", f"{found['reviewers']:,}"], ["agreement", several]]
        edits = f"{found['edits']:,}, {found['edits_not_taken']:,} of them not chosen"
        lines += [["corrections", edits], ["kept", f"{found['kept']:,}"]]
        others = ("fewer_answers_than_asked", "outdated", "gone", "undecided", "drafts", "discarded")
        return render_table(["", ""], lines + [[name.replace("_", " "), f"{found[name]:,}"] for name in others if found[name]])


def _whose(answer: Mapping[str, Any]) -> tuple[Any, ...]:
    """One person has one answer to one record of a dataset."""
    return tuple(answer.get(name) for name in ("dataset", "id", "user"))
