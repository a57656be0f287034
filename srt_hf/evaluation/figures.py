"""What a pile of outcomes says: the paper's score, how sure it is, and what the answers' lengths have to do with it. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

JUDGED = ("win", "tie", "lose")
_RESAMPLES = 10_000


def score(wins: int, ties: int, losses: int) -> float | None:
    """(wins − losses) / judged + 1 (the paper's winning score): 1 is even, 2 all won, 0 all lost. None where nothing was judged.

    >>> score(57, 23, 28)
    1.2685185185185186
    """
    judged = wins + ties + losses
    return (wins - losses) / judged + 1 if judged else None


def interval(wins: int, ties: int, losses: int, seed: int = 0) -> tuple[float, float] | None:
    """95 % bootstrap interval of the score over prompts (percentiles of 10,000 resamples). None where nothing was judged, or all
    prompts have one outcome: then every resample is the same, which says nothing of how sure it is.

    Resampling prompts that each won, tied or lost is one multinomial draw of the three counts.
    """
    judged = wins + ties + losses
    if judged == max(wins, ties, losses):
        return None
    shares = np.array([wins, ties, losses]) / judged
    drawn = np.random.default_rng(seed).multinomial(judged, shares, size=_RESAMPLES)  # (resamples, 3)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 2]) / judged + 1, [2.5, 97.5])
    return float(low), float(high)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test: the probability of a split at least as uneven between equals. Ties say nothing.

    >>> sign_test(5, 5), sign_test(0, 0), round(sign_test(57, 28), 4)
    (1.0, 1.0, 0.0022)
    """
    decided, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(decided, n) for n in range(fewer + 1))
    return min(1.0, 2 * tail / 2**decided)


def summary(pairs: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    """One line of the result, of rows with `outcome` and, where there are both answers, `model_words` and `baseline_words`.

    Whatever outcome is none of win, tie, lose is counted under `left_out` by its name, and enters no other number.
    longer_won: of the decided pairs, how many went to the longer answer, and of how many whose lengths differ. model_longer: of
    the judged pairs, in how many the model's answer is the longer one, and of how many whose lengths differ.
    """
    judged = [pair for pair in pairs if pair["outcome"] in JUDGED]
    counts = {name: sum(pair["outcome"] == name for pair in judged) for name in JUDGED}
    wins, ties, losses = counts.values()
    uneven = [pair for pair in judged if pair["model_words"] != pair["baseline_words"]]
    decided = [pair for pair in uneven if pair["outcome"] != "tie"]
    longer = sum((pair["model_words"] > pair["baseline_words"]) == (pair["outcome"] == "win") for pair in decided)
    return {
        "prompts": len(pairs),
        "judged": len(judged),
        **counts,
        "score": score(wins, ties, losses),
        "interval": interval(wins, ties, losses, seed),
        "sign_test": sign_test(wins, losses) if judged else None,
        "model_words": spread(pair["model_words"] for pair in judged),
        "baseline_words": spread(pair["baseline_words"] for pair in judged),
        "longer_won": [longer, len(decided)],
        "model_longer": [sum(pair["model_words"] > pair["baseline_words"] for pair in uneven), len(uneven)],
        "left_out": count(pair["outcome"] for pair in pairs if pair["outcome"] not in JUDGED),
    }


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """Median and mean; None of nothing."""
    found = list(values)
    return {"median": statistics.median(found), "mean": statistics.fmean(found)} if found else None


def count(names: Iterable[str]) -> dict[str, int]:
    """How often each occurs, the most frequent first."""
    return dict(Counter(names).most_common())
