"""A blind study as a spreadsheet, and what annotators wrote into it."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srt_hf.errors import DataError
from srt_hf.evaluation.files import read_rows, write_whole

_CELL = 32_000  # characters; Excel takes 32,767 and drops the rest
_GAP = "\n[… the middle is left out here …]\n"
_COLUMNS = ("study", "pair", "question", "answer_a", "answer_b", "choice", "comment")
_CHOICES = {"a": "a", "answer a": "a", "b": "b", "answer b": "b", "tie": "tie", "equal": "tie", "same": "tie"}


def write_sheet(path: Path, rows: Sequence[Mapping[str, str]]) -> int:
    """Write the pairs as CSV with empty columns choice and comment; return how many cells were shortened."""
    _write(path, rows, _COLUMNS)
    return sum(shortened(value) != value for row in rows for value in row.values())


def write_choices(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write answers, {study, pair, annotator, choice, comment}, as CSV that `read_choices` reads."""
    _write(path, rows, ("study", "pair", "annotator", "choice", "comment"))


def _write(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_whole(path, "\ufeff" + text.getvalue())  # without the mark, Excel reads no UTF-8


def shortened(text: str) -> str:
    """A text as annotators are shown it: without its middle, and so told, where it is too long for a cell."""
    return text if len(text) <= _CELL else text[: _CELL // 2] + _GAP + text[-_CELL // 2 :]


def _cell(text: str) -> str:
    """Text that no spreadsheet runs as a formula, whatever invisible characters stand before it, and that fits into a cell.

    >>> _cell("=1+1"), _cell("one")
    ("'=1+1", 'one')
    """
    text = shortened(text)
    seen = next((char for char in text if unicodedata.category(char)[0] not in "ZC"), "")
    return "'" + text if seen in tuple("=+-@＝＋－＠") or text.startswith(("\t", "\r", "\n")) else text


def read_choices(files: str, study: str) -> dict[tuple[str, str], str]:
    """What annotators chose, "a", "b" or "tie" by (annotator, pair), from CSV or JSONL `files` with commas between them.

    An empty choice is no answer. The annotator is whom the column of that name names, else the file. Raises DataError for a file
    that cannot be read, a choice of another kind, two different ones of an annotator for a pair, or a file of another study.
    """
    found: dict[tuple[str, str], str] = {}
    for path in (Path(name.strip()) for name in files.split(",") if name.strip()):
        for number, row in enumerate(_rows(path), start=1):
            where = f"row {number} of {path}"
            if row.get("study") not in (None, "", study):
                raise DataError(f"{where} is of the study {row['study']}, the key of {study}.", "Give the key of that study.")
            choice = _choice(row, where)
            if choice is None:
                continue
            who = str(row.get("annotator") or path.resolve()), str(row.get("pair") or "").strip()
            if found.setdefault(who, choice) != choice:
                raise DataError(f"{who[0]} chose twice for the pair {who[1]}, differently, in {where}.", "Leave one of them.")
    return found


def _choice(row: Mapping[str, Any], where: str) -> str | None:
    if "choice" not in row or "pair" not in row:
        fields = ", ".join(map(repr, list(row)[:8]))
        raise DataError(f"{where} has no fields pair and choice, but {fields}.", "Give copies of study.csv, or JSONL.")
    said = " ".join(str(row["choice"] or "").split()).casefold()
    if said and said not in _CHOICES:
        raise DataError(f"The choice in {where} is {said[:40]!r}.", "Write A, B or tie, or leave it empty.")
    return _CHOICES[said] if said else None


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    if path.suffix.lower() != ".csv":
        return read_rows(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8.", "Save it as CSV UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)  # what spreadsheets of other countries write
    # Cells may hold a long answer each.
    csv.field_size_limit(10 * _CELL)
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise DataError(f"{path} is no CSV that can be read: {error}.", "Save it anew as CSV UTF-8.") from error
