"""IFD and r-IFD from mean losses. Pure floats; a missing loss gives a missing score, never a number."""

from __future__ import annotations

import math


def _perplexity_ratio(conditioned: float | None, alone: float | None) -> float | None:
    if conditioned is None or alone is None:
        return None
    difference = conditioned - alone
    # math.exp overflows past 709; a ratio that large is no measurement either.
    if not math.isfinite(difference) or difference > 700:
        return None
    return math.exp(difference)


def ifd(nll_y_given_x: float | None, nll_y: float | None) -> float | None:
    """Instruction-following difficulty, ppl(y|x) / ppl(y), eq. 3 of the paper: how little the instruction helps.

    >>> ifd(1.0, 1.0)
    1.0
    >>> ifd(None, 1.0) is None
    True
    """
    return _perplexity_ratio(nll_y_given_x, nll_y)


def r_ifd(nll_x_given_y: float | None, nll_x: float | None) -> float | None:
    """Reversed IFD, ppl(x|y') / ppl(x), eq. 8 of the paper: how little the response tells about its instruction.

    >>> round(r_ifd(1.0, 1.5), 4)
    0.6065
    """
    return _perplexity_ratio(nll_x_given_y, nll_x)
