"""The student's decision: scores in, choice and reason out. Pure; needs no model and no network.

Stage 1 puts the rewritten instructions against the original, stage 2 the rewritten responses against the winner. Reads only
`origin` and the pair of a candidate and only the numbers of a score, so rows made by hand work too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from srt_hf.errors import ConfigError, DataError
from srt_hf.schema import BOTH, INSTRUCTION, ORIGINAL, RESPONSE, row_columns


class _Criterion(NamedTuple):
    """How a stage compares: the number that decides, and whether the higher (1) or the lower (-1) one wins."""

    number: str
    sign: int


class _Draw(NamedTuple):
    """No number decides: the challenger wins always, or by a fair draw."""

    fair: bool


_HIGHEST_IFD, _LOWEST_R_IFD = _Criterion("ifd", 1), _Criterion("r_ifd", -1)
_LOWEST_PERPLEXITY = _Criterion("nll_y_given_x", -1)

# rule -> how stage 1 (instruction) and stage 2 (response) compare.
_RULES: dict[str, tuple[_Criterion | _Draw, _Criterion | _Draw]] = {
    "paper": (_HIGHEST_IFD, _LOWEST_R_IFD),
    "ifd": (_HIGHEST_IFD, _HIGHEST_IFD),
    "r_ifd": (_LOWEST_R_IFD, _LOWEST_R_IFD),
    "perplexity": (_LOWEST_PERPLEXITY, _LOWEST_PERPLEXITY),
    "random": (_Draw(fair=True), _Draw(fair=True)),
    "all": (_Draw(fair=False), _Draw(fair=False)),
}
RULES = tuple(_RULES)
KEEPS = ("reflected", "under_one", "all")
STAGES = ("instruction", "response")

# Why a row was kept or not: a closed set, counted on the card.
REASONS = {
    "response_chosen": "kept: the student prefers the teacher's response to the original instruction",
    "both_chosen": "kept: the student prefers the teacher's instruction and its reflected response",
    "instruction_chosen": "kept: the student prefers the teacher's instruction with its first response",
    "original_chosen": "kept: the student prefers the original",
    "original_preferred": "left out: the student prefers the original to what the teacher wrote",
    "response_not_improved": "left out: the new instruction won, but its reflected response did not",
    "teacher_failed": "left out: the teacher gave no usable reflection of the response",
    "ifd_not_under_one": "left out: the instruction does not help the student to predict the response (ifd ≥ 1)",
    "r_ifd_not_under_one": "left out: the response does not help the student to guess the instruction (r_ifd ≥ 1)",
    "not_scored": "left out: a score that decides is missing",
    "empty_pair": "left out: the chosen pair has no instruction or no output",
    "reviewed": "decided by a person",
}


@dataclass(frozen=True)
class Selector:
    """Selection for `Dataset.map`; `select` is the paper's.

    rule: "paper" (stage 1: highest ifd; stage 2: lowest r_ifd), the ablations "ifd", "r_ifd", "perplexity" (lowest
        perplexity of the response given the instruction) and "random", or "all" (no selection: what is rewritten wins).
    keep: "reflected" (as published: ifd and r_ifd of the choice below 1 and its response reflected), "under_one" (the same
        test, any origin) or "all" (every choice with text in it).
    stages: which reflections take part; ("instruction",) or ("response",) alone are the paper's ablations.
    seed: for rule "random", which draws by hash of seed and row id.
    """

    rule: str = "paper"
    keep: str = "reflected"
    stages: tuple[str, ...] = STAGES
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        for name, value, known in (("rule", self.rule, RULES), ("keep", self.keep, KEEPS)):
            if value not in known:
                raise ConfigError(f"There is no {name} {value!r}.", f"Choose from {', '.join(known)}.")
        if not set(self.stages) <= set(STAGES) or not self.stages:
            raise ConfigError(f"There are no stages {self.stages!r}.", f"Choose from {', '.join(STAGES)}.")

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row with `candidates` and `scores` -> choice (index into candidates), origin, kept, reason."""
        candidates, scores = _parallel(row)
        choice = self._respond(row, candidates, scores, self._instruct(row, candidates, scores))
        reason = self._reason(candidates, scores, choice)
        values = {
            "choice": choice,
            "origin": candidates[choice]["origin"],
            "kept": reason.endswith("_chosen"),
            "reason": reason,
        }
        return row_columns(row, values)

    def instruction_winner(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Stage 1 alone -> choice: the pair whose response is to be reflected next (selective mode). For `Dataset.map`."""
        return row_columns(row, {"choice": self._instruct(row, *_parallel(row))})

    def deciding_scores(self, stage: str) -> set[str]:
        """The numbers that a stage compares, of incumbent and challengers: "ifd", "r_ifd" or "nll_y_given_x"."""
        criterion = _RULES[self.rule][STAGES.index(stage)]
        return {criterion.number} if isinstance(criterion, _Criterion) and stage in self.stages else set()

    def _instruct(self, row: Mapping[str, Any], candidates: Sequence[Any], scores: Sequence[Any]) -> int:
        incumbent = next((n for n, candidate in enumerate(candidates) if candidate["origin"] == ORIGINAL), None)
        if incumbent is None:
            raise DataError("A row has no candidate of origin `original`.")
        challengers = [n for n, candidate in enumerate(candidates) if candidate["origin"] == INSTRUCTION]
        return self._contest(row, candidates, scores, "instruction", incumbent, challengers)

    def _respond(self, row: Mapping[str, Any], candidates: Sequence[Any], scores: Sequence[Any], winner: int) -> int:
        return self._contest(row, candidates, scores, "response", winner, _responses(candidates, winner))

    def _contest(
        self,
        row: Mapping[str, Any],
        candidates: Sequence[Any],
        scores: Sequence[Any],
        stage: str,
        incumbent: int,
        challengers: Sequence[int],
    ) -> int:
        """The best of the list; strict, so that ties keep whoever came first, the incumbent before all."""
        if stage not in self.stages:
            return incumbent
        criterion = _RULES[self.rule][STAGES.index(stage)]
        usable = [n for n in challengers if not candidates[n].get("error")]
        if isinstance(criterion, _Draw):
            take = bool(usable) and (not criterion.fair or _coin(self.seed, str(row.get("id")), stage))
            return usable[0] if take else incumbent
        name, sign = criterion
        best = incumbent
        for n in usable:
            challenge, held = _number(scores[n], name), _number(scores[best], name)
            if challenge is not None and (held is None or sign * challenge > sign * held):
                best = n
        return best

    def _reason(self, candidates: Sequence[Any], scores: Sequence[Any], choice: int) -> str:
        chosen, origin = candidates[choice], candidates[choice]["origin"]
        if not (chosen["instruction"] or "").strip() or not (chosen["output"] or "").strip():
            return "empty_pair"
        if self.keep == "all":
            return f"{origin}_chosen"
        if self.keep == "reflected" and origin in (ORIGINAL, INSTRUCTION):
            return self._why_not_reflected(candidates, scores, choice)
        for name in ("ifd", "r_ifd"):
            value = _number(scores[choice], name)
            if value is None:
                return "not_scored"
            if value >= 1:
                return f"{name}_not_under_one"
        return f"{origin}_chosen"

    def _why_not_reflected(self, candidates: Sequence[Any], scores: Sequence[Any], choice: int) -> str:
        """The reason of a choice whose response is not a reflected one: failed, not scored, or not preferred."""
        challengers = [n for n in _responses(candidates, choice) if not candidates[n].get("error")]
        if "response" in self.stages and not challengers:
            return "teacher_failed"
        decides = self.deciding_scores("response")
        if decides and not any(_number(scores[n], name) is not None for n in challengers for name in decides):
            return "not_scored"
        return "original_preferred" if candidates[choice]["origin"] == ORIGINAL else "response_not_improved"


select = Selector()


def _responses(candidates: Sequence[Any], winner: int) -> list[int]:
    """The reflected responses to the winner's instruction; with several draws, those of the other pairs are no challengers."""
    origin = RESPONSE if candidates[winner]["origin"] == ORIGINAL else BOTH
    asked = candidates[winner]["instruction"]
    return [n for n, c in enumerate(candidates) if c["origin"] == origin and c["instruction"] == asked]


def _parallel(row: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    absent = [name for name in ("candidates", "scores") if name not in row]
    if absent:
        raise DataError(f"The rows have no column {' and '.join(absent)}.", "Reflect and score them first.")
    if len(row["candidates"]) != len(row["scores"]):
        raise DataError(f"A row has {len(row['candidates'])} candidates but {len(row['scores'])} scores.", "Score it again.")
    return row["candidates"], row["scores"]


def _number(score: Mapping[str, Any], name: str) -> float | None:
    """A score's number, or None where there is none: a NaN is not "not improved", it is no measurement."""
    value = score.get(name)
    return value if value is not None and math.isfinite(value) else None


def _coin(seed: int, id: str, stage: str) -> bool:
    return hashlib.sha256(f"srt_hf/random/1\0{seed}\0{stage}\0{id}".encode()).digest()[0] % 2 == 1
