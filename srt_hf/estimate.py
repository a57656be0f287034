"""What a run will cost, before anybody is called: from the lengths of a sample and what teachers usually write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srt_hf.prompts import Prompts
from srt_hf.report import Prices, duration, render_table
from srt_hf.rows import triple
from srt_hf.schema import BOTH, INSTRUCTION, RESPONSE

if TYPE_CHECKING:
    from datasets import Dataset

_SAMPLE = 1000  # rows, evenly spaced
_BYTES = 4.0  # UTF-8 bytes of a token: English prose; other scripts need more bytes a letter and about as many a token
# What teachers write, in tokens: an analysis, an instruction that stands alone, and an answer of at least the length that the
# paper reports for recycled Alpaca (346 tokens).
_ANALYSIS, _INSTRUCTION, _ANSWER = 250, 60, 346


def estimate(
    rows: Dataset,
    *,
    mode: str,
    prompts: Prompts,
    rate: float | None = None,
    prices: Prices | None = None,
    structured: bool = False,
) -> str:
    """A table: calls, prompt and completion tokens, and the time and cost of them where a rate or prices are given.

    rows: with instruction, input, output. rate: completion tokens a second of all servers together.
    """
    count = len(rows)
    sample = [triple(rows[n * count // min(count, _SAMPLE)]) for n in range(min(count, _SAMPLE))]
    # Selective reflects one response a row, the original's or the rewritten pair's: the latter is longer, so the safer guess.
    steps = (INSTRUCTION, RESPONSE, BOTH) if mode == "exhaustive" else (INSTRUCTION, BOTH)
    prompt = completion = 0.0
    for instruction, input, output in sample:
        for step in steps:
            messages = prompts.reflection(step, instruction, input, output, structured)
            rewritten = max(0.0, _ANSWER - _tokens(output)) if step == BOTH else 0.0
            prompt += sum(map(_tokens, (turn["content"] for turn in messages))) + rewritten
            answer = max(_ANSWER, _tokens(output))
            completion += _ANALYSIS + answer + (_INSTRUCTION + _tokens(instruction + input) if step == INSTRUCTION else 0)
    scale = count / max(1, len(sample))
    spent = round(prompt * scale), round(completion * scale)
    lines = [
        ["rows", f"{count:,}"],
        ["teacher calls", f"{count * len(steps):,}, and a few per cent more for replies that cannot be used"],
        ["prompt tokens", f"about {_rounded(spent[0])}"],
        ["completion tokens", f"about {_rounded(spent[1])}"],
        [
            "time",
            f"about {duration(spent[1] / rate)} at {rate:,.0f} completion tokens/s"
            if rate
            else "give --rate, completion tokens/s",
        ],
        ["cost", f"about {prices.cost(*spent):,.2f}" if prices else "give --price_in and --price_out, for a million tokens"],
    ]
    how = f"From {len(sample):,} rows at {_BYTES:g} bytes a token; a reply is taken to be {_ANALYSIS} tokens of analysis"
    return f"{render_table(['', ''], lines)}\n\n{how} and an answer of at least {_ANSWER}. Nobody was called."


def _tokens(text: str) -> float:
    return len(text.encode(errors="replace")) / _BYTES


def _rounded(tokens: int) -> str:
    """Two significant digits: no more is known."""
    digits = max(0, len(str(tokens)) - 2)
    return f"{round(tokens, -digits):,}"
