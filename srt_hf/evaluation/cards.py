"""An evaluation's numbers on a model card: a table that people read, and `model-index`, which the Hub reads.

Only what stands between this tool's two comments, and this tool's own entries of `model-index`, is ever changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf.card import block, inline
from srt_hf.errors import ConfigError, DataError
from srt_hf.evaluation.files import write_whole

if TYPE_CHECKING:
    from srt_hf.evaluation.results import Metric, Results

_HEADER = re.compile(r"\A(---[ \t]*\r?\n)(.*?)(^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.MULTILINE)
_INDEX = re.compile(r"^model-index:.*?(?=^[^\s-]|\Z)", re.DOTALL | re.MULTILINE)


def model_index(results: Results) -> list[Any]:
    """The numbers as `huggingface_hub.EvalResult`s, for `ModelCardData(eval_results=…)`. What could not be had is left out."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=metric.dataset,
            dataset_name=metric.dataset,
            metric_type=_type(results.benchmark, metric.name),
            metric_name=f"{metric.name} ({results.subject})" if results.subject else metric.name,
            metric_value=round(metric.value, 6),
            metric_args=_args(results.subject, metric) or None,
        )
        for metric in results.metrics
        if metric.value is not None
    ]


def _args(subject: str, metric: Metric) -> dict[str, Any]:
    return {
        **({"subject": subject} if subject else {}),
        **({"interval_95": [round(end, 6) for end in metric.interval]} if metric.interval else {}),
    }


def _type(benchmark: str, name: str) -> str:
    return re.sub(r"\W+", "_", f"srt_hf_{benchmark}_{name}".lower()).strip("_")


def check_card(folder: Path) -> None:
    """Raise ConfigError or DataError where no numbers can be put on the card README.md in `folder`."""
    if not folder.is_dir():
        raise ConfigError(f"--card {folder} is no folder.", "Name the model's folder; `hf download` fetches that of a Hub repo.")
    from huggingface_hub import EvalResult

    path = folder / "README.md"
    probe = EvalResult("text-generation", dataset_type="any", dataset_name="any", metric_type="any", metric_value=0)
    _header_with([probe], "", "", _read(path), path)


def write_card(folder: str | Path, results: Results) -> Path:
    """Put the numbers on the model card README.md in `folder`: a table between two comments, and `model-index` in the metadata.

    Results of the same benchmark and subject replace earlier ones. Entries of others in `model-index` keep their content, and
    whatever else stands there stays as it is, byte for byte. Raises DataError where the metadata that is there cannot be read.
    """
    path = Path(folder) / "README.md"
    text = _read(path) or f"---\n---\n\n# {Path(folder).resolve().name}\n"
    end = "\r\n" if "\r\n" in text else "\n"
    header = _header_with(model_index(results), results.benchmark, results.subject, text, path)
    body = _section(results).replace("\n", end)
    begins, ends = _marks(results)
    old = re.search(rf"{re.escape(begins)}.*?{re.escape(ends)}", text, re.DOTALL)
    text = text[: old.start()] + body + text[old.end() :] if old else text.rstrip() + end * 2 + body + end
    match = _HEADER.match(text)
    text = (
        text[: match.start(2)] + header.replace("\n", end) + text[match.end(2) :]
        if match
        else f"---{end}{header}---{end * 2}{text}"
    )
    write_whole(path, text)
    return path


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:  # line ends as they are
            return file.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The card {path} cannot be read: {error}.") from error


def _index(text: str, path: Path) -> list[dict[str, Any]]:
    """The `model-index` of a card, empty where there is none. Raises DataError where it has another form."""
    import yaml

    match = _HEADER.match(text)
    try:
        header = yaml.safe_load(match[2]) if match else None
    except yaml.YAMLError as error:
        raise DataError(f"The metadata of {path} is no YAML.", "Mend what stands between the two lines of ---.") from error
    index = header.get("model-index") if isinstance(header, dict) else header
    if index is None:
        return []
    if not isinstance(index, list) or not all(isinstance(one, dict) and isinstance(one.get("results"), list) for one in index):
        raise DataError(f"The model-index of {path} is no list of models with results.", "Mend it, or take it out.")
    return index


def _header_with(numbers: list[Any], benchmark: str, subject: str, text: str, path: Path) -> str:
    """The card's metadata as text, with these `EvalResult`s in place of earlier ones of this benchmark and subject."""
    import yaml
    from huggingface_hub.repocard_data import eval_results_to_model_index

    index = _index(text, path) or [{"name": path.parent.resolve().name, "results": []}]
    for model in index:
        model["results"] = [kept for result in model["results"] if (kept := _without(result, benchmark, subject))]
    [new] = eval_results_to_model_index("model", numbers) or [{"results": []}]
    index[0]["results"] += new["results"]
    written = yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True)
    match = _HEADER.match(text)
    header = match[2].replace("\r\n", "\n") if match else ""
    changed = _INDEX.sub(lambda _: written, header, count=1) if _INDEX.search(header) else header + written
    if not _differs_by(index, header, changed):
        raise DataError(f"The model-index of {path} cannot be told from what stands around it.", "Write it as an indented list.")
    return changed


def _differs_by(index: list[dict[str, Any]], before: str, after: str) -> bool:
    """Whether the header `after` is `before` with this `model-index`, and nothing else."""
    import yaml

    try:
        old, new = (yaml.safe_load(text) or {} for text in (before, after))
    except yaml.YAMLError:
        return False
    return new == {**old, "model-index": index}


def _without(result: Any, benchmark: str, subject: str) -> Any:
    """A result without this benchmark's metrics of this subject; None where nothing is left."""
    metrics = result.get("metrics") if isinstance(result, dict) else None
    if not isinstance(metrics, list):
        return result
    kept = [metric for metric in metrics if not _is_of(metric, benchmark, subject)]
    return {**result, "metrics": kept} if kept else None


def _is_of(metric: Mapping[str, Any], benchmark: str, subject: str) -> bool:
    own = str(metric.get("type", "")).startswith(f"{_type(benchmark, '')}_")
    return own and (metric.get("args") or {}).get("subject", "") == subject


def _marks(results: Results) -> tuple[str, str]:
    name = _name(results, ": ")
    name = re.sub(r"[^\w.,:/ ]+", "_", name)  # nothing that could end a comment
    return f"<!-- srt_hf wrote this: {name} -->", f"<!-- End of srt_hf's {name}. -->"


def _name(results: Results, separator: str) -> str:
    return f"{results.benchmark}{separator}{results.subject}" if results.subject else results.benchmark


def _section(results: Results) -> str:
    """The numbers as Markdown, between the two comments by which a later run finds them."""
    begins, ends = _marks(results)
    rows = [results.head, ["---"] * len(results.head), *results.lines]
    table = ["| " + " | ".join(map(_plain, row)) + " |" for row in rows]
    how = f"Measured {results.created[:10]} for {inline(results.model.get('name'))} with `evaluate.py {results.benchmark}`."
    notes = [_plain(" ".join(results.notes))] if results.notes else []
    parts = [
        begins,
        f"## Evaluation: {_plain(_name(results, ', '))}",
        "\n".join(table),
        *notes,
        how,
        block(results.command),
        ends,
    ]
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Words that Markdown and HTML read as words, in one line: a server may call its model as it likes."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
