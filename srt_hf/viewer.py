"""report.html: one file, and no request to anywhere, with which a person looks through a run in a browser.

The rows lie in the page as blocks of gzipped JSON, which the script (cards/report.js) unpacks one at a time: first all of the
indexes, small, for the table and its filters; the texts when a row is opened, or searched. Whatever a row holds was written by
strangers. It gets into the page as base64 and onto the screen as text nodes, and the page's own policy
(Content-Security-Policy) allows no script but the one that is written here.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from srt_hf.card import facts, template_path
from srt_hf.report import Report
from srt_hf.schema import ERRORS, FLAGS, MISSING, ORIGINAL, of_origin
from srt_hf.selection import REASONS

if TYPE_CHECKING:
    from datasets import Dataset
    from jinja2 import Template

    from srt_hf.plots import Plot

_SHOWN = ("id", "candidates", "scores", "choice", "origin", "kept", "reason", "flags")
# A block ends at either, so that the browser never has to unpack much at once, however long the answers are.
_BLOCK_ROWS = 200
_BLOCK_CHARACTERS = 1_000_000
_EXCERPT = 160
_TEXTS = ("instruction", "input", "output", "critique")


class _Block(NamedTuple):
    """Some consecutive rows, packed. entries: what the table needs of them. texts: the rows themselves."""

    entries: str
    texts: str


def write_page(path: Path, title: str, report: Report, rows: Dataset, plots: Sequence[Plot]) -> None:
    """Write the page for decided rows. Memory stays that of a block, however many rows there are. Raises OSError."""
    values = {
        "title": title,
        "figures": _figures(report),
        "student": report.student.get("student") or "",
        "lines": [*_made(report), *report.lines()],
        "plots": [(plot.title, plot.words, base64.b64encode(plot.png).decode()) for plot in plots],
        "words": {"reasons": REASONS, "errors": ERRORS, "missing": MISSING, "flags": FLAGS},
        "blocks": _blocks(rows),
    }
    with path.open("w", encoding="utf-8", errors="replace", newline="\n") as file:  # a title may be a broken file name
        file.writelines(_template().generate(**values))


def _made(report: Report) -> list[list[str]]:
    """Whose run it is and how it was made, since the page is opened by itself."""
    command = [["command", report.provenance.command]] if report.provenance.command else []
    return [[label, words] for label, words, _ in facts(report)] + command


def _template() -> Template:
    """The page with its style and script in place, and their digests, which the page's policy names."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = template_path("report.html").parent
    environment = Environment(autoescape=True, loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True)
    for name in ("css", "js"):
        source = (folder / f"report.{name}").read_text(encoding="utf-8")
        environment.globals[name] = Markup(source)
        environment.globals[f"{name}_digest"] = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return environment.get_template("report.html")


def _figures(report: Report) -> list[tuple[str, str]]:
    """The few numbers that stand above all others, each with what it is."""
    share = f"kept, {100 * report.kept / report.rows:.1f} %" if report.rows else "kept"
    figures = [(f"{report.rows:,}", "rows"), (f"{report.kept:,}", share)]
    groups = [("IFD", report.scores.get("ifd", {}), ".3f"), ("r-IFD", report.scores.get("r_ifd", {}), ".3f")]
    for name, measured, form in [*groups, ("words of the response", report.lengths, ".0f")]:
        before, after = measured.get("original_of_kept"), measured.get("chosen")
        if before and after:
            figures.append((f"{before['p50']:{form}} → {after['p50']:{form}}", f"{name}, median of the kept"))
    return figures


def _blocks(rows: Dataset) -> Iterator[_Block]:
    entries: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    characters = 0
    for row in _rows(rows):
        entries.append(_entry(row))
        texts.append(_everything(row))
        characters += sum(len(candidate[name] or "") for candidate in row["candidates"] for name in _TEXTS)
        if len(texts) == _BLOCK_ROWS or characters >= _BLOCK_CHARACTERS:
            yield _Block(_pack(entries), _pack(texts))
            entries, texts, characters = [], [], 0
    if texts:
        yield _Block(_pack(entries), _pack(texts))


def _rows(rows: Dataset) -> Iterator[dict[str, Any]]:
    columns = [name for name in _SHOWN if name in rows.column_names]  # a run of an earlier version has no `flags`
    for batch in rows.with_format(None).select_columns(columns).iter(batch_size=_BLOCK_ROWS):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the table, its filters and its order need of a row. Pairs: of the original, then of the choice."""
    candidates, scores = row["candidates"], row["scores"]
    pair = (of_origin(candidates, ORIGINAL)[0], row["choice"])
    first = candidates[pair[0]]
    return {
        "id": row["id"],
        "excerpt": " ".join((first["instruction"] or "")[: 2 * _EXCERPT].split())[:_EXCERPT],
        "origin": row["origin"],
        "kept": row["kept"],
        "reason": row["reason"],
        "ifd": [_finite(scores[n]["ifd"]) for n in pair],
        "r_ifd": [_finite(scores[n]["r_ifd"]) for n in pair],
        "words": [None if candidates[n]["output"] is None else len(candidates[n]["output"].split()) for n in pair],
        "flags": row.get("flags") or [],
        "errors": sorted({candidate["error"] for candidate in candidates if candidate["error"]}),
    }


def _everything(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of an opened row, and searched."""
    known = {name: [_known(item) for item in row[name]] for name in ("candidates", "scores")}
    return {"id": row["id"], "choice": row["choice"], **known}


def _known(struct: Mapping[str, Any]) -> dict[str, Any]:
    """A struct without its empty fields and without numbers that JSON cannot say."""
    return {name: value for name, value in struct.items() if _finite(value) is not None}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pack(value: Any) -> str:
    """JSON, gzipped, as base64: no character of it means anything to an HTML parser."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Level 4, because 6 takes five times as long for 6 % less.
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), compresslevel=4, mtime=0)).decode()
