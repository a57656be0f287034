"""The card of an ablation: its report in, Markdown out, with what people wrote on it before. No network; what is unknown stays
unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from srt_hf.card import block, citation, config, config_names, header, inline, scoring_words
from srt_hf.handwritten import Earlier, own_part, seal
from srt_hf.report import Provenance, rounding_words
from srt_hf.schema import ABLATION_TAG

HEAD = ("arm", "rows", "words in: median", "mean", "words out: median", "mean", "ifd", "r_ifd", "in full", "left out")
_WORDS = {
    "full": "the paper's rule: the instruction with the highest IFD, then the response with the lowest r-IFD",
    "original": "no reflection: the original pair of every row",
    "instruction": "no selection: the teacher's instruction with its first response",
    "response": "no selection: the original instruction with its reflected response",
    "both": "no selection: the teacher's instruction with the reflected response to it",
    "random": "selection by a fair draw in both stages, by hash of seed and row id",
    "perplexity": "selection by the lowest perplexity of the response given the instruction, in both stages",
    "coherence": "selection by the highest cosine similarity of instruction and response, in both stages",
    "ifd": "selection by the highest IFD in both stages",
    "r_ifd": "selection by the lowest r-IFD in both stages",
}
_LEGEND = (
    "Words in are those of instruction and input, words out those of the output; ifd and r_ifd are medians. `in full` is the "
    "share of the arm's rows that `full` has too, with the same pair. `left out` counts the rows of the candidates that the arm "
    "has not, by reason. An arm without rows has no config."
)
_KEPT = (
    "An arm without selection has every row whose candidate the teacher did not fail at, whatever the student thinks of it. An "
    "arm with a criterion of its own keeps what `full` keeps: pairs with a reflected response, IFD < 1 and r-IFD < 1."
)


def lines(report: Mapping[str, Any]) -> list[list[str]]:
    """The table of all arms below `HEAD`: a line an arm, all text."""
    found = []
    for name, of in report["arms"].items():
        words = [_shown(of[side][what], "{:.0f}") for side in ("words_in", "words_out") for what in ("median", "mean")]
        scores = [_shown(of[score], "{:.3f}") for score in ("ifd", "r_ifd")]
        share = "–" if of["in_full"] is None else f"{100 * of['in_full']:.1f} %"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in of["left_out"].items())
        found.append([name, f"{of['rows']:,}", *words, *scores, share, reasons])
    return found


_COLUMNS = (
    "Every arm: `id`; the pair, `instruction`, `input` and `output`; `origin`, what the teacher rewrote in it (`original`: "
    "nothing); `reason`, why the row is in the arm; `ifd` and `r_ifd`, the student's scores of the pair; `original_*`, the "
    "source's pair and its scores; `flags`, what the text of the pair shows by itself."
)


def render(report: Mapping[str, Any], repo_id: str, earlier: Earlier) -> str:
    """The card with the Hub's YAML header. earlier: the card that is there already, of which people's own part, licence,
    language, name and further tags stay."""
    from huggingface_hub import DatasetCardData

    title = repo_id.rstrip("/").rpartition("/")[2]
    configs = [config(name, name) for name in (*_with_rows(report), _scores(report))]
    data = header(earlier.header, Provenance(**report["provenance"]), title, configs, [ABLATION_TAG])
    return seal(f"---\n{DatasetCardData(**data).to_yaml()}\n---\n\n{_body(report, title, repo_id, earlier.own)}\n")


def _with_rows(report: Mapping[str, Any]) -> list[str]:
    return [name for name, of in report["arms"].items() if of["rows"]]


def _scores(report: Mapping[str, Any]) -> str:
    """The config of the student's scores."""
    return config_names(report["student"]["student"])[2]


def _body(report: Mapping[str, Any], title: str, repo_id: str, own: str) -> str:
    """Below the header. The sections of the second level are such as `handwritten` knows for the tool's."""
    command = report["provenance"]["command"]
    parts = [
        f"# {inline(title)}",
        "The arms of an ablation of [Selective Reflection-Tuning](https://huggingface.co/papers/2402.10110), each a config of "
        "flat rows that is ready for SFT. All are made of the same candidates with the same scores of one student.",
        own_part(own),
        *_use(report, repo_id),
        f"## Selected for {inline(report['student']['student'])}",
        _table(["", ""], _facts(report)),
        "### Arms",
        _table(HEAD, [[f"`{name}`", *cells] for name, *cells in lines(report)]),
        _LEGEND,
        _meanings(report),
        _KEPT,
        "### How it was made",
        block(command) if command else "From Python, with `srt_hf.ablation.ablate`.",
        "## Columns",
        _COLUMNS,
        f"Config `{_scores(report)}`, every row of the candidates: `id`, `scores` (parallel to the row's candidates), "
        "`scored_by`, and the decision of `full` with its `flags`. With it scripts/ablate.py --scores makes further arms without "
        "a model.",
        "## Citation",
        f"```bibtex\n{citation()}\n```",
    ]
    return "\n\n".join(parts)


def _use(report: Mapping[str, Any], repo_id: str) -> list[str]:
    """How to load an arm and train on it; nothing where none has a row."""
    names = _with_rows(report)
    if not names:
        return []
    python = f'load_dataset("{repo_id}", "{names[0]}", split="train")'
    train = f"python scripts/train_sft.py --dataset {repo_id} --dataset_config {names[0]} --output_dir {names[0]}"
    return ["## Use it", block(f"{python}\n{train}")]


def _meanings(report: Mapping[str, Any]) -> str:
    """What each arm is, as a list."""
    arms = report["arms"]
    meanings = [f"- `{name}`: {_WORDS[name]}" for name in arms if name in _WORDS]
    if any(name not in _WORDS for name in arms):
        meanings.append("- `top-N`: the N % of `full` with the highest IFD")
    return "\n".join(meanings)


def _facts(report: Mapping[str, Any]) -> list[list[str]]:
    """Who and what: label, value."""
    student, provenance, coherence = report["student"], report["provenance"], report["coherence"]
    facts = [
        ["candidates", f"{inline(provenance['candidates'] or provenance['source'])}, {report['rows']:,} rows"],
        ["made of", _at(provenance["source"], provenance["revision"])],
        ["teacher", ", ".join(map(inline, report["writers"])) or "not known"],
        ["student", f"{_at(student['student'], student['revision'])} ({inline(scoring_words(student))})"],
    ]
    if report["rounding"]:
        facts.append(["its scores against float32's", inline(rounding_words(report["rounding"]))])
    if coherence:
        facts.append(
            ["embeddings", f"{_at(coherence['model'], coherence['identity'])}, sentence-transformers {coherence['version']}"]
        )
    if "random" in report["arms"]:
        facts.append(["seed of `random`", str(report["seed"])])
    return [*facts, ["made", str(report["made"])]]


def _at(name: str | None, revision: str | None) -> str:
    return inline(f"{name}@{revision}" if revision else name)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
