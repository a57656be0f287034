"""lm-eval's numbers as metrics, and as a table: the Open LLM Leaderboard's beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from srt_hf.evaluation.results import Metric, number


class Task(NamedTuple):
    """A task as it is measured. few_shot: examples in the prompt, metric: lm-eval's; None for the task's own."""

    name: str
    few_shot: int | None = None
    metric: str | None = None


PAPER_TASKS = {
    "ARC": Task("arc_challenge", 25, "acc_norm"),
    "HellaSwag": Task("hellaswag", 10, "acc_norm"),
    "MMLU": Task("mmlu", 5, "acc"),
    "TruthfulQA": Task("truthfulqa_mc2", 0, "acc"),
}
# Model -> average, then the tasks in the order above; percent (paper, main results and the small-data setting).
PAPER = {
    "Alpaca 7B": (50.21, 42.65, 76.91, 41.73, 39.55),
    "WizardLM 7B": (54.18, 51.60, 77.70, 42.70, 44.70),
    "sRecycled Alpaca 7B": (56.05, 54.01, 78.07, 46.69, 45.41),
    "sRecycled WizardLM 7B": (56.79, 54.78, 77.86, 45.63, 48.91),
    "sRecycled WizardLM 13B": (60.22, 59.73, 80.15, 55.64, 45.37),
    "sRecycled WizardLM 7B, 2 %": (57.80, 54.69, 78.80, 47.00, 50.70),
}
# Metrics of lm-eval that are a share of 1 in every task, and shown in percent. Others stay on its scale (f1 has either).
_SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
_SCALES = "Percent where it says so, else on lm-eval's own scale."
_SURE = 1.96  # standard errors on either side that hold 95 %


def metrics_of(task: Task, measured: Mapping[str, Any], limit: int | None) -> list[Metric]:
    """The numbers of a task; a tag of several tasks has those of each. The paper's group has the plain mean of its parts."""
    rows = measured["results"]
    chosen = {task.name: rows[task.name]} if task.name in rows else rows
    if task.metric and task.name not in measured["parts"]:
        chosen = {task.name: _plain_mean([rows[part] for part in measured["parts"]], f"{task.metric},none")}
    return [
        _metric(dataset, key, row, limit)
        for dataset, row in chosen.items()
        for key in sorted(row)
        if "_stderr," not in key and task.metric in (None, key.partition(",")[0])
    ]


def _plain_mean(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, float | None]:
    """The mean of the rows' numbers, each weighing the same, and its standard error: their errors are independent."""
    of_error = key.replace(",", "_stderr,")
    values, errors = ([_number(row.get(one)) for row in rows] for one in (key, of_error))
    known = [value for value in values if value is not None]
    sure = [error for error in errors if error is not None]
    return {
        key: sum(known) / len(known) if len(known) == len(rows) else None,
        of_error: math.hypot(*sure) / len(sure) if len(sure) == len(rows) else None,
    }


def _metric(dataset: str, key: str, row: Mapping[str, Any], limit: int | None) -> Metric:
    kind, _, filter = key.partition(",")
    scale, unit = (100, " (%)") if kind in _SHARES else (1, "")
    name = kind + unit + ("" if filter == "none" else f", {filter}") + (f", first {limit}" if limit else "")
    value, error = (_number(row.get(one)) for one in (key, f"{kind}_stderr,{filter}"))
    return Metric(
        dataset,
        name,
        None if value is None else scale * value,
        None if value is None or error is None else (scale * (value - _SURE * error), scale * (value + _SURE * error)),
    )


def _number(value: Any) -> float | None:
    """lm-eval writes "N/A" for what it does not know, and NaN where there was nothing to average."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def average(metrics: Sequence[Metric], limit: int | None) -> Metric:
    """The mean of the paper's four tasks, whose errors are independent of each other; None where one is not known."""
    name = "average (%)" + (f", first {limit}" if limit else "")
    values = [metric.value for metric in metrics if metric.value is not None]
    if len(values) < len(metrics):
        return Metric("open_llm_leaderboard", name, None)
    mean = sum(values) / len(values)
    halves = [(metric.interval[1] - metric.interval[0]) / 2 for metric in metrics if metric.interval]
    half = math.hypot(*halves) / len(metrics)
    interval = (mean - half, mean + half) if len(halves) == len(metrics) else None
    return Metric("open_llm_leaderboard", name, mean, interval)


def beside_the_paper(metrics: list[Metric], name: str) -> dict[str, Any]:
    """Head, lines and notes of the table: the measured model above the paper's."""
    shots = ", ".join(f"{label} {task.few_shot}" for label, task in PAPER_TASKS.items())
    return {
        "head": ["model", "average", *PAPER_TASKS],
        "lines": [
            [name, *map(_shown, metrics)],
            *([f"paper: {model}", *(f"{value:.2f}" for value in values)] for model, values in PAPER.items()),
        ],
        "notes": [
            f"Percent, ± 95 %; examples in the prompt: {shots}; ARC and HellaSwag are acc_norm, TruthfulQA is mc2. "
            "MMLU is the plain mean of its subjects, as on the leaderboard; lm-eval's own weighs them by their questions.",
            "The paper's numbers are of its own students of Llama 2 (arXiv 2402.10110), by the lm-eval of their time.",
        ],
    }


def other_tasks(metrics: list[Metric], measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    shots = {name: found["few_shot"] for name, found in measured.items()}
    lines = [[one.dataset, one.name, number(one)] for one in metrics]
    examples = ", ".join(f"{name} {'its own' if count is None else count}" for name, count in shots.items())
    return {
        "head": ["task", "metric", "value (95 %)"],
        "lines": lines,
        "notes": [f"Examples in the prompt: {examples}. {_SCALES}"],
    }


def _shown(metric: Metric) -> str:
    if metric.value is None:
        return "–"
    return f"{metric.value:.2f}" + (f" ± {metric.interval[1] - metric.value:.2f}" if metric.interval else "")
