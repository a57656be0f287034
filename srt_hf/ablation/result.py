"""What an ablation results in: a config for each arm, the student's scores, a card with the table of all arms, a report; in a
folder or on the Hub.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf import hub
from srt_hf.ablation.card import HEAD, lines, render
from srt_hf.card import config_names, report_folder
from srt_hf.errors import HubError
from srt_hf.handwritten import read, warn_of_edits
from srt_hf.report import Provenance, render_table, write_json
from srt_hf.schema import ABLATION_TAG, TRIPLE

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Arm:
    """A config. rows: flat (schema.FLAT_COLUMNS). left_out: reason -> rows of the candidates left out; {} for a rung."""

    name: str
    rows: Dataset
    left_out: dict[str, int]

    @property
    def pairs(self) -> set[tuple[str, ...]]:
        """The rows as (id, instruction, input, output)."""
        return set(zip(*(self.rows[name][:] for name in ("id", *TRIPLE)), strict=True))

    def figures(self, full: Arm | None) -> dict[str, Any]:
        """rows; words_in (instruction and input) and words_out (output): median and mean; ifd and r_ifd: medians; in_full: the
        share of the rows that `full` has too, with the same pair; left_out. None where there is nothing to measure."""
        texts = [self.rows[name][:] for name in TRIPLE]
        asked = [len(instruction.split()) + len((input or "").split()) for instruction, input, _ in zip(*texts, strict=True)]
        return {
            "rows": len(self.rows),
            "words_in": _middle(asked),
            "words_out": _middle([len(output.split()) for output in texts[2]]),
            **{name: _median([value for value in self.rows[name][:] if value is not None]) for name in ("ifd", "r_ifd")},
            "in_full": len(self.pairs & full.pairs) / len(self.rows) if full and len(self.rows) else None,
            "left_out": self.left_out,
        }


class Ablation:
    """The result of `ablate`. arms: in order. report: the run as JSON; `report["arms"]` has each arm's figures. scores: those of
    every row (schema.SCORES_COLUMNS), with the decision of `full`."""

    def __init__(self, arms: Sequence[Arm], report: dict[str, Any], scores: Dataset, full: Arm | None) -> None:
        self.arms = list(arms)
        self.scores = scores
        self.report = {**report, "arms": {arm.name: arm.figures(full) for arm in arms}}

    @property
    def kept(self) -> list[Arm]:
        """The arms with rows; an empty one has no config, since an empty split cannot be loaded back."""
        return [arm for arm in self.arms if len(arm.rows)]

    @property
    def student(self) -> str:
        return str(self.report["student"]["student"])

    def table(self) -> str:
        """All arms, one a line."""
        return render_table(list(HEAD), lines(self.report))

    def save_to_disk(
        self,
        folder: str | Path,
        *,
        repo_id: str | None = None,
        provenance: Provenance | None = None,
        existing: hub.Existing | None = None,
    ) -> None:
        """Write exactly the Hub repo's folder: the card, one folder of Parquet files an arm, `<student>-scores`, from which
        `load_candidates(scores=...)` takes them for further arms, and `reports/<student>/report.json`.

        existing: what the repo holds, whose people's own part of the card goes on this one. An earlier result in the folder, if
        its tables are others, is moved aside. Raises ConfigError where the folder cannot be written or holds other things.
        """
        target = Path(folder).resolve()
        hub.check_folder(target)
        report = self.report | {"provenance": asdict(provenance or Provenance())}
        with tempfile.TemporaryDirectory(dir=target, prefix=hub.UNFINISHED) as fresh:
            new = Path(fresh)
            for arm in self.kept:
                hub.write_table(arm.rows, new / arm.name)
            hub.write_table(self.scores, new / config_names(self.student)[2])
            place = new / report_folder(self.student)
            place.mkdir(parents=True)
            write_json(place / "report.json", report)
            earlier = read(existing.card if existing else "")
            (new / "README.md").write_text(render(report, repo_id or target.name, earlier), encoding="utf-8")
            hub.replace_result(target, new)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        create_pr: bool = False,
        revision: str | None = None,
        overwrite: bool = False,
        provenance: Provenance | None = None,
    ) -> str:
        """Push all arms, the scores, card and report in one commit, tagged with student and date, and return the commit's URL.

        The repo is then what the folder is, but for what people wrote on the card. Raises HubError as `check_repo` does, where
        no arm has rows, and for somebody else's commit at the same moment.
        """
        if not self.kept:
            raise HubError("No arm has a row, so there is nothing to push.")
        where: dict[str, Any] = {"private": private, "create_pr": create_pr, "revision": revision}
        existing = check_repo(repo_id, self.student, [arm.name for arm in self.arms], **where, overwrite=overwrite)
        warn_of_edits(read(existing.card), repo_id, existing.commit)
        with tempfile.TemporaryDirectory() as folder:
            self.save_to_disk(folder, repo_id=repo_id, provenance=provenance, existing=existing)
            return hub.push_folder(
                Path(folder),
                repo_id,
                message=f"{len(self.kept)} arms of an ablation for {self.student}",
                tag=f"{config_names(self.student)[1]}-ablation-{self.report['made']}",
                parent_commit=existing.commit,
                overwrite=True,
                **where,
            )


def check_repo(repo_id: str, student: str, arms: Collection[str], *, overwrite: bool = False, **where: Any) -> hub.Existing:
    """Make sure, before anything is computed, that these arms of a student may go to `repo_id`.

    Raises HubError as `hub.check_target` does, and unless `overwrite` for a repo of this tool that holds something else than
    this student's arms, or configs besides these, which would be lost: the arms of two runs need not be of the same candidates.
    """
    existing = hub.check_target(repo_id, overwrite=overwrite, **where)
    if not existing.card or overwrite:
        return existing
    header = read(existing.card).header
    if ABLATION_TAG not in (header.get("tags") or []):
        raise HubError(
            f"{repo_id} holds a recycled dataset, which the arms would replace.", "Name another repo, or pass --overwrite."
        )
    _, slug, scores = config_names(student)
    others = sorted({path.parent.name for path in existing.reports} - {slug})
    if others:
        raise HubError(f"{repo_id} holds the arms of {', '.join(others)}.", "Name another repo, or pass --overwrite.")
    there = [str(config.get("config_name")) for config in header.get("configs") or []]
    gone = [name for name in there if name not in (*arms, scores)]
    if gone:
        raise HubError(
            f"{repo_id} also has {', '.join(gone)}, which this push would remove.",
            "Name them with --arms too (--scores with the same repo spares the student), or pass --overwrite.",
        )
    return existing


def _middle(values: Sequence[float]) -> dict[str, float | None]:
    return {"median": _median(values), "mean": statistics.fmean(values) if values else None}


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
