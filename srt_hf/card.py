"""The dataset card: reports in, Markdown out, with what people wrote on it before. No network; what is unknown stays unknown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from srt_hf.report import Report, rounding_words
from srt_hf.schema import FLAGS, REPO_TAG
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
# The part of a card that belongs to people: comments, which a rendered card does not show.
_OWN_BEGINS = "<!-- Yours: what stands between this line and the next comment stays when srt_hf writes this card anew. -->"
_OWN_ENDS = "<!-- End of yours. -->"
_OWN = re.compile(rf"{re.escape(_OWN_BEGINS)}\n(.*?){re.escape(_OWN_ENDS)}", re.DOTALL)
_SEAL = re.compile(r"<!-- srt_hf wrote the rest: (\w+) -->\s*\Z")


@dataclass
class CardData:
    """What a dataset card is made of: given (title, repo_id), from the runs (reports of the students whose selections the repo
    holds, the one that `default` names first), and from the card that is there already (header, own: see `read`)."""

    title: str
    repo_id: str
    runs: Sequence[Report]
    header: dict[str, Any] = field(default_factory=dict)
    own: str = ""


class Earlier(NamedTuple):
    """A card that is there. header: its metadata. own: what people wrote in their part. edited: whether the rest is not, word for
    word, what this tool wrote."""

    header: dict[str, Any]
    own: str
    edited: bool


def read(text: str) -> Earlier:
    """Take a card apart, to write it anew with `render`. A header that is no YAML counts as edited, and is not kept."""
    import yaml
    from huggingface_hub import DatasetCard

    if not text.strip():
        return Earlier({}, "", False)
    text = text.replace("\r\n", "\n")  # the Hub's own editor
    own, seal = _OWN.search(text), _SEAL.search(text)
    edited = not (seal and seal[1] == _digest(text))
    try:
        header = DatasetCard(text, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):
        header, edited = {}, True
    return Earlier(header, own[1].strip("\n") if own else "", edited)


def _digest(text: str) -> str:
    """Of all but the header, people's own part, and this digest."""
    body = _SEAL.sub("", _OWN.sub("", re.sub(r"\A\s*---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL)))
    return hashlib.sha256(body.strip().encode()).hexdigest()[:16]


def config_names(student: str) -> tuple[str, str, str]:
    """Names of the configs that a run writes: candidates, flat rows, scores."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", student.rstrip("/").rpartition("/")[2])
    if slug in ("candidates", "default", "reports"):
        slug += "-student"
    return "candidates", slug, f"{slug}-scores"


def report_folder(student: str) -> str:
    """Where a student's report and pictures lie in the repo."""
    return f"reports/{config_names(student)[1]}"


def render(card: CardData) -> str:
    """The card as Markdown with the Hub's YAML header."""
    from huggingface_hub import DatasetCard, DatasetCardData

    template = str(template_path("dataset_card.md"))
    text = str(DatasetCard.from_template(DatasetCardData(**_header(card)), template_path=template, **_values(card)))
    return f"{text.rstrip()}\n\n<!-- srt_hf wrote the rest: {_digest(text)} -->\n"


def template_path(name: str) -> Path:
    """A template of cards/: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parent
    installed = package / "cards" / name
    return installed if installed.is_file() else package.parent / "cards" / name


def citation() -> str:
    """The method's BibTeX entry."""
    return template_path("citation.bib").read_text(encoding="utf-8").strip()


def _header(card: CardData) -> dict[str, Any]:
    """The metadata: what this tool knows, and whatever else is on the card already. What a person set there by hand (a licence, a
    language, a name, more tags) stays, unless this run knows better."""
    there, first = card.header, card.runs[0]
    provenance = first.provenance
    tags = [REPO_TAG, "instruction-tuning", "synthetic", "selective-reflection-tuning"]
    return {
        **there,
        "pretty_name": there.get("pretty_name") or card.title,
        "license": there.get("license") or provenance.license,
        "language": there.get("language") or provenance.language,
        "source_datasets": [provenance.source] if provenance.source_is_hub else there.get("source_datasets"),
        "task_categories": ["text-generation"],
        "size_categories": next((name for limit, name in _SIZES if first.kept < limit), None),
        "configs": _configs(card),
        "tags": [*tags, *(tag for tag in there.get("tags") or [] if tag not in tags)],
    }


def _configs(card: CardData) -> list[dict[str, Any]]:
    wanted: dict[str, None] = {}
    for run in card.runs:
        candidates, flat, scores = config_names(run.student.get("student", "student"))
        # An empty split cannot be loaded back, so a run that kept nothing has no flat config.
        wanted |= dict.fromkeys([candidates, scores, *([flat] if run.kept else [])])
    others = [config for config in card.header.get("configs") or [] if config.get("config_name") not in wanted]
    first = card.runs[0]
    default = [] if _names(others, "default") or not first.kept else [_config("default", _flat(first))]
    return [_config(name, name) for name in wanted] + default + others


def _flat(run: Report) -> str:
    return config_names(run.student.get("student", "student"))[1]


def _names(configs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [config for config in configs if config.get("config_name") == name]


def _config(name: str, folder: str) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": "train", "path": f"{folder}/*.parquet"}]}


def default_student(header: Mapping[str, Any]) -> str | None:
    """The config of which `default` is another name, by a card's header."""
    files = [config.get("data_files") for config in _names(header.get("configs") or [], "default")]
    folder = re.search(r"[\w.-]+(?=/)", str(files))  # a path, a list of paths, or a list of splits with one each
    return folder[0] if folder else None


def _values(card: CardData) -> dict[str, Any]:
    first = card.runs[0]
    provenance = first.provenance
    default = default_student({"configs": _configs(card)})
    return {
        "title": inline(card.title),
        "repo_id": card.repo_id,
        "source": f"[{inline(provenance.source)}](https://huggingface.co/datasets/{provenance.source})"
        if provenance.source_is_hub
        else inline(provenance.source),
        "runs": [_run(run, _flat(run) == default) for run in card.runs],
        "exhaustive": any(run.mode == "exhaustive" for run in card.runs),
        "license": _header(card)["license"],
        "own": f"{_OWN_BEGINS}\n{card.own and card.own + chr(10)}{_OWN_ENDS}",
        "citation": citation(),
    }


def _run(report: Report, is_default: bool) -> dict[str, Any]:
    """What the card says of one student's run."""
    student, provenance = report.student, report.provenance
    folder = report_folder(student.get("student", "student"))
    return {
        "report": report,
        # A replay's replies were written by somebody else.
        "teacher": ", ".join(map(inline, report.teacher.get("writers") or [report.teacher.get("name")])),
        "name": inline(student.get("student")),
        "student": inline(_at(student.get("student"), student.get("revision"))),
        "scoring": inline(f"{student.get('template')}, {student.get('max_length')} tokens, {student.get('dtype')}"),
        "rounding": inline(rounding_words(report.rounding)) if report.rounding else "",
        "proxy": _proxy(report.proxy),
        "mode": _MODES.get(report.mode, inline(report.mode)),
        "rule": _RULE_WORDS.get(report.rule, inline(report.rule)),
        "keep": _KEEP_WORDS.get(report.keep, inline(report.keep)),
        "share": f"{100 * report.kept / report.rows:.1f} %" if report.rows else "–",
        "source_revision": inline(provenance.revision) if provenance.revision else "",
        "config": _flat(report),
        "is_default": is_default,
        "reasons": [(inline(reason), count, REASONS.get(reason, "")) for reason, count in report.reasons.items()],
        "flags": [(inline(flag), count, FLAGS.get(flag, "")) for flag, count in report.flags.items()],
        "medians": list(report.medians().values()),
        "distributions": _distributions(report),
        "plots": [(_plain(plot["title"]), _plain(plot["words"]), f"{folder}/{plot['name']}.png") for plot in report.plots],
        "page": f"{folder}/report.html" if report.plots else "",
        "examples": [_example(row) for row in report.examples],
        "command": block(provenance.command) if provenance.command else "From Python, with `srt_hf.recycle`.",
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


def _plain(text: str) -> str:
    """Words for the alternative text of a picture: nothing that Markdown or HTML reads."""
    return re.sub(r"[^\w .,:;()%/–-]+", " ", text)[:400]
