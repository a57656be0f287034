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
    """The candidate's pair with this person's corrections; None where nothing differs but for what a browser's text field changes
    by itself. A text that was emptied counts as not corrected."""
    texts = [
        _typed(str(answer.values.get(question) or ""), candidate[name] or "")
        for question, name in (("instruction", "instruction"), ("response", "output"))
    ]
    return None if texts == list(_as_shown(candidate)) else Edit(*texts)


def _as_shown(candidate: Mapping[str, Any]) -> Edit:
    return Edit(candidate["instruction"] or "", candidate["output"] or "")


def _typed(given: str, there: str) -> str:
    """What a person made of the text that was there, white space as they typed it."""
    if _plain(given) in ("", _plain(there)):
        return there
    given = given.replace("\r\n", "\n").rstrip("\n")  # the page's editor ends the text with a line
    return given if "\xa0" in there else given.replace("\xa0", " ")


def _plain(text: str) -> str:
    """A text for comparison, without what a browser's text field changes."""
    lines = text.replace("\xa0", " ").replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()


@dataclass
class Decided:
    """What a review decided of one row. votes: what each person said, by the names of the question. edits: the distinct
    corrections, in the order of the answers; taken: the corrected pair that is chosen, if one is, maybe one person's instruction
    and another's response."""

    status: str
    votes: list[str]
    edits: list[Edit] = field(default_factory=list)
    taken: Edit | None = None
    rating: float | None = None

    @property
    def versions(self) -> list[Edit]:
        """All corrected pairs, that which is chosen among them."""
        return list(dict.fromkeys([*self.edits, *([self.taken] if self.taken else [])]))


def decide(row: Mapping[str, Any], answers: Sequence[Answer]) -> Decided | None:
    """What submitted answers decide: the majority, the original where two lead. None where nobody decided anything.

    Of those who accept the recycled pair, more may accept it as it was shown than with corrections; else instruction and response
    are each what most of the correctors made of it, and where two corrections lead, people are divided: the original. Corrections
    of those who did not accept the pair decide nothing.
    """
    n = proposal(row)
    given = [answer for answer in answers if answer.values.get("decision") in (RECYCLED, KEEP, DROP)]
    if n is None or not given:
        return None
    votes = [str(answer.values["decision"]) for answer in given]
    edits = {answer.user: edit_of(answer, row["candidates"][n]) for answer in given}
    decided = Decided(_STATUSES[majority(votes)], votes, rating=_mean_rating(given))
    decided.edits = list(dict.fromkeys(edit for edit in edits.values() if edit))
    corrected = [edits[answer.user] for answer in given if answer.values["decision"] == RECYCLED]
    made = [edit for edit in corrected if edit]
    if decided.status == "accepted" and made and 2 * len(made) >= len(corrected):
        there = _as_shown(row["candidates"][n])
        instruction = _leading([edit.instruction for edit in made], there.instruction)
        output = _leading([edit.output for edit in made], there.output)
        if instruction is None or output is None:
            decided.status = _STATUSES["split"]
        else:
            decided.status, decided.taken = "edited", Edit(instruction, output)
    return decided


def _leading(versions: Sequence[str], there: str) -> str | None:
    """The text that most correctors agree on; None where two corrections lead. One correction wins against as many who left the
    text as it was."""
    kept = versions.count(there)
    (first, most), *others = Counter(text for text in versions if text != there).most_common(2) or [(there, kept)]
    if most < kept:
        return there
    return None if others and others[0][1] == most else first


def _mean_rating(answers: Sequence[Answer]) -> float | None:
    given = [float(answer.values["rating"]) for answer in answers if answer.values.get("rating") is not None]
    return sum(given) / len(given) if given else None


def apply(row: Mapping[str, Any], decided: Decided | None) -> dict[str, Any]:
    """The columns of a row after its review; a row that nobody decided stays as it was."""
    unchanged = {name: row[name] for name in ("candidates", "scores", "choice", "origin", "kept", "reason")}
    n = proposal(row)
    if decided is None or n is None:
        nobody = {"review_status": "unreviewed", "reviewers": 0, "rating": None, "corrections": []}
        return row_columns(row, {**unchanged, **nobody})
    candidates, scores = list(row["candidates"]), list(row["scores"])
    choice = n if decided.status == "accepted" else of_origin(candidates, ORIGINAL)[0]
    if decided.status == "dropped":
        choice = row["choice"]
    for sample, edit in enumerate(decided.versions):
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
        "corrections": [edit._asdict() for edit in decided.versions],
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
    gone: int = 0
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
            "gone": self.gone,
            "drafts": self.drafts,
            "discarded": self.discarded,
            "rating": sum(ratings) / len(ratings) if ratings else None,
            "kept": kept,
        }
