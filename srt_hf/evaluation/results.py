"""What an evaluation found: a JSON that later runs are compared with, a table, and a model card's `model-index`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from srt_hf.cli import command, option
from srt_hf.errors import ConfigError, DataError
from srt_hf.evaluation.cards import check_card, model_index, write_card
from srt_hf.evaluation.files import write_whole
from srt_hf.report import render_table, versions

__all__ = [
    "Metric",
    "OutputArguments",
    "Results",
    "check_comparable",
    "compare",
    "model_index",
    "number",
    "write_card",
]

_FORM = 1  # of the file
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Metric:
    """One number. dataset: its test set ("vicuna"); interval: 95 %, low and high. value None: it could not be had."""

    dataset: str
    name: str
    value: float | None
    interval: tuple[float, float] | None = None


@dataclass
class Results:
    """One run of one benchmark.

    benchmark: the subcommand. model: what `Answerer.about` says of the evaluated one. setup: whatever must be equal for two runs
    to be comparable (judge, baseline, the prompts' version, digests of the sets, sampling …); JSON values. metrics: the numbers
    that are compared, and stand in a card's metadata. head, lines: the table that people see, here and on the card. notes:
    sentences below it. details: anything else that is to be kept; JSON values. subject: what tells results of a benchmark apart
    on a card ("vicuna against llama-2-7b"); "" where there is one kind only.
    """

    benchmark: str
    model: dict[str, Any]
    setup: dict[str, Any]
    metrics: list[Metric]
    head: list[str] = field(default_factory=list)
    lines: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    subject: str = ""
    command: str = field(default_factory=command)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    versions: dict[str, str] = field(default_factory=versions)

    def table(self) -> str:
        """The table and the notes as plain text."""
        return "\n".join([render_table(self.head, self.lines), "", *self.notes]).rstrip()

    def save(self, path: str | Path) -> None:
        """Write it as JSON; a file that is there is replaced in one step."""
        write_whole(Path(path), json.dumps({"srt_hf_evaluation": _FORM, **asdict(self)}, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read what `save` wrote. Raises DataError for any other file."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found.pop("srt_hf_evaluation") != _FORM:
                raise ValueError("it is of another version")
            metrics = [Metric(**{**metric, "interval": _pair(metric["interval"])}) for metric in found.pop("metrics")]
            return cls(**found, metrics=metrics)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} holds no results of evaluate.py.", "Give a file that --output wrote.") from error


def _pair(interval: Any) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


@dataclass
class OutputArguments:
    """Where the results go"""

    output: str | None = option(None, "JSON file of the results, for --compare of later runs [SUBCOMMAND.json]")
    compare: str | None = option(None, "results of an earlier run, shown beside these; refused where they are not comparable")
    card: str | None = option(
        None,
        "folder of the model, whose README.md gets the table and the model-index metadata, in place of earlier ones of the same "
        "benchmark, test sets and baseline or references",
    )

    def path(self, benchmark: str) -> Path:
        """The file of the results."""
        return Path(self.output or f"{benchmark}.json")

    def beside(self, benchmark: str, ending: str) -> Path:
        """A further file beside it, such as results.pairs.jsonl for the ending "pairs.jsonl"."""
        path = self.path(benchmark)
        return path.with_name(f"{path.name.removesuffix('.json')}.{ending}")  # run-0.1 and run-0.2 are two runs

    def check(self, benchmark: str, setup: Mapping[str, Any]) -> None:
        """Raise ConfigError or DataError now for what could not be written or compared at the end. Call it before any work."""
        path = self.path(benchmark)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise ConfigError(f"--output {path} cannot be written.", "Name a file in a folder that can be written to.")
        if self.compare:
            check_comparable(Results.load(self.compare), benchmark, setup)
        if self.card:
            check_card(Path(self.card))

    def finish(self, results: Results) -> None:
        """Print the table, save the results, print the comparison where one was asked for, and write on the card."""
        path = self.path(results.benchmark)
        earlier = Results.load(self.compare) if self.compare else None  # before it may be overwritten
        print(results.table())
        results.save(path)
        print(f"\nSaved to {path}.")
        if earlier:
            print(f"\n{compare(earlier, results)}")
        if self.card:
            print(f"\nThe table and its metadata are on {write_card(self.card, results)}.")


def check_comparable(earlier: Results, benchmark: str, setup: Mapping[str, Any]) -> None:
    """Raise DataError that names what differs, where a run of this setup cannot be compared with the earlier one."""
    if earlier.benchmark != benchmark:
        raise DataError(f"The earlier results are of {earlier.benchmark}, these of {benchmark}.", "Compare like with like.")
    there, here = dict(_leaves(earlier.setup)), dict(_leaves(json.loads(json.dumps(setup))))
    unlike = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if unlike:
        said = [f"{name} ({_short(there.get(name))} there, {_short(here.get(name))} here)" for name in unlike[:3]]
        more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        raise DataError(f"The runs cannot be compared, they differ in {', '.join(said)}{more}.", "Evaluate both alike.")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def compare(earlier: Results, later: Results) -> str:
    """Both side by side as a table. Raises DataError that names what differs, where they cannot be compared."""
    check_comparable(earlier, later.benchmark, later.setup)
    before = {(metric.dataset, metric.name): metric for metric in earlier.metrics}
    lines = []
    for metric in later.metrics:
        old = before.get((metric.dataset, metric.name))
        known = old is not None and old.value is not None and metric.value is not None
        change = f"{metric.value - old.value:+.4g}" if known else "–"  # type: ignore[operator, union-attr]
        lines.append([metric.dataset, metric.name, number(old), number(metric), change])
    names = [f"{label}: {results.model.get('name')}, {results.created[:10]}" for label, results in _both(earlier, later)]
    return "\n".join([render_table(["set", "metric", "earlier", "later", "change"], lines), *names])


def _both(earlier: Results, later: Results) -> list[tuple[str, Results]]:
    return [("earlier", earlier), ("later", later)]


def number(metric: Metric | None) -> str:
    """A metric for people, with its interval; a dash where there is none.

    >>> number(Metric("vicuna", "score", 1.25, (1.1, 1.4)))
    '1.25 (1.1 to 1.4)'
    """
    if metric is None or metric.value is None:
        return "–"
    return f"{metric.value:.4g}" + (f" ({metric.interval[0]:.4g} to {metric.interval[1]:.4g})" if metric.interval else "")
