"""Scoring by decisions: only the losses that a stage needs and, with a proxy, by the student only where it is a close call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from srt_hf.errors import StudentError
from srt_hf.schema import COUNTS, DECISION, INSTRUCTION, NLLS, ORIGINAL, SCORED_COLUMNS, TRIPLE, batch_columns, of_origin
from srt_hf.selection import Selector
from srt_hf.student import Student, as_score

if TYPE_CHECKING:
    from datasets import Dataset

# number of a score -> the losses that it is made of
_BEHIND = {"ifd": ("nll_y", "nll_y_given_x"), "r_ifd": ("nll_x", "nll_x_given_y"), "nll_y_given_x": ("nll_y_given_x",)}
BATCH = 128  # rows a map batch: many passes in common, few enough for the progress bar to move
_SAMPLE = 200  # rows of the proxy's that the student scores too, evenly spaced
_ROUNDED_SAMPLE = 32  # rows whose choice is scored in float32 too, evenly spaced


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
        rows = _rows(batch)
        for row in rows:
            known = row.get("scores") or []
            row["scores"] = [*known, *(as_score({}) for _ in range(len(row["candidates"]) - len(known)))]
        self._measure(rows, self._compared)
        if self.stage == "response":
            self._measure(rows, self._chosen)
        # Once for each original: as soon as its ifd is known.
        if (self.stage == "instruction") == ("ifd" in self.selector.deciding_scores("instruction")):
            self.student.watch_originals([row["candidates"] for row in rows], [row["scores"] for row in rows])
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
        originals = of_origin(candidates, ORIGINAL)
        if self.stage == "instruction":
            return dict.fromkeys([*originals, *of_origin(candidates, INSTRUCTION)], names)
        challenger = len(candidates) - 1  # reflect_response appended it
        return {row["choice"]: names, challenger: names, **dict.fromkeys(originals, NLLS)}

    def _chosen(self, row: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
        return {self.selector(row)["choice"]: NLLS}


@dataclass(frozen=True)
class Cascade:
    """Scoring for one stage, for `map(batched=True)`: by `proxy`, and by `student` where the proxy's numbers decide by less
    than `margin`.

    stage: "instruction" or "response" of selective mode, or "all". A row belongs to one of the two, whose scores all of it are,
    as its `scored_by` says. A row that comes to the student after the response reflection is scored from the start; where the
    student would have had another instruction's response reflected, it stays the proxy's.
    """

    proxy: Student
    student: Student
    selector: Selector
    margin: float
    stage: str

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        rows = _rows(batch)
        own = self.student.scored_by()
        theirs = [row for row in rows if row.get("scored_by") != own]
        _add(theirs, self.proxy, self.selector, self.stage)
        close = [row for row in theirs if self.selector.margin(row, self.stage) < self.margin]
        anew = [{name: value for name, value in row.items() if name not in SCORED_COLUMNS} for row in close]
        if self.stage == "response":
            _add(anew, self.student, self.selector, "instruction")
            same = [self.selector.instruction_winner(row)["choice"] == row["choice"] for row in anew]
            close, anew = ([row for row, stays in zip(some, same, strict=True) if stays] for some in (close, anew))
        _add([*(row for row in rows if row.get("scored_by") == own), *anew], self.student, self.selector, self.stage)
        for row, scored in zip(close, anew, strict=True):
            row |= scored
        return batch_columns(batch, {name: [row[name] for row in rows] for name in SCORED_COLUMNS})


def _add(rows: list[dict[str, Any]], student: Student, selector: Selector, stage: str) -> None:
    """Let a student score these rows for a stage, in one batch, in place."""
    if not rows:
        return
    columns = _scorer(student, selector, stage)({name: [row[name] for row in rows] for name in rows[0]})
    for n, row in enumerate(rows):
        row |= {name: columns[name][n] for name in SCORED_COLUMNS}


def _scorer(student: Student, selector: Selector, stage: str) -> Callable[..., Any]:
    return student.score_candidates if stage == "all" else StagedScorer(student, selector, stage)


def _rows(batch: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


@dataclass(frozen=True)
class Scoring:
    """Who scores a run, and for which decisions."""

    student: Student
    selector: Selector
    proxy: Student | None = None
    margin: float = 0.0

    def load(self) -> None:
        """Load the models, so that whatever is wrong with one shows at once."""
        self.student.load()
        if self.proxy:
            self.proxy.load()

    def scorer(self, stage: str) -> Callable[..., Any]:
        """What scores a batch of rows, for `map(batched=True, batch_size=BATCH)`, at a stage: "instruction" or "response" of
        selective mode, or "all"."""
        if self.proxy:
            return Cascade(self.proxy, self.student, self.selector, self.margin, stage)
        return _scorer(self.student, self.selector, stage)

    def run(self, rows: Dataset, stage: str, description: str) -> Dataset:
        """Score a dataset's candidates for a stage, as `scorer` says."""
        return rows.map(self.scorer(stage), batched=True, batch_size=BATCH, desc=description)


# Passes of a row's first stage: both responses, alone and after their instruction.
_FIRST_STAGE = 4
# loss -> the texts that its pass is made of
_TEXTS = {"nll_y": ("output",), "nll_x": ("instruction", "input")}


def _passes(row: Mapping[str, Any]) -> int:
    """How many different passes are behind a row's scores."""
    pairs = zip(row["candidates"], row["scores"], strict=True)
    measured = [(name, pair) for pair, score in pairs for name in NLLS if score[name] is not None]
    return len({(name, *(pair[text] for text in _TEXTS.get(name, TRIPLE))) for name, pair in measured})


def check_proxy(rows: Dataset, scoring: Scoring, mode: str) -> dict[str, Any]:
    """What the proxy saved and, on a sample of the rows that it decided, what it cost: the report's `proxy`.

    passes_saved: the different passes behind the scores of these rows, less those that the student ran for rows that then stayed
    the proxy's. decisions_changed: rows of the sample whose choice or `kept` the student's own scores change.
    """
    student, proxy = scoring.student, scoring.proxy
    assert proxy is not None
    own = proxy.scored_by()
    theirs = _scored_by(rows, own)
    sample = rows.select(_evenly(theirs, _SAMPLE))
    plain = Scoring(student, scoring.selector)
    again = sample.remove_columns([*SCORED_COLUMNS, *DECISION])
    if mode != "selective":
        again = plain.run(again, "all", "Student checks the proxy")
    else:
        again = plain.run(again, "instruction", "Student checks the proxy's instructions")
        again = again.map(scoring.selector.instruction_winner)
        again = plain.run(again, "response", "Student checks the proxy's responses")
    before = zip(sample["choice"], sample["kept"], strict=True)
    after = ((decision["choice"], decision["kept"]) for decision in map(scoring.selector, again))
    saved = 0
    for row in rows.select(theirs):
        handed_back = scoring.selector.margin(row) < scoring.margin
        saved += _passes(row) - handed_back * _FIRST_STAGE
    return {
        **own,
        "margin": scoring.margin,
        "rows": len(theirs),
        "passes_saved": saved,
        "sample": len(sample),
        "decisions_changed": sum(one != other for one, other in zip(before, after, strict=True)),
    }


def check_rounding(rows: Dataset, student: Student) -> dict[str, Any]:
    """How far a 16-bit student's numbers are from float32's, on the choices of a sample of rows: the report's `rounding`.

    nll: the largest difference of a mean loss, nats per token; ifd: of an ifd or r_ifd; pairs: that have such numbers. Where the
    model cannot be had in float32 both are None and `not_measured` says why: the run is done, and must not fail for this.
    """
    own = student.scored_by()
    found: dict[str, Any] = {"dtype": own["dtype"], "pairs": 0, "nll": None, "ifd": None, "not_measured": None}
    sample = rows.select(_evenly(_scored_by(rows, own), _ROUNDED_SAMPLE))
    twin = student.in_float32() if len(sample) else None
    if isinstance(twin, str) or twin is None:
        return {**found, "not_measured": twin or "the student decided no row"}
    chosen = [(row["candidates"][row["choice"]], row["scores"][row["choice"]]) for row in sample]
    pairs = [tuple(candidate[text] for text in TRIPLE) for candidate, _ in chosen]
    try:
        exact: list[dict[str, Any]] = [{**as_score(losses)} for losses in twin.nlls(pairs)]
    except StudentError:  # its words name local folders, and a report goes to the Hub
        return {**found, "not_measured": "it could not be run in float32"}
    both = [(score, other) for (_, score), other in zip(chosen, exact, strict=True)]
    differences = {
        what: [abs(one[name] - other[name]) for one, other in both for name in names if None not in (one[name], other[name])]
        for what, names in (("nll", NLLS), ("ifd", ("ifd", "r_ifd")))
    }
    counted = sum(any(None not in (one[name], other[name]) for name in NLLS) for one, other in both)
    return {**found, "pairs": counted, **{what: max(values, default=None) for what, values in differences.items()}}


def _scored_by(rows: Dataset, whom: Mapping[str, Any]) -> list[int]:
    return [n for n, by in enumerate(rows["scored_by"]) if by == whom]


def _evenly(places: list[int], most: int) -> list[int]:
    """At most `most` of them, evenly spaced."""
    size = min(most, len(places))
    return [places[n * len(places) // size] for n in range(size)]
