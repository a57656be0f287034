"""The blind study before annotators in Argilla, and the votes that they submit there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from srt_hf.annotation import Answered, Place, escaped, read, send
from srt_hf.errors import AnnotationError, DataError
from srt_hf.evaluation.sheets import shortened
from srt_hf.report import counted

if TYPE_CHECKING:
    from argilla import Dataset, Record, Settings

_CHOICES = {"a": "A is better", "b": "B is better", "tie": "Tie"}
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere"
_CELL = f"vertical-align:top;padding:4px 8px;border:1px solid rgba(128,128,128,.4);{_TEXT}"
_EMPTY = "<i>(this answer is empty)</i>"
_GUIDELINES = """# What you see

Each record is a question and two answers to it, from two sources. Which of them stands as A was drawn anew for each record.

# What you are asked

**Which answer is better?** Weigh these together:

- **Helpfulness**: it does what the question asks for.
- **Relevance**: it keeps to the question.
- **Accuracy**: what it says is right. Look up what you do not know.
- **Level of detail**: as much as the question needs, neither less nor more.

Choose the better one even where it is better by little, and *Tie* where you see no difference, be both good or both bad. Let
neither the order nor the mere length decide.

**Comment** is for what the choice cannot say. It is kept, and not counted.

# Good to know

- Answers are shown letter by letter: `**` and `#` are what was written, not how it was meant to look.
- Only what you *submit* is counted, no draft. *Discard* what you cannot judge.
- You can come back to what you have submitted and change it.
- Please judge alone; how far annotators agree is part of the result."""


class Votes(NamedTuple):
    """What was submitted, and what was not counted. choices: by (annotator, pair) "a", "b" or "tie"; an annotator is
    "argilla/" and the user's id on the server. comments: by the same. drafts, discarded: answers. incomplete: pairs that have
    fewer submitted answers than the dataset asks for."""

    choices: dict[tuple[str, str], str]
    comments: dict[tuple[str, str], str]
    drafts: int
    discarded: int
    incomplete: int

    def notes(self) -> list[str]:
        """Sentences about what is missing; none where nothing is.

        >>> Votes({}, {}, 1, 0, 2).notes()
        ['Not counted, of the answers in Argilla: 1 draft, 0 discarded.', 'Pairs with fewer answers there than asked for: 2.']
        """
        notes = []
        if self.drafts or self.discarded:
            drafts = counted(self.drafts, "draft")
            notes.append(f"Not counted, of the answers in Argilla: {drafts}, {self.discarded:,} discarded.")
        if self.incomplete:
            notes.append(f"Pairs with fewer answers there than asked for: {self.incomplete:,}.")
        return notes

    def rows(self, study: str) -> list[dict[str, str]]:
        """For `sheets.write_choices`."""
        return [
            {"study": study, "pair": pair, "annotator": who, "choice": choice, "comment": self.comments[who, pair]}
            for (who, pair), choice in self.choices.items()
        ]


def open_study(place: Place, min_submitted: int) -> Dataset:
    """The dataset of a study, made where there is none; min_submitted: how many annotators each pair needs. Raises as
    `Place.open` does."""
    return place.open(lambda: _settings(min_submitted))


def send_study(dataset: Dataset, place: Place, study: str, rows: Sequence[Mapping[str, str]]) -> int:
    """Send the pairs, and return how many were not there yet. rows: {pair, question, answer_a, answer_b}, as `human.blind` makes
    them. Answers stay as they are. Raises AnnotationError, also where the dataset is of another study."""
    there = {record.id for record in _of_study(dataset, place, study, "Name another with --argilla_dataset.")}
    # Also those that are there: a server that died in between may have them in its database and not in the index of its page.
    send(dataset, (_record(row, study) for row in rows), len(rows), place.url)
    return len({row["pair"] for row in rows} - there)


def read_votes(place: Place, study: str) -> Votes:
    """What annotators submitted. Raises ConfigError, AnnotationError or DataError: no such dataset, or another study's."""
    choices, comments, left_out, incomplete = {}, {}, Counter[str](), 0
    for record in _of_study(place.find(), place, study, "Give the key of that study, or name the dataset of this one."):
        left_out.update(answer.status for answer in record.answers)
        incomplete += not record.complete
        for answer in record.submitted:
            choice = answer.values.get("choice")
            if choice not in _CHOICES:
                raise DataError(f"An answer to {record.id} in {place.dataset} is {choice!r}, none of {', '.join(_CHOICES)}.")
            who = f"argilla/{answer.user}", record.id
            choices[who], comments[who] = str(choice), str(answer.values.get("comment") or "")
    return Votes(choices, comments, left_out["draft"], left_out["discarded"], incomplete)


def _of_study(dataset: Dataset, place: Place, study: str, cure: str) -> list[Answered]:
    """The records, all of which must be of this study."""
    found = list(read(dataset, place.url))
    for record in found:
        if (whose := record.metadata.get("study")) != study:
            other = f"of the study {whose}" if whose else "of no study"
            raise AnnotationError(f"The dataset {place.dataset} on {place.url} is {other}, not of the study {study}.", cure)
    return found


def _settings(min_submitted: int) -> Settings:
    """Fields, question and guidelines; nothing in them tells whose answers they are."""
    import argilla as rg

    return rg.Settings(
        guidelines=_GUIDELINES,
        fields=[
            rg.TextField("question", title="Question", use_markdown=True),
            rg.TextField("answers", title="Answers", use_markdown=True),
        ],
        questions=[
            rg.LabelQuestion("choice", _CHOICES, title="Which answer is better?"),
            rg.TextQuestion("comment", title="Comment", required=False),
        ],
        metadata=[rg.TermsMetadataProperty("study", visible_for_annotators=False)],
        distribution=rg.TaskDistribution(min_submitted=min_submitted),
    )


def _record(row: Mapping[str, str], study: str) -> Record:
    import argilla as rg

    fields = {"question": f'<div style="{_TEXT}">{_shown(row["question"])}</div>', "answers": _side_by_side(row)}
    return rg.Record(id=row["pair"], fields=fields, metadata={"study": study})


def _side_by_side(row: Mapping[str, str]) -> str:
    """Both answers as an HTML table of two columns."""
    cells = "".join(f'<td style="{_CELL}">{_shown(row[name]) or _EMPTY}</td>' for name in ("answer_a", "answer_b"))
    head = "".join(f'<th style="{_CELL};text-align:left">{letter}</th>' for letter in "AB")
    return f'<table style="width:100%;table-layout:fixed;border-collapse:collapse"><tr>{head}</tr><tr>{cells}</tr></table>'


def _shown(text: str) -> str:
    return escaped(shortened(text)) if text.strip() else ""
