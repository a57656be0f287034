"""What reviewers are shown of a row and asked about it: rows of a run -> records and settings of an Argilla dataset."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from srt_hf.annotation import escaped
from srt_hf.card import scoring_words, template_path
from srt_hf.report import Report, decimal
from srt_hf.schema import BOTH, INSTRUCTION, ORIGINAL, RESPONSE, TRIPLE, of_origin
from srt_hf.selection import REASONS, Selector

if TYPE_CHECKING:
    from argilla import Record, Settings

RECYCLED, KEEP, DROP = "recycled", "original", "drop"
_DECISIONS = {RECYCLED: "Accept the recycled pair", KEEP: "Keep the original", DROP: "Drop the row"}
_LONGEST = 50_000  # characters of a text that are shown; a page with more is no pleasure in a browser
_COMPARED = 4_000_000  # words × words; a longer pair of texts is shown without marks
_AGENT = re.compile(r"[^A-Za-z0-9_:./\s-]+")  # what Argilla does not take in the name of who suggests
_CELL = 'style="vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere;padding:4px 12px 12px 0"'
_HEAD = 'style="text-align:left;padding:0 12px 4px 0"'
_RULE = 'style="border-top:1px solid rgba(128,128,128,.4);padding-top:6px"'
_MARKS = {
    "del": '<del style="background:rgba(213,94,0,.18);text-decoration:line-through">',
    "ins": '<ins style="background:rgba(0,114,178,.18);text-decoration:underline">',
}
_LABELS = {"instruction": "Instruction", "input": "Input", "output": "Response"}


def proposal(row: Mapping[str, Any]) -> int | None:
    """The candidate that stands beside the original: the student's choice, or, where that is the original itself, what lost
    against it, a rewritten response before a rewritten instruction. None where the teacher wrote nothing usable."""
    candidates = row["candidates"]
    if candidates[row["choice"]]["origin"] != ORIGINAL:
        return int(row["choice"])
    rivals = [n for origin in (RESPONSE, BOTH, INSTRUCTION) for n in of_origin(candidates, origin) if not candidates[n]["error"]]
    return rivals[0] if rivals else None


def shown(row: Mapping[str, Any], n: int) -> str:
    """A digest of the two pairs that a reviewer sees; an answer is about these words and no others."""
    pairs = [[row["candidates"][m][name] or "" for name in TRIPLE] for m in (of_origin(row["candidates"], ORIGINAL)[0], n)]
    return hashlib.sha256(json.dumps(["srt_hf/review/1", *pairs]).encode()).hexdigest()[:16]


def suggestion(row: Mapping[str, Any]) -> str:
    """What the run did with the row: who always agrees changes nothing."""
    if not row["kept"]:
        return DROP
    return KEEP if row["origin"] == ORIGINAL else RECYCLED


def margin(row: Mapping[str, Any], report: Report, stage: str = "all") -> float | None:
    """Selector.margin, None where no numbers were compared or one of them is missing."""
    found = Selector(report.rule, report.keep).margin(row, stage)
    scored = zip(row["candidates"], row["scores"], strict=True)
    unknown = not found and any(score["missing"] for candidate, score in scored if not candidate["error"])
    return None if unknown or math.isinf(found) else found


def settings(report: Report, min_submitted: int) -> Settings:
    """Fields, questions, metadata and guidelines of the dataset for a run."""
    import argilla as rg

    return rg.Settings(
        guidelines=guidelines(report, min_submitted),
        fields=[
            rg.TextField("pair", title="Original and recycled pair", use_markdown=True),
            rg.TextField("critique", title="What the teacher says", use_markdown=True, required=False),
            rg.TextField("scores", title="What the student says", use_markdown=True),
        ],
        questions=[
            rg.LabelQuestion("decision", _DECISIONS, title="What becomes of this row?"),
            rg.TextQuestion(
                "instruction",
                title="Instruction of the recycled pair, corrected",
                description="Change it here; as it is, it counts as no correction.",
                required=False,
            ),
            rg.TextQuestion(
                "response",
                title="Response of the recycled pair, corrected",
                description="Change it here; as it is, it counts as no correction.",
                required=False,
            ),
            rg.RatingQuestion("rating", list(range(1, 6)), title="How good is the recycled pair?", required=False),
            rg.TextQuestion("comment", title="Comment", required=False),
        ],
        metadata=[
            *(rg.FloatMetadataProperty(name) for name in ("ifd", "r_ifd", "original_ifd", "original_r_ifd")),
            *(rg.FloatMetadataProperty(name) for name in ("margin", "margin_instruction")),
            *(rg.IntegerMetadataProperty(name) for name in ("words", "original_words")),
            *(rg.TermsMetadataProperty(name) for name in ("origin", "reason", "flags", "teacher", "errors", "student")),
            rg.TermsMetadataProperty("shown", visible_for_annotators=False),
        ],
        distribution=rg.TaskDistribution(min_submitted=min_submitted),
    )


def guidelines(report: Report, min_submitted: int) -> str:
    """What reviewers read before they begin (cards/review_guidelines.md)."""
    from jinja2 import StrictUndefined, Template

    text = template_path("review_guidelines.md").read_text(encoding="utf-8")
    values = {"student": escaped(report.student.get("student")), "min_submitted": min_submitted, "reasons": REASONS}
    return Template(text, undefined=StrictUndefined, trim_blocks=True).render(**values)


def record(row: Mapping[str, Any], n: int, report: Report) -> Record:
    """A row with the candidate `n` beside the original."""
    import argilla as rg

    candidate, student = row["candidates"][n], str(report.student.get("student"))
    agent = " ".join(_AGENT.sub(" ", student).split())[:200] or "student"
    close = margin(row, report)
    suggested = [rg.Suggestion("decision", suggestion(row), score=None if close is None else min(1.0, close), agent=agent)]
    for question, text in (("instruction", candidate["instruction"]), ("response", candidate["output"])):
        if text:
            suggested.append(rg.Suggestion(question, text, agent=agent))
    return rg.Record(
        id=row["id"],
        fields={"pair": _pair(row, n), "critique": _critique(candidate), "scores": _scores(row, n, close, report)},
        metadata=metadata(row, n, report),
        suggestions=suggested,
    )


def metadata(row: Mapping[str, Any], n: int, report: Report) -> dict[str, Any]:
    """What reviewers filter and sort by, of a row with the candidate `n` beside the original; what is unknown is left out."""
    candidates, scores = row["candidates"], row["scores"]
    first = of_origin(candidates, ORIGINAL)[0]
    found: dict[str, Any] = {
        "ifd": scores[n]["ifd"],
        "r_ifd": scores[n]["r_ifd"],
        "original_ifd": scores[first]["ifd"],
        "original_r_ifd": scores[first]["r_ifd"],
        "margin": margin(row, report),
        "margin_instruction": margin(row, report, "instruction"),
        "words": len((candidates[n]["output"] or "").split()),
        "original_words": len((candidates[first]["output"] or "").split()),
        "origin": candidates[n]["origin"],
        "reason": row["reason"],
        "flags": list(row.get("flags") or []),
        "teacher": candidates[n]["teacher"],
        "errors": sorted({candidate["error"] for candidate in candidates if candidate["error"]}),
        "student": str(report.student.get("student")),
        "shown": shown(row, n),
    }
    return {name: value for name, value in found.items() if value not in (None, []) and not _endless(value)}


def _endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _pair(row: Mapping[str, Any], n: int) -> str:
    """Original and candidate side by side as an HTML table, differences marked."""
    candidates = row["candidates"]
    before, after = candidates[of_origin(candidates, ORIGINAL)[0]], candidates[n]
    lines = [
        '<table style="width:100%;table-layout:fixed"><tr>',
        *(f"<th {_HEAD}>{side}</th>" for side in ("Original", "Recycled")),
        "</tr>",
    ]
    for name, label in _LABELS.items():
        if not before[name] and not after[name]:
            continue
        left, right = compared(before[name] or "", after[name] or "")
        lines.append(
            f'<tr><td colspan="2" {_RULE}><b>{label}</b></td></tr><tr><td {_CELL}>{left}</td><td {_CELL}>{right}</td></tr>'
        )
    return "".join([*lines, "</table>"])


def compared(before: str, after: str) -> tuple[str, str]:
    """Two texts as HTML, words that only one of them has marked; a very long pair without marks.

    >>> re.sub(r' style="[^"]*"', "", compared("one <two>", "one three")[0])
    'one <del>&lt;two&gt;</del>'
    """
    cut = [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\n[… {len(text) - _LONGEST:,} more]" for text in (before, after)]
    words = [re.findall(r"\w+\s*|[^\w\s]\s*|\s+", text) for text in cut]
    if len(words[0]) * len(words[1]) > _COMPARED:
        return escaped(cut[0]), escaped(cut[1])
    sides: tuple[list[str], list[str]] = ([], [])
    for kind, *spans in difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        for side, part, tag, (begin, end) in zip(sides, words, _MARKS, (spans[:2], spans[2:]), strict=True):
            side.append(_marked("".join(part[begin:end]), "" if kind == "equal" else tag))
    return "".join(sides[0]), "".join(sides[1])


def _marked(text: str, tag: str) -> str:
    return f"{_MARKS[tag]}{escaped(text)}</{tag}>" if tag and text else escaped(text)


def _critique(candidate: Mapping[str, Any]) -> str | None:
    critique = (candidate["critique"] or "")[:_LONGEST]
    return f'<div style="white-space:pre-wrap">{escaped(critique)}</div>' if critique.strip() else None


def _scores(row: Mapping[str, Any], n: int, close: float | None, report: Report) -> str:
    """Scores, decision and reason as one HTML block."""
    scores = row["scores"]
    first = of_origin(row["candidates"], ORIGINAL)[0]
    lines = [
        _line("td", label, _number(scores[first][name]), _number(scores[n][name]), words)
        for name, label, words in (
            ("ifd", "IFD", "below 1: the instruction helps the student with the response; lower: helps more"),
            ("r_ifd", "r-IFD", "below 1: the response tells of its instruction; lower: tells more"),
        )
    ]
    hung = "" if close is None else f" It hung on a difference of {close:.3f}."
    reason = f"{escaped(row['reason'])}: {escaped(REASONS.get(row['reason'], ''))}."
    student = f"{escaped(str(report.student.get('student')))}, {escaped(scoring_words(report.student))}"
    return (
        f"<table>{_line('th', '', 'original', 'recycled', '')}{''.join(lines)}</table>"
        f"<div>{reason}{hung}<br>Scored by {student}.</div>"
    )


def _line(tag: str, *cells: str) -> str:
    return f"<tr>{''.join(f'<{tag} {_HEAD}>{cell}</{tag}>' for cell in cells)}</tr>"


def _number(value: float | None) -> str:
    return decimal(None if value is None or not math.isfinite(value) else value)
