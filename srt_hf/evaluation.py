"""Pairwise judging by the paper's rule: what a judge's verdict says, and who won over both orders. Pure.

The judge sees two answers and writes two scores from 1 to 10. It is asked in both orders, because judges favour a place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Verdict = tuple[float, float]  # scores of the first and of the second answer shown

_SCORE = r"(?<![\w.,/-])(10(?:\.0+)?|[1-9](?:\.\d+)?)(?:\s*/\s*10)?(?![\w/%-]|[.,]\d)"
_ALONE = re.compile(rf"^[\s*`]*{_SCORE}\s*(?:[,;|&:]|vs\.?|and|to)?\s*{_SCORE}[\s*`.]*$", re.I | re.M)
_NAMED = re.compile(rf"(?:assistant|answer|response|model)\s*#?\s*([12ab])\b[^\d\n]{{0,40}}?{_SCORE}", re.I)


def parse_verdict(text: str) -> Verdict | None:
    """The two scores of a judge's verdict, None where it holds no such pair.

    Read are a line that holds two scores and nothing else ("8 7", "8/10 vs 7"), else one score behind each answer's name
    ("Assistant 1: 8 … Assistant 2: 7"). Numbers in prose and ranges are no scores.

    >>> parse_verdict("8 7.5\\nThe first answer is clearer.")
    (8.0, 7.5)
    >>> parse_verdict("Both are good.") is None
    True
    """
    if alone := _ALONE.search(text):
        return float(alone[1]), float(alone[2])
    named = {name.lower().translate(str.maketrans("ab", "12")): float(score) for name, score in _NAMED.findall(text)}
    return (named["1"], named["2"]) if set(named) == {"1", "2"} else None


def outcome(verdicts: Sequence[Verdict | None]) -> str:
    """ "win", "tie" or "lose" of the first model over both orders; "unparsable" where a verdict is missing, never a tie.

    `verdicts` are (score of the first model, score of the second), the swapped order's already turned back. Better twice, or
    better once and equal once, is a win; equal twice, or better once each, is a tie.

    >>> outcome([(8, 7), (7, 7)]), outcome([(8, 7), (6, 7)]), outcome([(8, 7), None])
    ('win', 'tie', 'unparsable')
    """
    balance = 0
    for verdict in verdicts:
        if verdict is None:
            return "unparsable"
        balance += (verdict[0] > verdict[1]) - (verdict[0] < verdict[1])
    return "win" if balance > 0 else "lose" if balance < 0 else "tie"
