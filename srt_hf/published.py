"""Candidates that exist, for another student to choose from, and scores that exist of them: this tool's own repos and folders,
and the layout that the paper's authors published.

Theirs: aligned splits, each with one struct column `data`, joined by position; a row may be null, and some repos lack a split.
Their scores are such splits too, of {loss: [4], ppl: [4]}.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf import hub
from srt_hf.card import config_names
from srt_hf.errors import ConfigError, DataError
from srt_hf.report import Provenance, Report
from srt_hf.rows import with_ids
from srt_hf.schema import (
    BOTH,
    CANDIDATE,
    CANDIDATES_COLUMNS,
    INSTRUCTION,
    ORIGINAL,
    RESPONSE,
    SCORED_BY,
    SCORED_COLUMNS,
    SCORES_COLUMNS,
    TRIPLE,
    Score,
    features,
)
from srt_hf.sources import load_rows
from srt_hf.student import as_score

if TYPE_CHECKING:
    from datasets import Dataset

# Their splits, and what each holds.
_SPLITS = {"origin": ORIGINAL, "reflect_instruction": INSTRUCTION, "reflect_response": RESPONSE, "reflect_both": BOTH}
# Their losses, in order.
_LOSSES = ("nll_x", "nll_y", "nll_x_given_y", "nll_y_given_x")
_NOBODY = dict.fromkeys(field.name for field in SCORED_BY)
_CURE = (
    "Give a repo or output folder of this tool, which has a config `candidates`, or one with the splits of the paper's authors."
)


def load_candidates(
    source: str,
    revision: str | None = None,
    *,
    scores: str | None = None,
    student: str | None = None,
    limit: int | None = None,
) -> Dataset:
    """The table of candidates (schema.CANDIDATES_COLUMNS) of a Hub repo or output folder, or made of the authors' splits.

    scores: a repo or folder with scores of these candidates that exist, by `student`: the config `<student>-scores` of this tool,
    or one of the authors' sets of losses for their splits. limit: only so many rows, the first ones; the scores may be of these
    alone. The table then has the columns `scores` and `scored_by`, and `srt_hf.reselect` needs no model. Raises DataError where
    something is absent or does not fit together.
    """
    if scores and not student:
        raise ConfigError("Ready scores need the name of the student whose they are.", "Give student too.")
    theirs = _published_splits(source, revision)
    if theirs:
        losses = _published_splits(scores, None) if scores else {}
        rows = from_published(theirs, losses, student)
    else:
        losses, rows = {}, _own_table(source, "candidates", CANDIDATES_COLUMNS, revision)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    return _with_scores(rows, scores, student) if scores and student and not losses else rows


def load_run(source: str, student: str | None = None, revision: str | None = None) -> tuple[Dataset, Report]:
    """The decided rows of a student's run, with candidates and scores, and its report, from a repo or output folder of this tool.

    student: None is the only one that selected there. Raises DataError where there is no such run.
    """
    from datasets import concatenate_datasets

    runs = [run for run in map(readable_report, _report_paths(source, revision)) if run]
    names = [str(run.student.get("student")) for run in runs]
    if not runs:
        raise DataError(f"{source} holds no report of this tool.", "Name a repo or folder that recycle_and_push.py has written.")
    if len(runs) > 1 if student is None else student not in names:
        what = f"{student} has not selected in {source}" if student else f"Several students have selected in {source}"
        raise DataError(f"{what}.", f"Name one of {', '.join(names)}.")
    report = runs[0 if student is None else names.index(student)]
    config = config_names(str(report.student["student"]))[2]
    rows, scored = (
        _own_table(source, name, columns, revision)
        for name, columns in (("candidates", CANDIDATES_COLUMNS), (config, SCORES_COLUMNS))
    )
    if scored["id"][:] != rows["id"][:]:
        raise DataError(f"The config {config} of {source} is not of its candidates: the ids are others.")
    # What people made of the run stays where it is; whoever saves the run elsewhere has not got it.
    return concatenate_datasets([rows, scored.remove_columns("id")], axis=1), replace(report, review={})


def _own_table(source: str, config: str, columns: Sequence[str], revision: str | None, cure: str = _CURE) -> Dataset:
    """A table of this tool's own layout."""
    try:
        rows = load_rows(source, name=config, revision=revision)
    except DataError as error:
        raise DataError(error.message, cure) from error
    absent = [name for name in columns if name not in rows.column_names]
    if absent:
        raise DataError(f"The config {config} of {source} lacks {', '.join(absent)}.", cure)
    return rows.select_columns(list(columns))


def _with_scores(candidates: Dataset, source: str, student: str) -> Dataset:
    """Candidates with the scores that a student's run has left, row by row the same."""
    from datasets import concatenate_datasets

    config = config_names(student)[2]
    cure = f"The scores of --student {student} would be its config {config}: name the student whose scores it has."
    scored = _own_table(source, config, ("id", *SCORED_COLUMNS), None, cure)
    scored = scored.select(range(min(len(candidates), len(scored))))
    if scored["id"][:] != candidates["id"][:]:
        raise DataError(f"The scores of {source} are not of these candidates: their ids are others.")
    return concatenate_datasets([candidates, scored.select_columns(list(SCORED_COLUMNS))], axis=1)


def candidates_made(
    source: str, revision: str | None = None, *, scores: str | None = None, command: str | None = None
) -> Provenance:
    """What a card says of rows that were selected from the candidates of `source`: where those came from, by the report of the
    run that made them, else the source itself."""
    here = Path(source).exists()
    runs = [run for run in map(readable_report, _report_paths(source, revision)) if run]
    first = next((run for run in runs if run.mode != "candidates"), runs[0] if runs else None)
    names: dict[str, Any] = {"command": command, "scores": scores and (Path(scores).name if Path(scores).exists() else scores)}
    if first:
        return replace(first.provenance, candidates=Path(source).resolve().name if here else source, **names)
    if here:
        return Provenance(Path(source).resolve().name, **names)
    return Provenance(source, True, **names, **hub.about_source(source, revision))


def _report_paths(source: str, revision: str | None) -> Sequence[Path]:
    folder = Path(source)
    return sorted(folder.glob("reports/*/report.json")) if folder.exists() else hub.fetch_reports(source, revision)


def readable_report(path: Path) -> Report | None:
    """A report, None where it cannot be read: then less is known."""
    try:
        return Report.load(path)
    except DataError:
        return None


def from_published(
    splits: Mapping[str, Dataset], losses: Mapping[str, Dataset] | None = None, student: str | None = None
) -> Dataset:
    """The authors' aligned splits as a table of candidates. A row without an original is left out, with a warning that counts
    them; where another split's row is null, that candidate has the error "not_attempted". With `losses`, their sets of the same
    splits by `student`, also as scores. Raises DataError where the splits are not of one length, or `losses` holds none.
    """
    from datasets import concatenate_datasets

    sets = {**splits, **{f"{name} of the losses": rows for name, rows in (losses or {}).items()}}
    if len({len(rows) for rows in sets.values()}) != 1:
        raise DataError(f"The splits are not of one length: {', '.join(f'{name} {len(rows):,}' for name, rows in sets.items())}.")
    if losses and not any("loss" in (rows.features["data"] or {}) for rows in losses.values()):
        raise DataError("The scores hold no losses.", "Name one of the authors' sets of {loss, ppl}.")
    joined = concatenate_datasets(
        [rows.rename_column("data", name).select_columns([name]) for name, rows in sets.items()], axis=1
    )
    usable = joined.filter(_has_original, desc="Reading the originals")
    if len(usable) < len(joined):
        warnings.warn(f"{len(joined) - len(usable):,} of {len(joined):,} rows have no original and are left out.", stacklevel=2)
    columns = (*TRIPLE, "candidates", *(SCORED_COLUMNS if losses else ()))
    made = usable.map(
        _from_splits,
        fn_kwargs={"splits": list(splits), "student": student if losses else None},
        features=features(columns),
        remove_columns=usable.column_names,
        desc="Reading candidates",
    )
    return with_ids(made).select_columns(["id", *columns])


def _has_original(row: Mapping[str, Any]) -> bool:
    return _pair(row["origin"]) is not None


def _from_splits(row: Mapping[str, Any], splits: Sequence[str], student: str | None) -> dict[str, Any]:
    """One row of the joined splits as this tool's own."""
    found = {**(_pair(row["origin"]) or {}), "candidates": [_candidate(_SPLITS[split], _pair(row[split])) for split in splits]}
    if student is None:
        return found
    scores = [_score(row.get(f"{split} of the losses")) for split in splits]
    # Their scripts' template; they cut at the model's own window, which is not said.
    return {**found, "scores": scores, "scored_by": {**_NOBODY, "student": student, "template": "vicuna"}}


def _published_splits(source: str, revision: str | None) -> dict[str, Dataset]:
    """The authors' splits of a dataset, {} where it is none of theirs."""
    names = _split_names(source, revision)
    return {name: load_rows(source, split=name, revision=revision) for name in _SPLITS if "origin" in names and name in names}


def _split_names(source: str, revision: str | None) -> list[str]:
    """The splits of a dataset without a choice of configs; [] where that does not tell."""
    from datasets import get_dataset_split_names

    try:
        return get_dataset_split_names(source, revision=revision)
    except Exception:  # no such repo, several configs, no network: loading says it better
        return []


def _pair(row: Mapping[str, Any] | None) -> dict[str, str] | None:
    """The triple of a struct, "" for a field that is null or absent; None for a null row."""
    found = {name: (row or {}).get(name) or "" for name in TRIPLE}
    return found if any(found.values()) else None


def _candidate(origin: str, pair: Mapping[str, str] | None) -> dict[str, Any]:
    known: dict[str, Any] = {"origin": origin, "sample": 0, **(pair or {"error": "not_attempted"})}
    if pair and origin in (INSTRUCTION, BOTH):
        known["input"] = ""  # a rewritten instruction stands alone
    return {**dict.fromkeys(field.name for field in CANDIDATE), **known}


def _score(row: Mapping[str, Any] | None) -> Score:
    """Four losses as a score; none where one is absent, no number, or the 0 that stands for a failure (in the paper's code an
    error becomes loss 0, which passes for a good one and wins)."""
    found = (row or {}).get("loss") or []
    if len(found) != len(_LOSSES) or not all(loss and math.isfinite(loss) for loss in found):
        return as_score({"missing": "not_recorded"})
    return as_score(dict(zip(_LOSSES, found, strict=True)))
