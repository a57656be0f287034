"""The dataset card: a report and a few rows in, Markdown out. No network; what is unknown stays unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srt_hf.report import Report, rounding_words
from srt_hf.schema import REPO_TAG
from srt_hf.selection import REASONS

_EXAMPLE_CHARACTERS = 1_200
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
_MODES = {
    "selective": "selective: the paper's order, the student picks after each of two reflections",
    "exhaustive": "exhaustive: all three reflections first, so that any student can select later",
    "candidates": "selection from candidates that existed, without a teacher",
}
_RULE_WORDS = {
    "paper": "highest IFD between original and new instruction, then lowest r-IFD between that pair and its reflected response",
    "ifd": "highest IFD in both stages",
    "r_ifd": "lowest r-IFD in both stages",
    "perplexity": "lowest perplexity of the response given the instruction in both stages",
    "random": "a fair draw in both stages",
    "all": "no selection: what was rewritten wins",
}
_KEEP_WORDS = {
    "reflected": "pairs with a reflected response, IFD < 1 and r-IFD < 1 (as published)",
    "under_one": "pairs with IFD < 1 and r-IFD < 1, whatever was rewritten",
    "all": "every pair with text in it",
}


@dataclass(frozen=True)
class Provenance:
    """What only the person who made a dataset can say of it; None is unknown and stays unknown.

    source: a Hub id (`source_is_hub`) or any other name of the rows' origin. command: what was typed to make the dataset.
    """

    source: str = "a dataset"
    source_is_hub: bool = False
    command: str | None = None
    license: str | None = None
    language: str | None = None


@dataclass
class CardData:
    """What a dataset card is made of: given (title, repo_id, provenance), from the run (report, examples: flat rows), and
    `other_configs`, what is on the repo's card already and stays."""

    title: str
    repo_id: str
    report: Report
    provenance: Provenance = field(default_factory=Provenance)
    examples: Sequence[Mapping[str, Any]] = ()
    other_configs: list[dict[str, Any]] = field(default_factory=list)


def config_names(student: str) -> tuple[str, str, str]:
    """Names of the configs that a run writes: candidates, flat rows, scores."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", student.rstrip("/").rpartition("/")[2])
    if slug in ("candidates", "default"):
        slug += "-student"
    return "candidates", slug, f"{slug}-scores"


def render(card: CardData) -> str:
    """The card as Markdown with the Hub's YAML header."""
    from huggingface_hub import DatasetCard, DatasetCardData

    report, provenance = card.report, card.provenance
    data = DatasetCardData(
        pretty_name=card.title,
        license=provenance.license,
        language=provenance.language,
        source_datasets=[provenance.source] if provenance.source_is_hub else None,
        task_categories=["text-generation"],
        size_categories=next((name for limit, name in _SIZES if report.kept < limit), None),
        configs=_configs(card),
        tags=[REPO_TAG, "instruction-tuning", "synthetic", "selective-reflection-tuning"],
    )
    return str(DatasetCard.from_template(data, template_path=str(template_path("dataset_card.md")), **_values(card)))


def template_path(name: str) -> Path:
    """A template of cards/: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parent
    installed = package / "cards" / name
    return installed if installed.is_file() else package.parent / "cards" / name


def _configs(card: CardData) -> list[dict[str, Any]]:
    candidates, flat, scores = config_names(card.report.student.get("student", "student"))
    # An empty split cannot be loaded back, so a run that kept nothing has no flat config.
    ours = [candidates, scores, *([flat] if card.report.kept else [])]
    others = [config for config in card.other_configs if config.get("config_name") not in ours]
    default = [_config("default", flat)] if card.report.kept and not _names(others, "default") else []
    return [_config(name, name) for name in ours] + default + others


def _names(configs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [config for config in configs if config.get("config_name") == name]


def _config(name: str, folder: str) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": "train", "path": f"{folder}/*.parquet"}]}


def _values(card: CardData) -> dict[str, Any]:
    report, provenance = card.report, card.provenance
    student = report.student
    flat = config_names(student.get("student", "student"))[1]
    is_default = _names(_configs(card), "default") == [_config("default", flat)]
    return {
        "title": inline(card.title),
        "repo_id": card.repo_id,
        "source": f"[{inline(provenance.source)}](https://huggingface.co/datasets/{provenance.source})"
        if provenance.source_is_hub
        else inline(provenance.source),
        "report": report,
        "reasons": REASONS,
        # A replay's replies were written by somebody else.
        "teacher": ", ".join(map(inline, report.teacher.get("writers") or [report.teacher.get("name")])),
        "student": inline(_at(student.get("student"), student.get("revision"))),
        "scoring": inline(f"{student.get('template')}, {student.get('max_length')} tokens, {student.get('dtype')}"),
        "rounding": inline(rounding_words(report.rounding)) if report.rounding else "",
        "proxy": _proxy(report.proxy),
        "mode": _MODES[report.mode],
        "rule": _RULE_WORDS[report.rule],
        "keep": _KEEP_WORDS[report.keep],
        "flat_config": flat,
        "is_default": is_default,
        "exhaustive": report.mode == "exhaustive",
        "distributions": _distributions(report),
        "examples": [_example(row) for row in card.examples],
        "command": block(provenance.command) if provenance.command else "From Python, with `srt_hf.recycle`.",
        "license": provenance.license,
    }


def _proxy(proxy: Mapping[str, Any]) -> str:
    """Who scored rows in the student's place, and what that changed, in words; nothing for a run without a proxy."""
    if not proxy:
        return ""
    name = inline(_at(proxy["student"], proxy["revision"]))
    checked = f"of {proxy['sample']} of them that the student scored too, {proxy['decisions_changed']} decisions changed"
    return f"{name} scored and decided {proxy['rows']} rows, by more than {proxy['margin']:g}; {checked}"


def _at(name: str | None, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else str(name)


def _distributions(report: Report) -> list[tuple[str, str, str, str]]:
    groups = ("original", "original_of_kept", "chosen")
    rows = [(name, [report.scores.get(name, {}).get(group) for group in groups], "{:.3f}") for name in ("ifd", "r_ifd")]
    rows.append(("words in the output", [report.lengths.get(group) for group in groups], "{:.0f}"))
    return [(name, *(_spread(group, form) for group in values)) for name, values, form in rows]  # type: ignore[misc]


def _spread(group: dict[str, float] | None, form: str) -> str:
    if group is None:
        return "–"
    low, middle, high = (form.format(group[name]) for name in ("p5", "p50", "p95"))
    return f"{middle} ({low} to {high})"


def _example(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "id": inline(row["id"]).strip("`"),
        "reason": row["reason"],
        "ifd": _change(row["original_ifd"], row["ifd"]),
        "r_ifd": _change(row["original_r_ifd"], row["r_ifd"]),
        "before": block(_pair(row["original_instruction"], row["original_input"], row["original_output"])),
        "after": block(_pair(row["instruction"], row["input"], row["output"])),
    }


def _change(before: float | None, after: float | None) -> str:
    return " → ".join("–" if value is None else f"{value:.3f}" for value in (before, after))


def _pair(instruction: str | None, input: str | None, output: str | None) -> str:
    parts = [("Instruction", instruction), ("Input", input), ("Output", output)]
    return "\n\n".join(f"{name}: {text}" for name, text in parts if text)


def block(text: str) -> str:
    """A stranger's text as a fenced block: cut to a bounded length, with a fence longer than any it contains.

    >>> print(block("a ``` b"))
    ````text
    a ``` b
    ````
    """
    if len(text) > _EXAMPLE_CHARACTERS:
        text = text[:_EXAMPLE_CHARACTERS] + " […]"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def inline(text: object) -> str:
    """A stranger's short text as inline code: one line, no backticks, no table breaks."""
    clean = " ".join(str(text).replace("`", "'").replace("|", "/").split())[:200]
    return f"`{clean}`"
