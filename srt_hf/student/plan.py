"""From pairs to the distinct model passes behind the losses that were asked for. Pure Python.

A loss is the mean over the target tokens of one pass. A row's candidates share instructions and responses, so many of their
passes are the same: each is run once.

    nll_y           start + output
    nll_y_given_x   start + template(instruction, input) + output
    nll_x           start + instruction and input, joined without a separator
    nll_x_given_y   start + template("guess the instruction of ‹output›") + instruction and input
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from srt_hf.prompts import guess_instruction
from srt_hf.student.text import Texts

Pair = tuple[str, str, str]  # instruction, input, output


class Pass(NamedTuple):
    """One sequence for the model. Its targets are `ids[start:]`, and `start` is at least 1."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Plan:
    """passes: what to run, each once. wanted: for each pair, loss name -> index into `passes`, or its `schema.MISSING` code."""

    passes: list[Pass]
    wanted: list[dict[str, int | str]]


class _Side(NamedTuple):
    """One target with its two losses, and the code for a target without text."""

    alone: str
    given: str
    empty: str


_Y = _Side("nll_y", "nll_y_given_x", "empty_output")
_X = _Side("nll_x", "nll_x_given_y", "empty_instruction")


def make_plan(pairs: Sequence[Pair], which: Sequence[Sequence[str]], texts: Texts, max_length: int) -> Plan:
    """Plan the losses `which[i]` of `pairs[i]` in a window of `max_length` tokens, start token included."""
    index: dict[Pass, int] = {}
    wanted: list[dict[str, int | str]] = [{} for _ in pairs]
    for side in (_Y, _X):
        rows = [row for row, names in enumerate(which) if side.alone in names or side.given in names]
        if not rows:
            continue
        measured = _side_passes(side, [pairs[row] for row in rows], texts, max_length)
        for row, found in zip(rows, measured, strict=True):
            for name, value in found.items():
                if name in which[row]:
                    wanted[row][name] = value if isinstance(value, str) else index.setdefault(value, len(index))
    return Plan(list(index), wanted)


def _side_passes(side: _Side, pairs: Sequence[Pair], texts: Texts, max_length: int) -> Iterator[dict[str, Pass | str]]:
    """Both passes of each pair's target, or why there is none."""
    targets = [_target(side, pair) for pair in pairs]
    prompts = texts.prompts([_turn(side, pair) for pair in pairs])
    # The boundary is the length of the separately encoded prompt, not a search for the target's text: that one
    # misses where an instruction recurs in its input (as the published code's does).
    prefixes = texts.encode(prompts)
    joined = texts.encode([prompt + target for prompt, target in zip(prompts, targets, strict=True)])
    alone = texts.encode(targets)
    for target, prefix, both, bare in zip(targets, prefixes, joined, alone, strict=True):
        start = len(texts.lead) + len(prefix)
        # The same budget for the text alone as for the text after its prompt, plus its own start token.
        room = max(0, max_length - start + 1)
        code = "too_long" if start >= max_length else side.empty
        given = Pass((*texts.lead, *both)[:max_length], start)
        unconditional = Pass((texts.start, *bare)[:room], 1)
        yield {side.alone: _or_code(unconditional, target, code), side.given: _or_code(given, target, code)}


def _turn(side: _Side, pair: Pair) -> tuple[str, str]:
    instruction, input, output = pair
    return (instruction, input) if side is _Y else (guess_instruction(output), "")


def _target(side: _Side, pair: Pair) -> str:
    instruction, input, output = pair
    return output if side is _Y else instruction + input


def _or_code(found: Pass, target: str, code: str) -> Pass | str:
    return found if target.strip() and len(found.ids) > found.start else code
