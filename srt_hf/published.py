"""Candidates that exist, for another student to choose from: this tool's own repos and folders, and the layout that the paper's
authors published.

Theirs: aligned splits, each with one struct column `data`, joined by position; a row may be null, and some repos lack a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from srt_hf.errors import DataError
from srt_hf.schema import BOTH, CANDIDATE, CANDIDATES_COLUMNS, INSTRUCTION, ORIGINAL, RESPONSE, TRIPLE, features
from srt_hf.sources import load_rows, prepare

if TYPE_CHECKING:
    from datasets import Dataset

# Their splits, and what each holds.
_SPLITS = {"origin": ORIGINAL, "reflect_instruction": INSTRUCTION, "reflect_response": RESPONSE, "reflect_both": BOTH}
_CURE = (
    "Give a repo or output folder of this tool, which has a config `candidates`, or one with the splits of the paper's authors."
)


def load_candidates(source: str, revision: str | None = None) -> Dataset:
    """The table of candidates (schema.CANDIDATES_COLUMNS) of a Hub repo or output folder, or made of the authors' splits.

    Raises DataError where there is neither.
    """
    splits = _split_names(source, revision)
    if "origin" in splits:
        return from_published({split: load_rows(source, split=split, revision=revision) for split in _SPLITS if split in splits})
    try:
        rows = load_rows(source, name="candidates", revision=revision)
    except DataError as error:
        raise DataError(error.message, _CURE) from error
    absent = [name for name in CANDIDATES_COLUMNS if name not in rows.column_names]
    if absent:
        raise DataError(f"The candidates of {source} lack {', '.join(absent)}.", _CURE)
    return rows.select_columns(list(CANDIDATES_COLUMNS))


def from_published(splits: Mapping[str, Dataset]) -> Dataset:
    """The authors' aligned splits as a table of candidates. A row without an original is left out; where another split's row is
    null, that candidate has the error "not_attempted". Raises DataError where the splits are not of one length.
    """
    from datasets import Dataset

    lengths = {name: len(rows) for name, rows in splits.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"The splits are not of one length: {', '.join(f'{name} {n:,}' for name, n in lengths.items())}.")
    pairs = {_SPLITS[split]: [_pair(row) for row in rows["data"]] for split, rows in splits.items()}
    places = [place for place, pair in enumerate(pairs[ORIGINAL]) if pair]
    originals = prepare(Dataset.from_list([pairs[ORIGINAL][place] for place in places], features=features(TRIPLE)))

    def rows() -> Iterator[dict[str, Any]]:
        for place, row in zip(places, originals, strict=True):
            candidates = [_candidate(origin, found[place]) for origin, found in pairs.items()]
            yield {name: row[name] for name in ("id", *TRIPLE)} | {"candidates": candidates}

    return Dataset.from_list(list(rows()), features=features(CANDIDATES_COLUMNS))


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
