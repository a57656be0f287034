"""The judge's verdict and the paper's pairwise rule."""

from __future__ import annotations

import pytest

from srt_hf.evaluation import outcome, parse_verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8 7", (8, 7)),
        ("8, 7\nBecause …", (8, 7)),
        ("**9.5 6**", (9.5, 6)),
        ("8/10 vs 7", (8, 7)),
        ("10 1", (10, 1)),
        ("The first is better in 3 of 4 ways.\n\n8 6", (8, 6)),
        ("Assistant 1: 8\nAssistant 2: 7", (8, 7)),
        ("I give Assistant 1 a score of 8/10, while Answer B gets 6/10.", (8, 6)),
        ("", None),
        ("Both are good.", None),
        ("8", None),
        ("7-8 6-7", None),
        ("80 70", None),
        ("0 5", None),
        ("Assistant 1: 8", None),
        ("I counted 3 errors in 5 lines.", None),
    ],
)
def test_verdicts(text: str, expected: tuple[float, float] | None) -> None:
    assert parse_verdict(text) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (1, 1, "win"),
        (1, 0, "win"),
        (0, 1, "win"),
        (0, 0, "tie"),
        (1, -1, "tie"),
        (-1, 1, "tie"),
        (-1, 0, "lose"),
        (0, -1, "lose"),
        (-1, -1, "lose"),
    ],
)
def test_all_nine_outcomes(first: int, second: int, expected: str) -> None:
    assert outcome([(5 + first, 5), (5 + second, 5)]) == expected


def test_fault_10_an_unparsable_verdict_is_no_tie() -> None:
    """The published judge script counts a verdict that it cannot read as equal scores."""
    assert parse_verdict("I would rather not say.") is None
    assert outcome([(8, 7), parse_verdict("I would rather not say.")]) == "unparsable"
    assert outcome([None, None]) == "unparsable"
