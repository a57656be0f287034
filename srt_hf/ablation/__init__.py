"""The paper's ablations and its small-data setting: from one table of candidates and one student's scores, the rows of every arm.

Nobody asks a teacher, and the student scores once for all arms. An arm is either

- `full`, the published rule: `Selector()`;
- without selection: `original`, `instruction` (the teacher's instruction and its first answer), `response` (the original
  instruction and its reflected answer), `both` (the teacher's instruction and the reflected answer to it). One candidate a row,
  whatever the student thinks of it, so no score is looked at. Left out are the rows whose candidate the teacher failed at
  (`teacher_failed`) or has no instruction or no output (`empty_pair`); none is replaced by another candidate;
- another criterion in both stages: `random`, `perplexity` (lowest loss of the response given the instruction), `coherence`
  (highest cosine similarity of instruction and response), `ifd` (highest), `r_ifd` (lowest). Everything else is as in `full`:
  left out are rows whose response was not reflected and rows whose ifd or r_ifd is missing or not below 1, so that an arm
  differs from `full` in what decides and in nothing else;
- a rung of the ladder, `top-N`: the N % of `full` with the highest ifd, as `srt_hf.top` ranks and rounds (§5.2 of the paper).

Every row that an arm leaves out is counted with its reason (`selection.REASONS`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from srt_hf.ablation.coherence import Coherence, by_coherence, is_installed
from srt_hf.ablation.result import Ablation, Arm
from srt_hf.checks import flag
from srt_hf.errors import ConfigError, DataError
from srt_hf.pipeline import reselect
from srt_hf.report import Report
from srt_hf.result import Recycled
from srt_hf.rows import top
from srt_hf.schema import BOTH, INSTRUCTION, ORIGINAL, RESPONSE, of_origin, row_columns
from srt_hf.selection import Selector, select
from srt_hf.student import Student

if TYPE_CHECKING:
    from datasets import Dataset

LADDER = (1, 2, 3, 5, 10, 30, 50, 70, 100)  # percent of the full arm
_RUNGS = {f"top-{percent}": percent for percent in LADDER}
# The reflections that an arm chooses from, in every row. `full` needs only the winner's response, which selective mode asks for.
_ALL = (INSTRUCTION, RESPONSE, BOTH)
_NEEDS: dict[str, tuple[str, ...]] = {
    "full": (INSTRUCTION,),
    "original": (),
    "instruction": (INSTRUCTION,),
    "response": (RESPONSE,),
    "both": (BOTH,),
    "random": _ALL,
    "perplexity": _ALL,
    "coherence": _ALL,
    "ifd": _ALL,
    "r_ifd": _ALL,
    **dict.fromkeys(_RUNGS, (INSTRUCTION,)),
}
ARMS = tuple(_NEEDS)
_CURE = (
    "Candidates of selective mode have one reflected response a row, and some published ones lack a split: make them with "
    "--mode exhaustive, or name only arms that need no more with --arms."
)


@dataclass(frozen=True)
class Every:
    """No selection: each row's candidate of this origin, of several draws the first that did not fail. For `Dataset.map`.

    A row without one is not kept; its choice is then the original, since a choice is never None.
    """

    origin: str

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row with `candidates` -> choice (index into candidates), origin, kept, reason."""
        candidates = row["candidates"]
        usable = [n for n in of_origin(candidates, self.origin) if not candidates[n]["error"]]
        choice = usable[0] if usable else of_origin(candidates, ORIGINAL)[0]
        chosen = candidates[choice]
        reason = f"{self.origin}_chosen" if usable else "teacher_failed"
        if usable and not all((chosen[name] or "").strip() for name in ("instruction", "output")):
            reason = "empty_pair"
        kept = reason.endswith("_chosen")
        return row_columns(row, {"choice": choice, "origin": chosen["origin"], "kept": kept, "reason": reason})


def ablate(
    candidates: Dataset,
    *,
    student: Student | str | None = None,
    arms: Collection[str] | None = None,
    seed: int = 0,
    coherence_model: str = Coherence.MODEL,
) -> Ablation:
    """The rows of each arm, flat, with what there is to say about them.

    candidates: a table of `srt_hf.load_candidates`, of an exhaustive run or of the paper's authors. student: who scores, once;
        None where the table has scores already (`load_candidates(scores=...)`).
    arms: names of `ARMS`; None for all of them, `coherence` only where sentence-transformers is installed.
    seed: of the arm `random`. coherence_model: a sentence-transformers model, see `Coherence`.

    Raises ConfigError for an arm that is none or cannot be had here, DataError where the candidates lack what an arm needs;
    before anything is scored, but for whether the winners of `full` have a reflected response, which the scores alone tell.
    """
    names = choose_arms(arms)
    _check_candidates(candidates, names)
    coherence = Coherence(coherence_model) if "coherence" in names else None
    recycled = reselect(candidates, student=student)
    _check_one_student(recycled.rows)
    never_asked = recycled.report.reasons.get("not_asked", 0)
    if never_asked and any(name == "full" or name in _RUNGS for name in names):
        raise DataError(
            f"In {never_asked:,} of {len(candidates):,} rows the pair that this student prefers has no reflected response, so "
            "that there is no arm `full`.",
            _CURE,
        )
    rows = coherence.add_to(recycled.rows) if coherence else recycled.rows
    decided = {name: _arm(name, rows, decide) for name, decide in _deciders(seed).items() if name in names}
    full = Arm("full", recycled.dataset, _left_out(recycled.rows))
    rungs = {name: Arm(name, top(full.rows, fraction=percent / 100), {}) for name, percent in _RUNGS.items() if name in names}
    everything = {"full": full, **decided, **rungs}
    report = {
        "rows": len(candidates),
        "student": recycled.report.student,
        "rounding": recycled.report.rounding,
        "candidates": recycled.report.candidates,
        "writers": recycled.report.teacher["writers"],
        "seed": seed,
        "coherence": coherence.about() if coherence else {},
        "versions": recycled.report.versions,
        "made": recycled.report.made,
    }
    return Ablation([everything[name] for name in names], report, recycled.scores, None if never_asked else full)


def choose_arms(names: Collection[str] | None) -> list[str]:
    """The arms of these names in the order of `ARMS`; of None all that can be had here, with a warning for what cannot.

    Raises ConfigError for a name that is none, for no name, and for `coherence` without sentence-transformers.
    """
    if names is None:
        if is_installed():
            return list(ARMS)
        warnings.warn(f"The arm `coherence` is left out. {Coherence.LACKING} {Coherence.INSTALL}", stacklevel=2)
        return [name for name in ARMS if name != "coherence"]
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        problem = f"There is no arm {', '.join(map(repr, unknown))}." if unknown else "No arm is named."
        raise ConfigError(problem, f"Choose from {', '.join(ARMS)}.")
    if "coherence" in names and not is_installed():
        raise ConfigError(Coherence.LACKING, f"{Coherence.INSTALL} Or leave the arm out.")
    return [name for name in ARMS if name in names]


def _deciders(seed: int) -> dict[str, Callable[..., dict[str, Any]]]:
    """Arm -> its decision of a row; `full` and its rungs are decided already."""
    return {
        **{origin: Every(origin) for origin in (ORIGINAL, INSTRUCTION, RESPONSE, BOTH)},
        "random": Selector(rule="random", seed=seed),
        "perplexity": Selector(rule="perplexity"),
        "coherence": by_coherence,
        "ifd": Selector(rule="ifd"),
        "r_ifd": Selector(rule="r_ifd"),
    }


@dataclass(frozen=True)
class _Narrow:
    """Decide a row, and leave no other candidates in it than the original and the choice, without critiques: every arm's table is
    a copy on disk."""

    decide: Callable[..., dict[str, Any]]

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        decision = self.decide(dict(row))
        candidates, scores = row["candidates"], row["scores"]
        places = sorted({of_origin(candidates, ORIGINAL)[0], decision["choice"]})
        values = {
            **decision,
            "choice": places.index(decision["choice"]),
            "candidates": [{**candidates[n], "critique": None} for n in places],
            "scores": [scores[n] for n in places],
        }
        return row_columns(row, values)


def _arm(name: str, rows: Dataset, decide: Callable[..., dict[str, Any]]) -> Arm:
    """The flat rows that a decision keeps, and the reasons of the others."""
    decided = rows.map(_Narrow(decide), desc=f"Arm {name}")
    kept = decided.select([n for n, keep in enumerate(decided["kept"]) if keep])
    flat = Recycled(flag(kept) if len(kept) else kept, Report("candidates", name, select.keep)).dataset
    return Arm(name, flat, _left_out(decided))


def _left_out(decided: Dataset) -> dict[str, int]:
    """Reason -> rows that are not kept for it, the commonest first."""
    reasons = Counter(reason for reason, kept in zip(decided["reason"], decided["kept"], strict=True) if not kept)
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _check_candidates(candidates: Dataset, names: Collection[str]) -> None:
    """Raise DataError where rows lack a reflection that an arm chooses from. One that failed is there, with its error."""
    if "candidates" not in candidates.column_names:
        raise DataError("The dataset has no column candidates.", "Load it with srt_hf.load_candidates.")
    if not len(candidates):
        raise DataError("The dataset of candidates is empty.", "Check the repo and the limit.")
    lacking: Counter[str] = Counter()
    for row in candidates.select_columns(["candidates"]):
        there = {candidate["origin"] for candidate in row["candidates"]}
        lacking.update(origin for origin in _ALL if origin not in there)
    short = [name for name in names if any(lacking[origin] for origin in _NEEDS[name])]
    if short:
        needed = {origin for name in short for origin in _NEEDS[name]}
        counts = ", ".join(f"{lacking[origin]:,} lack `{origin}`" for origin in _ALL if lacking[origin] and origin in needed)
        raise DataError(f"Of {len(candidates):,} rows {counts}, which the arms {', '.join(short)} need.", _CURE)


def _check_one_student(rows: Dataset) -> None:
    """Raise DataError where a proxy scored a part of the rows: it is let decide what is clear by one rule, not by all of them."""
    students = sorted({str(by["student"]) for by in rows["scored_by"]})
    if len(students) > 1:
        raise DataError(f"The scores are of several students: {', '.join(students)}.", "Have one score them: leave --scores out.")
