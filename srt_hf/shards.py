"""A run in parts, without any engine: the rows of one shard, and the folders of all shards made into one result.

    rows, shard = take(prepared, index=0, of=8)       # on each machine; `srt_hf.recycle(rows, ...)`, `shard.mark(recycled)`
    recycled = merge(["shards/0", "shards/1", ...])   # on any machine, without a model

The whole is what one run over all rows makes, row by row: ids are given before the rows are shared out, and what must see all
rows (doubles, every figure of the report) is looked at anew.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from srt_hf.checks import flag
from srt_hf.errors import ConfigError, DataError
from srt_hf.journal import Journal
from srt_hf.published import load_run
from srt_hf.report import NOT_ONE_TURN, Report, measure
from srt_hf.result import Recycled
from srt_hf.schema import TRIPLE

if TYPE_CHECKING:
    from datasets import Dataset

_COUNTED = ("rows", "passes_saved", "sample", "decisions_changed")  # of a proxy; the rest says who it is


@dataclass(frozen=True)
class Shard:
    """What a shard knows of itself and of the whole, for the report (`Report.shard`).

    index: from 0. rows: of all shards together. digest: of their ids and texts in order. left_out: rows of
    the source that were not taken in. settings: options that decide what is
    in the result, by name; they must be the same everywhere.
    """

    index: int
    of: int
    rows: int
    digest: str
    left_out: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def mark(self, recycled: Recycled) -> None:
        """Say in the report of this shard's run which one it is."""
        recycled.report.shard = asdict(self)


def take(
    rows: Dataset, index: int, of: int, settings: Mapping[str, Any] | None = None, left_out: int = 0
) -> tuple[Dataset, Shard]:
    """The rows of shard `index` (from 0) of `of`: neighbours, as `Dataset.shard(contiguous=True)` shares them out.

    rows: all of them, with ids (`sources.prepare`), so that the how-many-th row of a text it is counts over the whole.
    Raises ConfigError where there are fewer rows than shards.
    """
    if len(rows) < of:
        raise ConfigError(f"{len(rows):,} rows are no {of:,} shards.", "Give a smaller --num_shards.")
    shard = Shard(index, of, len(rows), _digest(rows), left_out, dict(settings or {}))
    return rows.shard(num_shards=of, index=index, contiguous=True), shard


def _digest(rows: Dataset) -> str:
    found = hashlib.sha256(b"srt_hf/rows/1\0")
    for row in rows.select_columns(["id", *TRIPLE]):
        found.update(json.dumps([row["id"], *(row[name] or "" for name in TRIPLE)]).encode() + b"\n")
    return found.hexdigest()[:16]


class _Part(NamedTuple):
    """One shard's folder."""

    folder: Path
    rows: Dataset
    report: Report
    shard: Shard


def merge(folders: Sequence[str | Path], journal: Journal | None = None) -> Recycled:
    """What one run over all rows would have made, of the output folders of all its shards, in any order.

    The report is measured anew; requests, student passes and seconds are those of all shards together. journal: where the shards'
    replies are, for `replies.jsonl`. Raises DataError where a folder holds no shard, where two are not of one run (other student,
    rule, mode, teacher, template, revision, source or settings), or where one is missing or there twice.
    """
    from datasets import concatenate_datasets

    parts = sorted(map(_part, folders), key=lambda part: part.shard.index)
    if not parts:
        raise DataError("No shards are named.", "Give the output folders of all shards.")
    for part in parts[1:]:
        _check_same_run(parts[0], part)
    _check_complete(parts)
    rows = concatenate_datasets([part.rows for part in parts])
    if _digest(rows) != parts[0].shard.digest:
        raise DataError("The rows in these folders are not those that the run began with.", "Run the shards again.")
    rows = flag(rows.remove_columns("flags"))
    return Recycled(rows, _report(parts, rows), journal)


def _part(folder: str | Path) -> _Part:
    """Raises DataError where the folder is not one shard's result."""
    if not Path(folder).is_dir():
        raise DataError(f"There is no folder {folder}.", "Give the output folders of all shards.")
    rows, report = load_run(str(folder))
    try:
        return _Part(Path(folder), rows, report, Shard(**report.shard))
    except TypeError as error:
        cure = "A shard is made with --num_shards and --shard_index."
        raise DataError(f"{folder} holds a whole run and no shard of one.", cure) from error


def _check_same_run(one: _Part, other: _Part) -> None:
    """Raise DataError, naming what differs first."""
    ours, theirs = _run_of(one), _run_of(other)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if ours.get(name) != theirs.get(name):
            both = f"{ours.get(name)} in {one.folder}, {theirs.get(name)} in {other.folder}"
            raise DataError(f"These are not shards of one run: {name} is {both}.", "Give the shards of one run.")


def _run_of(part: _Part) -> dict[str, Any]:
    """What all shards of a run have in common, by the name that a complaint gives it."""
    report, shard = part.report, part.shard
    made = report.provenance
    return {
        "num_shards": shard.of,
        "source": made.source,
        "the revision of the source": made.revision,
        "candidates": made.candidates,
        "scores": made.scores,
        "mode": report.mode,
        "rule": report.rule,
        "keep": report.keep,
        "teacher": report.teacher.get("name"),
        "student": report.student.get("student"),
        **{f"the student's {name}": value for name, value in _without(report.student, "student", "passes").items()},
        **{f"the proxy's {name}": value for name, value in _without(report.proxy, *_COUNTED).items()},
        **{f"--{name}": value for name, value in shard.settings.items()},
        "the number of all rows": shard.rows,
        "the digest of all rows": shard.digest,
    }


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _check_complete(parts: Sequence[_Part]) -> None:
    """Raise DataError where a shard is there twice, or not at all. parts: in order."""
    for one, other in pairwise(parts):
        if one.shard.index == other.shard.index:
            both = f"in {one.folder} and in {other.folder}"
            raise DataError(f"Shard {one.shard.index} is there twice: {both}.", "Give each shard once.")
    of = parts[0].shard.of
    missing = sorted(set(range(of)) - {part.shard.index for part in parts})
    if missing:
        numbers = ", ".join(map(str, missing))
        raise DataError(
            f"Of {of:,} shards (0 to {of - 1}) these are missing: {numbers}.", "Give the output folders of all shards."
        )


def _report(parts: Sequence[_Part], rows: Dataset) -> Report:
    reports = [part.report for part in parts]
    first = reports[0]
    whole = Report(first.mode, first.rule, first.keep, provenance=first.provenance)
    whole.left_out = {NOT_ONE_TURN: parts[0].shard.left_out} if parts[0].shard.left_out else {}
    whole.seconds = _added(report.seconds for report in reports)
    whole.student = {**first.student, **_added({"passes": report.student["passes"]} for report in reports)}
    whole.teacher = {**_without(first.teacher, "writers"), **_added(_numbers(report.teacher) for report in reports)}
    if first.proxy:
        whole.proxy = {**first.proxy, **_added({name: report.proxy[name] for name in _COUNTED} for report in reports)}
    if first.rounding:
        whole.rounding = _rounding([report.rounding for report in reports])
    measure(whole, rows)
    costs = [report.cost for report in reports if report.cost is not None]
    whole.cost = sum(costs) if len(costs) == len(reports) else None
    if any(report.versions != first.versions for report in reports):
        warnings.warn("The shards ran on different versions of their packages; the report names the first one's.", stacklevel=3)
    whole.versions = first.versions
    return whole


def _numbers(values: Mapping[str, Any]) -> dict[str, int]:
    return {name: value for name, value in values.items() if isinstance(value, int)}


def _added(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of what has the same name.

    >>> _added([{"a": 1}, {"a": 2, "b": 5}])
    {'a': 3, 'b': 5}
    """
    found: dict[str, Any] = {}
    for one in counts:
        for name, value in one.items():
            found[name] = found.get(name, 0) + value
    return found


def _rounding(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`scoring.check_rounding` of all samples together: the largest differences."""
    measured = [one for one in found if not one["not_measured"]]
    largest = {name: max((one[name] for one in measured if one[name] is not None), default=None) for name in ("nll", "ifd")}
    pairs = sum(one["pairs"] for one in found)
    return {**found[0], **largest, "pairs": pairs, "not_measured": None if measured else found[0]["not_measured"]}
