"""What a run will cost, before anybody is called: from the lengths of a sample and what teachers usually write, and the passes
that a student would run over it, planned and packed as a run does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from srt_hf.prompts import TEMPLATES, Prompts
from srt_hf.report import Prices, counted, duration, render_table
from srt_hf.rows import Triple, triple
from srt_hf.schema import BOTH, COUNTS, INSTRUCTION, NLLS, ORIGINAL, RESPONSE, TRIPLE
from srt_hf.scoring import BATCH, StagedScorer
from srt_hf.selection import Selector, select
from srt_hf.student import Student
from srt_hf.student.batches import pack, packing_order
from srt_hf.student.plan import Pair, make_plan

if TYPE_CHECKING:
    from datasets import Dataset

_SAMPLE = 1000  # rows, evenly spaced
_BYTES = 4  # UTF-8 bytes of a token: English prose; other scripts need more bytes a letter and about as many a token
# What teachers write, in tokens: an analysis, an instruction that stands alone, and an answer of at least the length that the
# paper reports for recycled Alpaca (346 tokens).
_ANALYSIS, _INSTRUCTION, _ANSWER = 250, 60, 346
_BUDGET = 8192  # tokens of a student's batch


@dataclass(frozen=True)
class Fleet:
    """Who does the work, and how fast: completion tokens a second of one teacher server, tokens a second that one student device
    runs, how many there are of each, and what one costs an hour. A rate of None is unknown."""

    teacher_rate: float | None = None
    teachers: int = 1
    student_rate: float | None = None
    students: int = 1
    teacher_price: float = 0.0
    student_price: float = 0.0

    def teaching(self, completion_tokens: float) -> float:
        """Hours of the teacher's stage."""
        assert self.teacher_rate
        return completion_tokens / self.teacher_rate / self.teachers / 3600

    def hours(self, completion_tokens: float, student_tokens: float) -> tuple[float, float]:
        """Of the teacher's stage and of the student's."""
        assert self.student_rate
        return self.teaching(completion_tokens), student_tokens / self.student_rate / self.students / 3600

    def cost(self, hours: float) -> float:
        """Of all servers and devices for so long."""
        return hours * (self.teachers * self.teacher_price + self.students * self.student_price)


class Scored(NamedTuple):
    """What a student runs for all rows: distinct passes, and their tokens without what several begin with."""

    passes: float
    tokens: float


def estimate(
    rows: Dataset,
    *,
    mode: str,
    prompts: Prompts,
    fleet: Fleet | None = None,
    prices: Prices | None = None,
    structured: bool = False,
    selector: Selector = select,
    overlap: bool = False,
) -> str:
    """A table: calls, tokens and passes, and the time and cost of them where rates or prices are given; with both rates, which of
    the two stages the run waits for, and what one more server or device would change.

    rows: with instruction, input, output. overlap: whether the student scores while the teacher still writes, as on the engine
    ray; else one stage comes after the other.
    """
    fleet = fleet or Fleet()
    count = len(rows)
    sample = [triple(rows[n * count // min(count, _SAMPLE)]) for n in range(min(count, _SAMPLE))]
    # Selective reflects one response a row, the original's or the rewritten pair's: the latter is longer, so the safer guess.
    steps = (INSTRUCTION, RESPONSE, BOTH) if mode == "exhaustive" else (INSTRUCTION, BOTH)
    scale = count / max(1, len(sample))
    prompt, completion = (round(tokens * scale) for tokens in _teacher_tokens(sample, steps, prompts, structured))
    scored = sample[:: max(1, len(sample) // BATCH)][:BATCH]  # as many as are scored together
    found = count_student(scored, mode, selector)
    student = Scored(*(value * count / max(1, len(scored)) for value in found))
    lines = [
        ["rows", f"{count:,}"],
        ["teacher calls", f"{count * len(steps):,}, and a few per cent more for replies that cannot be used"],
        ["prompt tokens", f"about {_rounded(prompt)}"],
        ["completion tokens", f"about {_rounded(completion)}"],
        ["student passes", f"about {_rounded(student.passes)}, {student.passes / max(1, count):.1f} a row"],
        ["student tokens", f"about {_rounded(student.tokens)}"],
        *_times(fleet, completion, student.tokens, overlap),
        ["cost of tokens", f"about {prices.cost(prompt, completion):,.2f}" if prices else "give --price_in and --price_out"],
    ]
    how = f"From {len(sample):,} rows at {_BYTES} bytes a token; a reply is taken to be {_ANALYSIS} tokens of analysis"
    return f"{render_table(['', ''], lines)}\n\n{how} and an answer of at least {_ANSWER}. Nobody was called."


def _times(fleet: Fleet, completion: float, tokens: float, overlap: bool) -> list[list[str]]:
    """The lines on time, on what it costs, and on what to add."""
    if not fleet.teacher_rate:
        return [["time", "give --teacher_rate, completion tokens/s of a server, and --student_rate, tokens/s of a device"]]
    of_teacher = f"{counted(fleet.teachers, 'server')} at {fleet.teacher_rate:,.0f} completion tokens/s"
    if not fleet.student_rate:
        return [
            ["teacher", f"about {_hours(fleet.teaching(completion))}, {of_teacher}"],
            ["student", "give --student_rate, tokens/s of a device"],
        ]
    teaching, scoring = fleet.hours(completion, tokens)
    whole = _whole(teaching, scoring, overlap)
    how = "the slower of the two, which overlap" if overlap else "one after the other"
    slower, slower_hours = ("teacher", teaching) if teaching >= scoring else ("student", scoring)
    lines = [
        ["teacher", f"about {_hours(teaching)}, {of_teacher}"],
        ["student", f"about {_hours(scoring)}, {counted(fleet.students, 'device')} at {fleet.student_rate:,.0f} tokens/s"],
        ["run", f"about {_hours(whole)}, {how}"],
    ]
    if fleet.cost(1):
        lines.append(["cost of the fleet", f"about {fleet.cost(whole):,.2f}, all of it for the whole run"])
    lines.append(["bottleneck", f"the {slower}, {100 * slower_hours / (teaching + scoring):.0f} % of the work's hours"])
    more = [
        ("one more server", replace(fleet, teachers=fleet.teachers + 1)),
        ("one more device", replace(fleet, students=fleet.students + 1)),
    ]
    then = [(_whole(*larger.hours(completion, tokens), overlap), what, larger) for what, larger in more]
    for n, (hours, what, larger) in enumerate(sorted(then, key=lambda one: one[0])):
        cost = f", cost about {larger.cost(hours):,.2f}" if fleet.cost(1) else ""
        lines.append(["add next" if n == 0 else "", f"{what}: about {_hours(hours)}{cost}"])
    return lines


def _whole(teaching: float, scoring: float, overlap: bool) -> float:
    return max(teaching, scoring) if overlap else teaching + scoring


def _teacher_tokens(sample: Iterable[Triple], steps: Sequence[str], prompts: Prompts, structured: bool) -> tuple[float, float]:
    prompt = completion = 0.0
    for instruction, input, output in sample:
        for step in steps:
            messages = prompts.reflection(step, instruction, input, output, structured)
            rewritten = max(0.0, _ANSWER - _tokens(output)) if step == BOTH else 0.0
            prompt += sum(map(_tokens, (turn["content"] for turn in messages))) + rewritten
            answer = max(_ANSWER, _tokens(output))
            completion += _ANALYSIS + answer + (_INSTRUCTION + _tokens(instruction + input) if step == INSTRUCTION else 0)
    return prompt, completion


def count_student(sample: Sequence[Triple], mode: str, selector: Selector = select) -> Scored:
    """What a student would run for these rows together, if no reflection fails. Candidates are texts of the length that teachers
    write, and about half of them win, since what is scored depends on who does."""
    counter = _Counter()
    rows = [_candidates(n, row) for n, row in enumerate(sample)]
    if mode == "exhaustive":
        counter.nlls([tuple(candidate[name] for name in TRIPLE) for row in rows for candidate in row])
        return Scored(counter.passes, counter.tokens)
    score_in_stages(rows, cast(Any, counter), selector)
    return Scored(counter.passes, counter.tokens)


def score_in_stages(rows: Sequence[Sequence[dict[str, Any]]], student: Student, selector: Selector) -> dict[str, list[Any]]:
    """Columns `candidates` and `scores` as selective mode has them: the student scores what the decisions ask for.

    rows: the candidates of each, all four in the order original, instruction, response, both.
    """
    columns: dict[str, Any] = {"candidates": [row[:2] for row in rows]}
    columns |= StagedScorer(student, selector, "instruction")(columns)
    staged = [{"candidates": c, "scores": s} for c, s in zip(columns["candidates"], columns["scores"], strict=True)]
    columns["choice"] = [selector.instruction_winner(row)["choice"] for row in staged]
    columns["candidates"] = [[*row[:2], row[2 + won]] for row, won in zip(rows, columns["choice"], strict=True)]
    return columns | StagedScorer(student, selector, "response")(columns)


def _candidates(n: int, row: Triple) -> list[dict[str, Any]]:
    """Original, instruction, response, both."""
    instruction, input, output = row
    own = {"instruction": instruction, "input": input}
    new = {"instruction": _text(n, INSTRUCTION, _INSTRUCTION + _tokens(instruction + input)), "input": ""}
    answers = {step: _text(n, f"{step} answer", max(_ANSWER, _tokens(output))) for step in (INSTRUCTION, RESPONSE, BOTH)}
    pairs = ((ORIGINAL, own, output), *((step, own if step == RESPONSE else new, answers[step]) for step in answers))
    return [{"origin": origin, **turn, "output": answer, "error": None} for origin, turn, answer in pairs]


def _text(n: int, what: str, tokens: float) -> str:
    """A text of so many tokens that begins as no other does."""
    return f"{n} {what} ".ljust(round(tokens) * _BYTES, ".")


class _Counter:
    """In a student's place: counts what it is asked to run, and answers with losses that say nothing."""

    max_length = 2048  # as the student's default

    def __init__(self) -> None:
        self.passes = self.tokens = 0

    def nlls(self, pairs: Sequence[Any], which: Sequence[Sequence[str]] | None = None) -> list[dict[str, Any]]:
        wanted = which or [NLLS] * len(pairs)
        passes = make_plan(cast("Sequence[Pair]", pairs), wanted, cast(Any, _Texts()), self.max_length).passes
        self.passes += len(passes)
        order = packing_order(passes)
        while order:
            batch = pack(passes, order, _BUDGET)
            self.tokens += batch.size
            order = order[len(batch.members) :]
        counts = dict.fromkeys(COUNTS, 1)
        return [
            {**{name: _loss(name, pair) for name in names}, **counts, "missing": None}
            for pair, names in zip(pairs, wanted, strict=True)
        ]

    def scored_by(self) -> dict[str, Any]:
        return {}

    def watch_originals(self, candidates: Sequence[Any], scores: Sequence[Any]) -> None:
        """Nothing to warn of."""


def _loss(name: str, pair: Sequence[str]) -> float:
    """Between 1 and 2, by chance, and lower where something is given."""
    digest = hashlib.sha256("\0".join((name, *pair)).encode(errors="replace")).digest()
    return digest[0] / 256 + (1 if "given" in name else 2)


class _Texts:
    """In the place of `student.text.Texts`: bytes for tokens, and Vicuna's template, which is of the usual length."""

    start = 0
    lead = (0,)

    def prompts(self, turns: Sequence[tuple[str, str]]) -> list[str]:
        return [TEMPLATES["vicuna"].prompt(instruction, input) for instruction, input in turns]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        coded = [text.encode(errors="replace") for text in texts]
        return [[int.from_bytes(text[at : at + _BYTES], "big") for at in range(0, len(text), _BYTES)] for text in coded]


def _tokens(text: str) -> float:
    return len(text.encode(errors="replace")) / _BYTES


def _hours(hours: float) -> str:
    return duration(3600 * hours)


def _rounded(number: float) -> str:
    """Two significant digits: no more is known."""
    digits = max(0, len(str(round(number))) - 2)
    return f"{round(number, -digits):,.0f}"
