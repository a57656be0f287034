"""The dataset card: reports in, Markdown out, with what people wrote on it before. No network; what is unknown stays unknown."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srt_hf.handwritten import own_part, seal
from srt_hf.report import Provenance, Report, decimal, rounding_words
from srt_hf.schema import FLAGS, REPO_TAG, REVIEW_STATUSES, REVIEWED
from srt_hf.selection import REASONS

_EXAMPLE_CHARACTERS = 800  # of each text of an example
_BLOCK_CHARACTERS = 4_000
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


@dataclass
class CardData:
    """What a dataset card is made of: given (title, repo_id), from the runs (reports of the students whose selections the repo
    holds, the one that `default` names first), and from the card that is there already (header, own: see `handwritten.read`)."""

    title: str
    repo_id: str
    runs: Sequence[Report]
    header: dict[str, Any] = field(default_factory=dict)
    own: str = ""


def config_names(student: str) -> tuple[str, str, str]:
    """Names of the configs that a run writes: candidates, flat rows, scores."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", student.rstrip("/").rpartition("/")[2]).strip("-.") or "unnamed"
    if slug in ("candidates", "default", "reports", REVIEWED) or slug.endswith(("-scores", f"-{REVIEWED}")):
        slug += "-student"
    return "candidates", slug, f"{slug}-scores"


def reviewed_config(student: str) -> str:
    """Name of the config of what people made of a student's selection."""
    return f"{config_names(student)[1]}-{REVIEWED}"


def report_folder(student: str) -> str:
    """Where a student's report and pictures lie in the repo."""
    return f"reports/{config_names(student)[1]}"


def render(card: CardData) -> str:
    """The card as Markdown with the Hub's YAML header."""
    from huggingface_hub import DatasetCard, DatasetCardData

    first = card.runs[0]
    data = header(card.header, first.provenance, card.title, _configs(card))
    data["size_categories"] = next((name for limit, name in _SIZES if first.kept < limit), None)
    template = str(template_path("dataset_card.md"))
    return seal(str(DatasetCard.from_template(DatasetCardData(**data), template_path=template, **_values(card, data))))


def template_path(name: str) -> Path:
    """A template of cards/: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parent
    installed = package / "cards" / name
    return installed if installed.is_file() else package.parent / "cards" / name


def citation() -> str:
    """The method's BibTeX entry."""
    return template_path("citation.bib").read_text(encoding="utf-8").strip()


def header(
    there: Mapping[str, Any], made: Provenance, title: str, configs: list[dict[str, Any]], tags: Sequence[str] = ()
) -> dict[str, Any]:
    """The metadata of a card: what this tool knows, with its further `tags`, and whatever else is on the card already (`there`).

    What a person set by hand (a licence, a language, a name, more tags) stays, unless this run knows better.
    """
    tags = [REPO_TAG, *tags, "instruction-tuning", "synthetic", "selective-reflection-tuning"]
    return {
        **there,
        "pretty_name": there.get("pretty_name") or title,
        "license": there.get("license") or made.license,
        "language": there.get("language") or made.language,
        "source_datasets": [made.source] if made.source_is_hub else there.get("source_datasets"),
        "task_categories": ["text-generation"],
        "configs": configs,
        "tags": [*tags, *(tag for tag in there.get("tags") or [] if tag not in tags)],
    }


def _configs(card: CardData) -> list[dict[str, Any]]:
    wanted: dict[str, None] = {}
    for run in card.runs:
        candidates, flat, scores = config_names(run.student.get("student", "student"))
        # An empty split cannot be loaded back, so a run that kept nothing has no flat config.
        wanted |= dict.fromkeys([candidates, scores, *([flat] if run.kept else []), *_reviewed(run)])
    others = [config for config in card.header.get("configs") or [] if config.get("config_name") not in wanted]
    first = card.runs[0]
    default = [] if _names(others, "default") or not first.kept else [config("default", _flat(first))]
    reviewed = [] if _names(others, REVIEWED) else [config(REVIEWED, name) for run in card.runs for name in _reviewed(run)][:1]
    return [config(name, name) for name in wanted] + default + reviewed + others


def _reviewed(run: Report) -> list[str]:
    """The config of a run's reviewed rows, where people have kept some."""
    return [reviewed_config(run.student.get("student", "student"))] if run.review.get("kept") else []


def _flat(run: Report) -> str:
    return config_names(run.student.get("student", "student"))[1]


def _names(configs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [config for config in configs if config.get("config_name") == name]


def without(configs: list[dict[str, Any]], gone: Sequence[str]) -> list[dict[str, Any]]:
    """The configs of a card's metadata but for these, and for other names of them."""
    paths = {str(config(name, name)["data_files"]) for name in gone}
    return [one for one in configs if one.get("config_name") not in gone and str(one.get("data_files")) not in paths]


def config(name: str, folder: str) -> dict[str, Any]:
    """A config of the card's metadata, of all Parquet files in a folder."""
    return {"config_name": name, "data_files": [{"split": "train", "path": f"{folder}/*.parquet"}]}


def default_student(header: Mapping[str, Any]) -> str | None:
    """The config of which `default` is another name, by a card's header."""
    files = [config.get("data_files") for config in _names(header.get("configs") or [], "default")]
    folder = re.search(r"[\w.-]+(?=/)", str(files))  # a path, a list of paths, or a list of splits with one each
    return folder[0] if folder else None


def _values(card: CardData, data: Mapping[str, Any]) -> dict[str, Any]:
    """What the template is filled with; data: the card's metadata."""
    first = card.runs[0]
    provenance = first.provenance
    default = default_student(data)
    known = {name for run in card.runs for name in (*config_names(run.student.get("student", "student")), *_reviewed(run))}
    known |= {"default", *([REVIEWED] if any(map(_reviewed, card.runs)) else [])}
    unread = [str(config.get("config_name")) for config in data["configs"] if config.get("config_name") not in known]
    return {
        "title": _plain(str(data["pretty_name"])),
        "repo": json.dumps(card.repo_id, ensure_ascii=False),
        "repo_word": shlex.quote(card.repo_id),
        "source": _linked(provenance.source) if provenance.source_is_hub else inline(provenance.source),
        "unread": [inline(name) for name in unread],
        "runs": [_run(run, _flat(run) == default) for run in card.runs],
        "exhaustive": first.exhaustive,
        "license": data["license"],
        "own": own_part(card.own),
        "citation": citation(),
    }


def _run(report: Report, is_default: bool) -> dict[str, Any]:
    """What the card says of one student's run."""
    student, provenance = report.student, report.provenance
    folder = report_folder(student.get("student", "student"))
    return {
        "report": report,
        "name": inline(student.get("student")),
        "facts": [(label, inline(words) if foreign else words) for label, words, foreign in facts(report)],
        "kept": f"{report.kept:,} of {report.rows:,} ({report.share(report.kept)})",
        "pins": f"`{pins}`" if (pins := _pins(report)) else "",
        "config": _flat(report),
        "is_default": is_default,
        "reasons": [(inline(reason), f"{count:,}", REASONS.get(reason, "")) for reason, count in report.reasons.items()],
        "flags": [
            (inline(flag), f"{count:,} ({report.share(count, report.kept)})", FLAGS.get(flag, ""))
            for flag, count in report.flags.items()
        ],
        "review": _review(report),
        "medians": list(report.medians().values()),
        "distributions": _distributions(report),
        "plots": [(_plain(plot["title"]), _plain(plot["words"]), f"{folder}/{plot['name']}.png") for plot in report.plots],
        "page": f"{folder}/report.html" if report.plots else "",
        "examples": [_example(row) for row in report.examples],
        "command": block(provenance.command)
        if provenance.command
        else f"From Python, with `srt_hf.{'reselect' if report.mode == 'candidates' else 'recycle'}`.",
    }


def _review(report: Report) -> dict[str, Any]:
    """What people made of the run; {} where nobody was asked."""
    review = report.review
    if not review:
        return {}
    statuses = [(name, f"{count:,}", REVIEW_STATUSES.get(name, "")) for name, count in review["statuses"].items() if count]
    return {**review, "config": "".join(_reviewed(report)), "status_lines": statuses, "alpha_words": decimal(review["alpha"])}


def facts(report: Report) -> list[tuple[str, str, bool]]:
    """Who made a run's result and how: label, words, and whether strangers chose the words. What is unknown is left out."""
    student, made = report.student, report.provenance
    # A replay's replies were written by somebody else.
    teachers = report.teacher.get("writers") or [report.teacher.get("name")]
    found = [
        ("teacher", ", ".join(name for name in teachers if name), True),
        ("student", _at(student.get("student"), student.get("revision")), True),
        ("its template, window, dtype", scoring_words(student), True),
        ("its scores against float32's", rounding_words(report.rounding) if report.rounding else "", True),
        ("proxy (see `scored_by`)", _proxy(report.proxy), True),
        ("mode", _MODES.get(report.mode, "another"), False),
        ("rule", _RULE_WORDS.get(report.rule, "another"), False),
        ("what is kept", _KEEP_WORDS.get(report.keep, "something else"), False),
        ("source", made.source, True),
        ("its revision", made.revision or "", True),
        ("candidates from", made.candidates or "", True),
        ("scores from", made.scores or "", True),
        ("made", report.made or "", True),
    ]
    return [(label, words, foreign) for label, words, foreign in found if words]


def scoring_words(student: Mapping[str, Any]) -> str:
    """How a student scored, as far as that is known.

    >>> scoring_words({"template": "vicuna", "max_length": 2048, "dtype": None})
    'vicuna, 2048 tokens'
    """
    window = f"{student['max_length']} tokens" if student.get("max_length") else None
    return ", ".join(str(known) for known in (student.get("template"), window, student.get("dtype")) if known)


def _pins(report: Report) -> str:
    """The options that name the commits which were read, where they are known and were not typed."""
    made, student = report.provenance, report.student.get("revision")
    commit = student if re.fullmatch(r"[0-9a-f]{40}", str(student)) else None
    wanted = [("--dataset_revision", None if made.candidates else made.revision), ("--student_revision", commit)]
    return " ".join(f"{name} {value}" for name, value in wanted if value and value not in (made.command or ""))


def _linked(repo_id: str) -> str:
    return f"[{inline(repo_id)}](https://huggingface.co/datasets/{repo_id})"


def _proxy(proxy: Mapping[str, Any]) -> str:
    """Who scored rows in the student's place, and what that changed, in words; nothing for a run without a proxy."""
    if not proxy:
        return ""
    name = _at(proxy["student"], proxy["revision"])
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
    return " → ".join(map(decimal, (before, after)))


def _pair(instruction: str | None, input: str | None, output: str | None) -> str:
    parts = [("Instruction", instruction), ("Input", input), ("Output", output)]
    return "\n\n".join(f"{name}: {_cut(text, _EXAMPLE_CHARACTERS)}" for name, text in parts if text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + " […]"


def block(text: str) -> str:
    """A stranger's text as a fenced block of bounded length, with a fence longer than any it contains.

    >>> print(block("a ``` b"))
    ````text
    a ``` b
    ````
    """
    text = _cut(text, _BLOCK_CHARACTERS)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def inline(text: object) -> str:
    """A stranger's short text as inline code: one line, no backticks, no table breaks."""
    clean = " ".join(str(text).replace("`", "'").replace("|", "/").split())[:200]
    return f"`{clean}`"


def _plain(text: str) -> str:
    """Words for a heading or a picture's alternative text: nothing that Markdown or HTML reads."""
    return " ".join(re.sub(r"[^\w .,:;()%/'–-]+", " ", text).split())[:400]
