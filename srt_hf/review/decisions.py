"""What reviewers' answers make of a row. Pure; needs no server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from srt_hf.agreement import agreement, majority
from srt_hf.annotation import Answer, Answered
from srt_hf.review.records import DROP, KEEP, RECYCLED, proposal, shown
from srt_hf.schema import CANDIDATE, HUMAN, ORIGINAL, of_origin, row_columns
from srt_hf.student import as_score

_REASON = "reviewed"
_STATUSES = {RECYCLED: "accepted", KEEP: "original", DROP: "dropped", "split": "tie"}


class Edit(NamedTuple):
    """A pair as a reviewer corrected it."""

    instruction: str
    output: str


def edit_of(answer: Answer, candidate: Mapping[str, Any]) -> Edit | None:
    """The candidate's pair with this person's corrections; None where nothing differs but for white space, or nothing is left."""
    texts = []
    for question, name in (("instruction", "instruction"), ("response", "output")):
        given, there = _plain(str(answer.values.get(question) or "")), candidate[name] or ""
        texts.append(given if given and given != _plain(there) else there)
    return None if texts == [candidate["instruction"] or "", candidate["output"] or ""] else Edit(*texts)


def _plain(text: str) -> str:
    """A text without what a browser's text field changes by itself."""
    lines = text.replace("\xa0", " ").replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()


@dataclass
class Decided:
    """What a review decided of one row. votes: what each person said, by the names of the question. edits: the distinct
    corrections, in the order of the answers; taken: the one that is chosen, if one is."""

    status: str
    votes: list[str]
    edits: list[Edit] = field(default_factory=list)
    taken: Edit | None = None
    rating: float | None = None


def decide(row: Mapping[str, Any], answers: Sequence[Answer]) -> Decided | None:
    """What submitted answers decide: the majority, the original where two lead. None where nobody decided anything.

    Of several who accept the recycled pair, a correction is taken that most correctors agree on, unless more people accept the
    pair as it was shown. Corrections of those who did not accept it decide nothing.
    """
    n = proposal(row)
    given = [answer for answer in answers if answer.values.get("decision") in (RECYCLED, KEEP, DROP)]
    if n is None or not given:
        return None
    votes = [str(answer.values["decision"]) for answer in given]
    edits = {answer.user: edit_of(answer, row["candidates"][n]) for answer in given}
    decided = Decided(_STATUSES[majority(votes)], votes, rating=_mean_rating(given))
    decided.edits = list(dict.fromkeys(edit for edit in edits.values() if edit))
    if decided.status == "accepted":
        decided.taken = _version([edits[answer.user] for answer in given if answer.values["decision"] == RECYCLED])
        decided.status = "edited" if decided.taken else "accepted"
    return decided


def _version(versions: Sequence[Edit | None]) -> Edit | None:
    """The correction that more people made than any other, and no fewer than left the pair as it was shown; None is that pair."""
    ranked = Counter(version for version in versions if version).most_common(2)
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]) or ranked[0][1] < list(versions).count(None):
        return None
    return ranked[0][0]


def _mean_rating(answers: Sequence[Answer]) -> float | None:
    given = [float(answer.values["rating"]) for answer in answers if answer.values.get("rating") is not None]
    return sum(given) / len(given) if given else None


def apply(row: Mapping[str, Any], decided: Decided | None) -> dict[str, Any]:
    """The columns of a row after its review; a row that nobody decided stays as it was."""
    unchanged = {name: row[name] for name in ("candidates", "scores", "choice", "origin", "kept", "reason")}
    n = proposal(row)
    if decided is None or n is None:
        return row_columns(row, {**unchanged, "review_status": "unreviewed", "reviewers": 0, "rating": None})
    candidates, scores = list(row["candidates"]), list(row["scores"])
    choice = n if decided.status == "accepted" else of_origin(candidates, ORIGINAL)[0]
    if decided.status == "dropped":
        choice = row["choice"]
    for sample, edit in enumerate(decided.edits):
        if edit == decided.taken:
            choice = len(candidates)
        candidates.append(_candidate(edit, candidates[n], sample))
        scores.append(as_score({"missing": "unscored"}))
    chosen = candidates[choice]
    kept = decided.status != "dropped" and bool((chosen["instruction"] or "").strip() and (chosen["output"] or "").strip())
    values = {
        "candidates": candidates,
        "scores": scores,
        "choice": choice,
        "origin": chosen["origin"],
        "kept": kept,
        "reason": "empty_pair" if not kept and decided.status != "dropped" else _REASON,
        "review_status": decided.status,
        "reviewers": len(decided.votes),
        "rating": decided.rating,
    }
    return row_columns(row, values)


def _candidate(edit: Edit, base: Mapping[str, Any], sample: int) -> dict[str, Any]:
    known = {"origin": HUMAN, "sample": sample, "input": base["input"], **edit._asdict()}
    return {**dict.fromkeys(item.name for item in CANDIDATE), **known}


@dataclass
class Tally:
    """What a review comes to, over all rows; goes into the report as `review`."""

    decided: dict[str, Decided] = field(default_factory=dict)
    outdated: int = 0
    incomplete: int = 0
    drafts: int = 0
    discarded: int = 0
    undecided: int = 0
    people: set[str] = field(default_factory=set)

    def add(self, row: Mapping[str, Any], record: Answered) -> None:
        """Count a record, and decide its row. An answer about other words than the row's is outdated, and decides nothing."""
        self.drafts += sum(answer.status == "draft" for answer in record.answers)
        self.discarded += sum(answer.status == "discarded" for answer in record.answers)
        if not record.submitted:
            return
        n = proposal(row)
        if n is None or record.metadata.get("shown") != shown(row, n):
            self.outdated += 1
            return
        decided = decide(row, record.submitted)
        if decided is None:
            self.undecided += 1
            return
        self.incomplete += not record.complete
        self.people |= {answer.user for answer in record.submitted}
        self.decided[row["id"]] = decided

    def summary(self, rows: int, kept: int) -> dict[str, Any]:
        """JSON for the report; kept: rows after the review."""
        alpha, shared, alike = agreement(decided.votes for decided in self.decided.values())
        statuses = Counter(decided.status for decided in self.decided.values())
        ratings = [decided.rating for decided in self.decided.values() if decided.rating is not None]
        return {
            "reviewed": len(self.decided),
            "reviewers": len(self.people),
            "statuses": {**dict(statuses.most_common()), "unreviewed": rows - len(self.decided)},
            "alpha": alpha,
            "answered_by_several": shared,
            "all_alike": alike,
            "edits": sum(len(decided.edits) for decided in self.decided.values()),
            "edits_not_taken": sum(edit != decided.taken for decided in self.decided.values() for edit in decided.edits),
            "fewer_answers_than_asked": self.incomplete,
            "outdated": self.outdated,
            "undecided": self.undecided,
            "drafts": self.drafts,
            "discarded": self.discarded,
            "rating": sum(ratings) / len(ratings) if ratings else None,
            "kept": kept,
        }
