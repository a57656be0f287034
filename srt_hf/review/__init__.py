"""People between the student's decision and the training: rows to reviewers in Argilla, their decisions back.

recycled = srt_hf.Recycled.load("org/srecycled-alpaca")
place = srt_hf.review.Place("alpaca-review", "https://argilla.example.org")       # the key from ARGILLA_API_KEY
srt_hf.review.push(recycled, place, limit=500, closest=True)
reviewed = srt_hf.review.pull(recycled, place)
reviewed.push_to_hub("org/srecycled-alpaca")
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from srt_hf.annotation import Answered, Place, progress, read, remove, send, unsure
from srt_hf.checks import flag
from srt_hf.errors import AnnotationError, ConfigError
from srt_hf.report import Report
from srt_hf.result import Recycled
from srt_hf.review.decisions import Tally, apply
from srt_hf.review.records import margin, metadata, proposal, record, settings
from srt_hf.review.reviewed import Reviewed
from srt_hf.selection import REASONS

__all__ = ["Picking", "Place", "Pushed", "Reviewed", "pull", "push", "status"]


@dataclass(frozen=True)
class Picking:
    """Which rows go to reviewers, and in which order.

    reason: only rows that were kept or left out for it (selection.REASONS). share: a random share of them in (0, 1], the same
    rows each time with one `seed`. closest: the closest decisions first (records.margin), else in the order of the dataset.
    limit: so many, the first ones.
    """

    reason: str | None = None
    share: float | None = None
    closest: bool = False
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reason is not None and self.reason not in REASONS:
            raise ConfigError(f"There is no reason {self.reason!r}.", f"Choose from {', '.join(REASONS)}.")
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError(f"share={self.share} is no share.", "Give a number above 0, at most 1.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit} leaves no row.", "Give at least 1, or leave it out.")

    def indices(self, recycled: Recycled) -> list[int]:
        """The rows, by their place in `recycled.rows`; those that have no recycled pair to show are none of them."""
        found = [
            (self._place(row, recycled.report), n)
            for n, row in enumerate(recycled.rows)
            if (self.reason in (None, row["reason"])) and self._drawn(row["id"]) and proposal(row) is not None
        ]
        return [n for _, n in sorted(found)][: self.limit]

    def _place(self, row: Mapping[str, Any], report: Report) -> float:
        """What rows are sorted by; those without a margin come last."""
        close = margin(row, report) if self.closest else 0.0
        return math.inf if close is None else close

    def _drawn(self, id: str) -> bool:
        if self.share is None:
            return True
        digest = hashlib.sha256(f"srt_hf/review/{self.seed}/{id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64


class Pushed(NamedTuple):
    """What `push` did, in records. updated: other words or numbers by now. held: other words by now, but somebody has answered
    or begun to, so they are as they were, and their answers will count as outdated."""

    added: int
    updated: int
    unchanged: int
    held: int


def push(recycled: Recycled, place: Place, picking: Picking | None = None, *, min_submitted: int = 1) -> Pushed:
    """Put rows before reviewers, in a dataset that is made where there is none.

    min_submitted: how many answers a record needs. Again with the same `place` it adds what is new and brings up to date what is
    there under the same row id; a record that somebody has answered keeps its words. A push that broke off goes on where it was.
    Raises ConfigError or AnnotationError.
    """
    if min_submitted < 1:
        raise ConfigError(f"min_submitted={min_submitted} asks nobody.", "Give at least 1.")
    chosen = (picking or Picking()).indices(recycled)
    if not chosen:
        raise ConfigError("No row is left to review: those picked have no recycled pair to show.", "Pick others.")
    report = recycled.report
    dataset = place.open(lambda: settings(report, min_submitted))
    there = {found.id: found for found in read(dataset, place.url)}
    _check_student(there, place, str(report.student.get("student")))
    again = unsure(there.values())
    counts, sent, reworded = Counter[str](), [], []
    for n, row in zip(chosen, recycled.rows.select(chosen), strict=True):
        known = there.get(row["id"])
        what = _what_to_do(row, known, report)
        counts["updated" if what == "reworded" else what] += 1
        if what in ("added", "updated", "reworded") or (what == "unchanged" and row["id"] in again):
            sent.append(n)
        if known and what == "reworded":
            reworded.append(known)
    # Not changed in place: an open page would submit the old words as somebody's correction of the new ones.
    remove(dataset, reworded, place.url)
    records = (record(row, _shown_candidate(row), report) for row in recycled.rows.select(sent))
    send(dataset, records, len(sent), place.url)
    return Pushed(*(counts[name] for name in Pushed._fields))


def _shown_candidate(row: Mapping[str, Any]) -> int:
    return proposal(row) or 0  # picked rows have one


def _what_to_do(row: Mapping[str, Any], known: Answered | None, report: Report) -> str:
    """Which of the counts of `Pushed` a row belongs to; "reworded" is an update of the words themselves. known: its record on the
    server."""
    if known is None:
        return "added"
    wanted = metadata(row, _shown_candidate(row), report)
    if known.metadata == wanted:
        return "unchanged"
    if known.metadata.get("shown") == wanted["shown"]:
        return "updated"
    begun = any(answer.status != "discarded" for answer in known.answers)
    return "held" if begun else "reworded"


def _check_student(there: Mapping[str, Answered], place: Place, student: str) -> None:
    others = {str(found.metadata.get("student")) for found in there.values()} - {student}
    if others:
        raise AnnotationError(
            f"{place.dataset} is the review of {min(others)}'s choice, not of {student}'s.", "Name another dataset."
        )


def pull(recycled: Recycled, place: Place, *, only_reviewed: bool = False) -> Reviewed:
    """Apply what reviewers have submitted to the rows: majority, ties to the original (see `decisions.decide`).

    Every row gains review_status (schema.REVIEW_STATUSES), reviewers (how many) and rating; corrections are candidates of origin
    "human", and what people decided has the reason "reviewed". Unreviewed rows stay as they were; with only_reviewed the dataset
    leaves them out. Drafts and discarded answers decide nothing; neither do answers about other words than the row's, which a
    warning counts, and about rows that the run does not have. Raises ConfigError or AnnotationError, also where nobody has
    decided anything.
    """
    there = {found.id: found for found in read(place.find(), place.url)}
    _check_student(there, place, str(recycled.report.student.get("student")))
    reviewed = apply_answers(recycled, there, place.dataset, only_reviewed=only_reviewed)
    if not reviewed.report.review["reviewed"]:
        raise AnnotationError(
            f"Nobody has decided any of these rows in {place.dataset}, so there is nothing to apply.",
            "`scripts/review.py status` tells how far the reviewers are.",
        )
    return reviewed


def apply_answers(recycled: Recycled, records: Mapping[str, Answered], dataset: str, *, only_reviewed: bool = False) -> Reviewed:
    """What `pull` makes of the records, by row id, that it has read from the dataset of that name."""
    tally = Tally()
    ids = recycled.rows["id"][:]
    for row in recycled.rows.select([n for n, id in enumerate(ids) if id in records]):
        tally.add(row, records[row["id"]])
    tally.gone = sum(bool(records[id].submitted) for id in records.keys() - set(ids))
    for count, what in (
        (tally.outdated, "rows were answered when they had other words"),
        (tally.gone, "answered rows are not in this run"),
    ):
        if count:
            warnings.warn(f"{count:,} {what}; these answers are in answers.jsonl and decide nothing.", stacklevel=3)
    rows = flag(recycled.rows.map(_Apply(tally), desc="Applying the review"))
    decisions = zip(rows["kept"], rows["review_status"], strict=True)
    kept = sum(keep and (not only_reviewed or status != "unreviewed") for keep, status in decisions)
    summary = {**tally.summary(len(rows), kept), "only_reviewed": only_reviewed}
    answers = [
        {"dataset": dataset, "id": found.id, "shown": found.metadata.get("shown"), **answer._asdict()}
        for found in records.values()
        for answer in found.answers
    ]
    return Reviewed(rows, replace(recycled.report, review=summary), answers)


class _Apply:
    """A map function; its decisions are part of its fingerprint."""

    def __init__(self, tally: Tally) -> None:
        self._decided = tally.decided

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return apply(row, self._decided.get(row["id"]))


def status(place: Place) -> dict[str, Any]:
    """How far the review is: counts of records, and of each user's answers (annotation.progress). Raises as `pull` does."""
    return progress(place.find(), place.url)
