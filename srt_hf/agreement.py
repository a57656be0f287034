"""What several people said of the same thing: what most of them said, and how far they agree. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


def majority(votes: Sequence[str]) -> str:
    """What more than any other was said; "split" where two lead, "unanswered" where nobody said anything.

    >>> majority(["win", "win", "lose"]), majority(["win", "tie", "lose"]), majority([])
    ('win', 'split', 'unanswered')
    """
    ranked = Counter(votes).most_common(2)
    if not ranked:
        return "unanswered"
    return "split" if len(ranked) > 1 and ranked[0][1] == ranked[1][1] else ranked[0][0]


def krippendorff_alpha(ratings: Iterable[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for nominal values (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section C).

    ratings: of each unit the values that it was given, in any order and any number; units with fewer than two are left out.
    1 is perfect agreement, 0 what chance gives. None where there is nothing to compare: no unit
    with two values, or one value only.

    >>> krippendorff_alpha([["a", "a"], ["b", "b"], ["a", "b"], ["b", "b"]])
    0.5333333333333333
    """
    units = [list(unit) for unit in ratings if len(unit) > 1]
    totals = Counter(value for unit in units for value in unit)
    n = sum(totals.values())
    if len(totals) < 2:
        return None
    # Ordered pairs of unlike values: within units (weighted by 1 / (values of the unit − 1)), and among all values.
    within = sum(sum(len(unit) - unit.count(value) for value in unit) / (len(unit) - 1) for unit in units)
    among = sum(total * (n - total) for total in totals.values())
    return 1 - (n - 1) * within / among


def agreement(votes: Iterable[Sequence[str]]) -> tuple[float | None, int, int]:
    """Alpha, how many units several people answered, and in how many of those all said the same."""
    shared = [said for said in votes if len(said) > 1]
    return krippendorff_alpha(shared), len(shared), sum(len(set(said)) == 1 for said in shared)
