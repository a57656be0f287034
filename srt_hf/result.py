"""What a run results in: the tables, the report and the card, in a folder or on the Hub."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf import hub
from srt_hf.card import CardData, Provenance, config_names, render
from srt_hf.errors import HubError
from srt_hf.journal import Journal
from srt_hf.report import Report
from srt_hf.rows import flatten
from srt_hf.schema import CANDIDATES_COLUMNS, FLAT_COLUMNS, SCORES_COLUMNS, features
from srt_hf.teacher.replay import write_replies

if TYPE_CHECKING:
    from datasets import Dataset


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
                write_replies(self._journal, set(self.rows["id"]), self.report.teacher["writers"], new / "replies.jsonl")
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
