"""The pictures of a run: scores and response lengths before and after, the decisions, the reasons. As PNG, for card and report.

Wide enough for a phone held upright and no wider; told apart by form as well as by colour (Okabe and Ito's palette).
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEFORE, _AFTER, _OTHER, _INK = "#D55E00", "#0072B2", "#888888", "#222222"
_WIDTH = 6.4  # inches
_DOTS = 3_000  # points of the scatter, at most, evenly spaced: more hide each other
_NAMES = {"ifd": "IFD", "r_ifd": "r-IFD"}
_STYLE: dict[str, Any] = {
    "font.size": 12,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.12,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "figure.facecolor": "white",  # also where the page is dark
}


class Plot(NamedTuple):
    """A picture. name: of its file, without suffix. words: what it shows, for those who do not see it."""

    name: str
    title: str
    words: str
    png: bytes


def draw(flat: Dataset, scores: Dataset, reasons: Mapping[str, int]) -> list[Plot]:
    """The pictures of a run's tables: the kept pairs (schema.FLAT_COLUMNS) and the decisions (SCORES_COLUMNS).

    Without kept pairs there is only what can be said of all rows.
    """
    from matplotlib import rc_context

    with rc_context(_STYLE):
        return [plot for plot in _plots(flat, scores, reasons) if plot]


def _plots(flat: Dataset, scores: Dataset, reasons: Mapping[str, int]) -> list[Plot | None]:
    kept = flat.select_columns(["ifd", "r_ifd", "original_ifd", "original_r_ifd"]).to_dict()
    of_all = [_decisions(scores), _reasons(reasons)]
    if not len(flat):
        return of_all
    return [_before_after(kept), _lengths(*(_words(flat, name) for name in ("original_output", "output"))), *of_all]


def _before_after(kept: Mapping[str, list[float | None]]) -> Plot | None:
    """How many kept rows are below a score, before and after, for both scores."""
    sides = {name: (_known(kept[f"original_{name}"]), _known(kept[name])) for name in _NAMES}
    if not all(before and after for before, after in sides.values()):
        return None
    figure, panels = _figure(2)
    said = []
    for axes, (name, values) in zip(panels, sides.items(), strict=True):
        for numbers, label, color, line in zip(values, ("original", "chosen"), (_BEFORE, _AFTER), ("--", "-"), strict=True):
            axes.ecdf(numbers, label=label, color=color, linestyle=line, linewidth=2.2)
        axes.axvline(1, color=_OTHER, linewidth=1)
        low, high = _inner([*values[0], *values[1]])
        axes.set(xlim=(low, high), xlabel=_NAMES[name], ylabel="share of kept rows below")
        _legend(axes)
        said.append(f"{_NAMES[name]} from {statistics.median(values[0]):.2f} to {statistics.median(values[1]):.2f}")
    words = f"Cumulative shares of the kept rows' scores before and after; medians: {', '.join(said)}."
    return Plot("scores", "Scores before and after", words, _png(figure))


def _lengths(before: Sequence[int], after: Sequence[int]) -> Plot:
    """Words in the response, on a logarithmic axis, because a few are very long."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    figure, [axes] = _figure(1)
    both = [max(1, words) for words in (*before, *after)]
    bins = sorted({round(edge) for edge in np.geomspace(min(both), max(both) + 1, 32)})
    axes.hist(np.clip(before, 1, None), bins, label="original", color=_BEFORE, alpha=0.85, hatch="//", edgecolor="white")
    axes.hist(np.clip(after, 1, None), bins, label="chosen", color=_AFTER, histtype="step", linewidth=2.4)
    axes.set(xscale="log", xlabel="words in the response", ylabel="kept rows")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    medians = [f"{statistics.median(lengths):.0f}" for lengths in (before, after)]
    words = f"Length of the kept rows' responses; median {medians[0]} words before, {medians[1]} after."
    return Plot("lengths", "Response length before and after", words, _png(figure))


def _decisions(scores: Dataset) -> Plot | None:
    """Each row's choice by its two scores; below 1 on both is where rows are kept."""
    points = [_point(row) for row in scores.select(_evenly(len(scores)))]
    shown = [(ifd, r_ifd, kept) for ifd, r_ifd, kept in points if ifd is not None and r_ifd is not None]
    if not shown:
        return None
    figure, [axes] = _figure(1, height=5.4)
    (left, right), (low, high) = (_inner([point[axis] for point in shown]) for axis in (0, 1))
    axes.set(xlim=(left, right), ylim=(low, high), xlabel="IFD of the choice", ylabel="r-IFD of the choice")
    axes.axvspan(left, min(1, right), ymax=(min(1, high) - low) / (high - low), color=_AFTER, alpha=0.08)
    axes.axvline(1, color=_OTHER, linewidth=1)
    axes.axhline(1, color=_OTHER, linewidth=1)
    for kept, label, color, mark in ((False, "left out", _BEFORE, "x"), (True, "kept", _AFTER, "o")):
        some = [point for point in shown if point[2] == kept]
        axes.scatter(
            [p[0] for p in some], [p[1] for p in some], s=18, c=color, marker=mark, alpha=0.55, label=label, linewidths=1
        )
    _legend(axes)
    count = sum(kept for *_, kept in shown)
    words = (
        f"Rows by the scores of their choice: {len(shown):,}, of which {count:,} are kept; the shaded corner is below 1 on both."
    )
    return Plot("decisions", "Where the choices lie", words, _png(figure))


def _reasons(reasons: Mapping[str, int]) -> Plot:
    """How many rows each reason has, the commonest on top; what keeps a row looks different."""
    figure, [axes] = _figure(1, height=1.2 + 0.42 * len(reasons))
    names = list(reasons)[::-1]
    bars = axes.barh(names, [reasons[name] for name in names], color=[_AFTER if _keeps(name) else _BEFORE for name in names])
    for bar, name in zip(bars, names, strict=True):
        bar.set_hatch("" if _keeps(name) else "//")
        bar.set_edgecolor("white")
    axes.bar_label(bars, labels=[f" {reasons[name]:,}" for name in names])
    axes.set(xlabel="rows (solid: kept, hatched: left out)")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.18)
    words = "Rows by reason: " + ", ".join(f"{name} {count:,}" for name, count in reasons.items()) + "."
    return Plot("reasons", "Why rows were kept or left out", words, _png(figure))


def _legend(axes: Axes) -> None:
    """Above the panel, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, markerscale=1.6, borderaxespad=0.2)


def _keeps(reason: str) -> bool:
    return reason.endswith("_chosen")


def _point(row: Mapping[str, Any]) -> tuple[float | None, float | None, bool]:
    score = row["scores"][row["choice"]]
    return score["ifd"], score["r_ifd"], row["kept"]


def _words(flat: Dataset, column: str) -> list[int]:
    return [len((row[column] or "").split()) for row in flat.select_columns([column])]


def _evenly(count: int) -> list[int]:
    size = min(count, _DOTS)
    return [n * count // size for n in range(size)]


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _inner(values: Sequence[float]) -> tuple[float, float]:
    """Where nearly all values lie, and 1: single rows far out must not press the rest into a line."""
    import numpy as np

    low, high = np.percentile(values, [0.5, 99.5])
    low, high = min(low, 1.0), max(high, 1.0)
    room = 0.04 * (high - low) or 0.05
    return float(low - room), float(high + room)


def _figure(panels: int, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """Axes one under the other, on a figure that no window and no global state knows of."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height * panels), layout="constrained")
    return figure, list(figure.subplots(panels, squeeze=False)[:, 0])


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=150, metadata={"Software": None})
    return target.getvalue()
