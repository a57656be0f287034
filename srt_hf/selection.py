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
from srt_hf.schema import BOTH, INSTRUCTION, ORIGINAL, RESPONSE, of_origin, row_columns


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
# rule -> who wins.
RULES = {
    "paper": "the instruction with the highest ifd, then the response with the lowest r_ifd",
    "ifd": "the highest ifd",
    "r_ifd": "the lowest r_ifd",
    "perplexity": "the lowest perplexity of the response",
    "random": "a draw",
    "all": "what is rewritten",
}
# keep -> which choices are kept.
KEEPS = {
    "reflected": "rewritten responses with ifd and r_ifd below 1",
    "under_one": "any with both below 1",
    "all": "any with text in it",
}
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
    "not_asked": "left out: the candidates hold no reflection of the response of the pair that the student prefers",
    "ifd_not_under_one": "left out: the instruction does not help the student to predict the response (ifd ≥ 1)",
    "r_ifd_not_under_one": "left out: the response does not help the student to guess the instruction (r_ifd ≥ 1)",
    "not_scored": "left out: a score that decides is missing",
    "empty_pair": "left out: the chosen pair has no instruction or no output",
    "reviewed": "decided by a person",
}


@dataclass(frozen=True)
class Selector:
    """Selection for `Dataset.map`; `select` is the paper's.

    rule: who wins a stage, as in `RULES`; all but "paper" are ablations.
    keep: which choices are kept, as in `KEEPS`; "reflected" as published.
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

    def margin(self, row: Mapping[str, Any], stage: str = "all") -> float:
        """How close a call the decision is: the least distance between the best two numbers compared at a stage, or of a number
        of the choice from 1. 0 where one is missing, infinite where no number decides. stage: "instruction" for stage 1 alone."""
        candidates, scores = _parallel(row)
        winner = self._instruct(row, candidates, scores)
        found = [self._lead("instruction", candidates, scores, [_original(candidates), *of_origin(candidates, INSTRUCTION)])]
        if stage != "instruction":
            found.append(self._lead("response", candidates, scores, [winner, *_responses(candidates, winner)]))
            choice = self._respond(row, candidates, scores, winner)
            if self.keep == "under_one" or (self.keep == "reflected" and candidates[choice]["origin"] in (RESPONSE, BOTH)):
                numbers = [_number(scores[choice], name) for name in ("ifd", "r_ifd")]
                found += [0.0 if number is None else abs(1 - number) for number in numbers]
        return min(found)

    def _lead(self, stage: str, candidates: Sequence[Any], scores: Sequence[Any], contestants: Sequence[int]) -> float:
        """The distance between the best two contestants, of whom the first cannot have failed."""
        criterion = _RULES[self.rule][STAGES.index(stage)]
        usable = [n for n in contestants if not candidates[n].get("error")]
        if stage not in self.stages or isinstance(criterion, _Draw) or len(usable) < 2:
            return math.inf
        numbers = [_number(scores[n], criterion.number) for n in usable]
        known = sorted(criterion.sign * number for number in numbers if number is not None)
        return known[-1] - known[-2] if len(known) == len(numbers) else 0.0

    def deciding_scores(self, stage: str) -> set[str]:
        """The numbers that a stage compares, of incumbent and challengers: "ifd", "r_ifd" or "nll_y_given_x"."""
        criterion = _RULES[self.rule][STAGES.index(stage)]
        return {criterion.number} if isinstance(criterion, _Criterion) and stage in self.stages else set()

    def _instruct(self, row: Mapping[str, Any], candidates: Sequence[Any], scores: Sequence[Any]) -> int:
        challengers = of_origin(candidates, INSTRUCTION)
        return self._contest(row, candidates, scores, "instruction", _original(candidates), challengers)

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
            return "teacher_failed" if of_origin(candidates, _reflected(candidates, choice)) else "not_asked"
        decides = self.deciding_scores("response")
        if decides and not any(_number(scores[n], name) is not None for n in challengers for name in decides):
            return "not_scored"
        return "original_preferred" if candidates[choice]["origin"] == ORIGINAL else "response_not_improved"


select = Selector()


def _original(candidates: Sequence[Any]) -> int:
    found = of_origin(candidates, ORIGINAL)
    if not found:
        raise DataError("A row has no candidate of origin `original`.")
    return found[0]


def _responses(candidates: Sequence[Any], winner: int) -> list[int]:
    """The reflected responses to the winner's instruction; with several draws, those of the other pairs are no challengers."""
    asked = candidates[winner]["instruction"]
    return [n for n in of_origin(candidates, _reflected(candidates, winner)) if candidates[n]["instruction"] == asked]


def _reflected(candidates: Sequence[Any], winner: int) -> str:
    """The origin of a reflected response to the winner's instruction."""
    return RESPONSE if candidates[winner]["origin"] == ORIGINAL else BOTH


def _parallel(row: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    absent = [name for name in ("candidates", "scores") if name not in row]
    if absent:
        raise DataError(f"The rows have no column {' and '.join(absent)}.", "Reflect and score them first.")
    if row["candidates"] and not isinstance(row["candidates"][0], Mapping):
        raise DataError("This is a batch of rows, and each row is decided alone.", "Map it without batched=True.")
    if len(row["candidates"]) != len(row["scores"]):
        raise DataError(f"A row has {len(row['candidates'])} candidates but {len(row['scores'])} scores.", "Score it again.")
    return row["candidates"], row["scores"]


def _number(score: Mapping[str, Any], name: str) -> float | None:
    """A score's number, or None where there is none: a NaN is not "not improved", it is no measurement."""
    value = score.get(name)
    return value if value is not None and math.isfinite(value) else None


def _coin(seed: int, id: str, stage: str) -> bool:
    return hashlib.sha256(f"srt_hf/random/1\0{seed}\0{stage}\0{id}".encode()).digest()[0] % 2 == 1
