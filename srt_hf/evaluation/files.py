"""Files that evaluations read and write: rows as JSON or JSONL, and files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from srt_hf.errors import DataError


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, of a JSON list, or of the list under "data" of a JSON object. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    try:
        found = json.loads(text)
        rows = found.get("data", [found]) if isinstance(found, dict) else found
    except ValueError:
        rows = _lines(text, path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} holds no rows of named fields.", "Give JSONL, one object a line, or a JSON list of objects.")
    return rows


def _lines(text: str, path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"Line {number} of {path} is no JSON ({error}).", "Give JSONL, one object a line.") from error
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSONL, one object a line."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_whole(path: Path, text: str) -> None:
    """Write a file, or leave it as it was: never half of it. Line ends stay as they are in `text`."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.replace(part, path)


def digest(value: Any) -> str:
    """A hash of a JSON value, for files that are to be compared."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
