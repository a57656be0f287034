"""AlpacaEval: a model answers 805 prompts, an annotator prefers its answers or the references; length-controlled rate first.

    python scripts/evaluate.py alpaca-eval --model http://localhost:8080                             # AlpacaEval 2
    python scripts/evaluate.py alpaca-eval --model org/srecycled-alpaca-7b --references davinci003   # AlpacaEval 1, the paper's

Prompts and reference answers come from tatsu-lab/alpaca_eval on the Hub, or from a file. The answers go to outputs.json in the
model's folder below --alpaca_dir, in the package's format. Where alpaca_eval is installed, here or in an environment of its own
(--alpaca_eval ENVIRONMENT/bin/alpaca_eval), it is run on them with the annotator that is chosen, whose key it reads itself
(OPENAI_API_KEY); else the command to run is printed. A win rate rewards long answers, so it never stands without their length.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srt_hf.cli import option
from srt_hf.errors import ConfigError, DataError, HubError
from srt_hf.evaluation.answers import Answer, ModelArguments, ServerArguments
from srt_hf.evaluation.fastchat import file_name
from srt_hf.evaluation.figures import count
from srt_hf.evaluation.files import digest, read_rows, write_whole
from srt_hf.evaluation.results import Metric, OutputArguments, Results
from srt_hf.evaluation.sets import Question
from srt_hf.network import HUB_AWAY, HUB_REFUSED

_HUB = "tatsu-lab/alpaca_eval"
# --references -> file on the Hub, the annotator of the leaderboard with these references.
_KNOWN = {
    "gpt4_turbo": ("alpaca_eval_gpt4_baseline.json", "weighted_alpaca_eval_gpt4_turbo"),
    "davinci003": ("alpaca_eval.json", "alpaca_eval_gpt4"),
}
# On these leaderboards (tatsu-lab/alpaca_eval; the second line: the paper): LC win rate, win rate, characters of an answer.
_PAPER = {
    "gpt4_turbo": {"sRecycled WizardLM 7B": ("7.52", "7.34", "1583")},
    "davinci003": {"sRecycled WizardLM 7B": ("51.10", "83.48", "1583"), "sRecycled Alpaca 7B": ("–", "79.58", "–")},
}
_WHOLE = 805  # prompts; the length-controlled rate is a fit to all of them, with a known difficulty of each
_SURE = 1.96  # standard errors on either side that hold 95 %
_LC, _WIN = "length_controlled_winrate", "win_rate"
_ERRORS = {_LC: "lc_standard_error", _WIN: "standard_error"}
_LENGTH_NOTE = (
    "A win rate rewards length: of the paper's 7B model, 83.48 % against davinci003 are 51.10 % at equal length, "
    "and 7.52 % against GPT-4 Turbo."
)


@dataclass
class AlpacaArguments:
    """AlpacaEval"""

    references: str = option(
        "gpt4_turbo", "reference answers: gpt4_turbo (AlpacaEval 2), davinci003 (AlpacaEval 1), or a JSON file of them"
    )
    annotators_config: str | None = option(None, "alpaca_eval's annotator: its name, or your own folder [the leaderboard's]")
    alpaca_eval: str = option("alpaca_eval", "the package's command, here or in an environment of its own")
    alpaca_dir: str = option("alpaca_eval_outputs", "folder that gets the outputs, and what alpaca_eval writes")

    @property
    def annotator(self) -> str:
        """A name that alpaca_eval knows, or the path of a folder, which it knows by a slash."""
        chosen = self.annotators_config or _KNOWN.get(self.references, _KNOWN["gpt4_turbo"])[1]
        return str(Path(chosen).resolve()) if Path(chosen).exists() else chosen


ARGUMENTS = (AlpacaArguments, ModelArguments, ServerArguments, OutputArguments)


def main(alpaca: AlpacaArguments, models: ModelArguments, servers: ServerArguments, output: OutputArguments) -> int:
    """Answer, write the outputs, have them annotated, and write the results."""
    references = _references(alpaca.references)
    answerer = models.make(servers)
    about = answerer.about()
    setup = {
        "references": digest([[row["instruction"], row["output"]] for row in references]),
        "annotator": _about_annotator(alpaca.annotator),
        **models.sampling(about),
    }
    output.check("alpaca-eval", setup)
    questions = [Question(f"alpaca_eval/{n}", row["instruction"]) for n, row in enumerate(references)]
    given = answerer.answer(questions)
    answers = [given.get(question.id, Answer("", error="missing")) for question in questions]
    folder = Path(alpaca.alpaca_dir).resolve() / file_name(about["name"])
    rows = _write(folder, references, answers, about["name"])
    whole = len(rows) == _WHOLE
    command = _command(alpaca, folder, whole)
    if shutil.which(alpaca.alpaca_eval) is None:
        print(
            f"{len(rows)} answers are in {folder / 'outputs.json'}. {alpaca.alpaca_eval} is not installed, so nobody judged them "
            "and no results are written."
        )
        print(f"Give the same command where it is (pip install alpaca-eval), or run it yourself:\n\n{shlex.join(command)}")
        return 0
    found = _annotated(command, folder, alpaca.annotator, about["name"])
    output.finish(_results(alpaca, about, setup, references, answers, found))
    return 0


def _about_annotator(annotator: str) -> dict[str, str | None]:
    """Name and, of your own, a digest of its configuration and prompts."""
    path = Path(annotator)
    if not path.exists():
        return {"name": annotator, "digest": None}
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.suffix in (".yaml", ".txt"))
    return {"name": path.name, "digest": digest([[one.name, one.read_text(encoding="utf-8")] for one in files])}


def _references(name: str) -> list[dict[str, Any]]:
    """The prompts with their reference answers, in the file's order. Raises HubError or DataError."""
    path = _download(_KNOWN[name][0]) if name in _KNOWN else Path(name)
    if not path.is_file():
        cure = f"Choose from {', '.join(_KNOWN)}, or give a JSON file of instruction, output and generator."
        raise ConfigError(f"There are no references {name!r}.", cure)
    rows = read_rows(path)
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row.get(field), str) for field in ("instruction", "output")):
            raise DataError(f"Row {number} of {path} has no texts instruction and output.", "Give a file in AlpacaEval's format.")
    if len({row["instruction"] for row in rows}) < len(rows):
        raise DataError(f"{path} holds an instruction twice.", "alpaca_eval tells answers apart by it: give each once.")
    return rows


def _download(file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(_HUB, file, repo_type="dataset"))
    except (OSError, ValueError, *HUB_AWAY, *HUB_REFUSED) as error:
        cure = f"Give the file itself: --references {file}, from huggingface.co/datasets/{_HUB}."
        raise HubError(f"{file} of {_HUB} cannot be had from the Hub.", cure) from error


def _write(folder: Path, references: Sequence[Mapping[str, Any]], answers: Sequence[Answer], name: str) -> list[dict[str, Any]]:
    """The answers as alpaca_eval wants them, and the references beside them; returned are the former."""
    rows = [
        {
            "instruction": row["instruction"],
            "output": answer.text,
            "generator": name,
            "dataset": row.get("dataset", "alpaca_eval"),
        }
        for row, answer in zip(references, answers, strict=True)
        if answer.error is None
    ]
    if not rows:
        codes = ", ".join(f"{n} {code}" for code, n in count(answer.error for answer in answers if answer.error).items())
        raise DataError(f"No prompt was answered ({codes}), so there is nothing to judge.")
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in (("outputs.json", rows), ("references.json", references)):
        write_whole(folder / file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return rows


def _command(alpaca: AlpacaArguments, folder: Path, whole: bool) -> list[str]:
    """alpaca_eval's call. Its options are read as Python literals, so that texts are quoted."""
    kept = _kept(folder, alpaca.annotator)
    options = {
        "model_outputs": str(folder / "outputs.json"),
        "reference_outputs": str(folder / "references.json"),
        "annotators_config": alpaca.annotator,
        "output_path": str(folder),
        "caching_path": str(kept / "annotations_cache.json"),  # else in the package's own folder
        "precomputed_leaderboard": None,
        "fn_metric": "get_length_controlled_winrate" if whole else "get_winrate",
        "sort_by": _LC if whole else _WIN,
        **({"metric_kwargs": {"save_weights_dir": str(kept / "weights")}} if whole else {}),
    }
    return [alpaca.alpaca_eval, *(f"--{name}={value!r}" for name, value in options.items())]


def _kept(folder: Path, annotator: str) -> Path:
    """Where alpaca_eval puts its results: in a folder of the annotator's name, unless that is a path."""
    return folder if "/" in annotator else folder / annotator


def _annotated(command: list[str], folder: Path, annotator: str, name: str) -> dict[str, float | None]:
    """Run alpaca_eval and read this model's line of its leaderboard. Raises DataError."""
    kept = _kept(folder, annotator)
    kept.mkdir(parents=True, exist_ok=True)
    table = kept / "leaderboard.csv"
    table.unlink(missing_ok=True)  # an earlier run's numbers must not pass for this one's
    code = subprocess.run(command, check=False).returncode
    cure = (
        f"What it said stands above. The answers are in {folder}, and annotations so far are kept: give the same command again."
    )
    if code:
        raise DataError(f"alpaca_eval ended with exit code {code}.", cure)
    try:
        with table.open(encoding="utf-8", newline="") as lines:
            [row] = [row for row in csv.DictReader(lines) if row.pop("") == name]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"alpaca_eval wrote no line of {name} into {table}.", cure) from error
    return {key: _number(value) for key, value in row.items()}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _results(
    alpaca: AlpacaArguments,
    about: dict[str, Any],
    setup: dict[str, Any],
    references: Sequence[Mapping[str, Any]],
    answers: Sequence[Answer],
    found: Mapping[str, float | None],
) -> Results:
    dataset = f"alpaca_eval_{alpaca.references}" if alpaca.references in _KNOWN else "alpaca_eval"
    rates = [_rate(dataset, name, found) for name in (_LC, _WIN)]
    lengths = [
        Metric(dataset, name, sum(map(len, texts)) / len(texts))
        for name, texts in (
            ("characters of an answer", [answer.text for answer in answers if answer.error is None]),
            ("characters of a reference", [row["output"] for row in references]),
        )
    ]
    other = str(references[0].get("generator", "the references"))
    paper = _PAPER.get(alpaca.references, {}) if alpaca.annotator == _KNOWN.get(alpaca.references, ("", ""))[1] else {}
    judged = found.get("n_total")
    return Results(
        "alpaca-eval",
        about,
        setup,
        [*rates, *lengths],
        head=["model", "LC win rate", "win rate", "characters", "judged"],
        lines=[
            [about["name"], *map(_shown, rates), f"{lengths[0].value:.0f}", "–" if judged is None else f"{judged:.0f}"],
            [f"references: {other}", "50.00", "50.00", f"{lengths[1].value:.0f}", "–"],
            *([f"paper: {name}", *cells, str(_WHOLE) if cells[0] != "–" else "–"] for name, cells in paper.items()),
        ],
        notes=_notes(setup["annotator"]["name"], answers, judged),
        subject=f"{Path(alpaca.references).stem}, {setup['annotator']['name']}",
        details={
            "leaderboard": dict(found),
            "no_answer": count(answer.error for answer in answers if answer.error),
            "cut": sum(answer.cut for answer in answers),
        },
    )


def _rate(dataset: str, name: str, found: Mapping[str, float | None]) -> Metric:
    value, error = found.get(name), found.get(_ERRORS[name])
    known = value is not None and error is not None
    return Metric(dataset, name, value, (value - _SURE * error, value + _SURE * error) if known else None)  # type: ignore[operator]


def _shown(rate: Metric) -> str:
    if rate.value is None:
        return "–"
    return f"{rate.value:.2f}" + (f" ± {rate.interval[1] - rate.value:.2f}" if rate.interval else "")


def _notes(annotator: str, answers: Sequence[Answer], judged: float | None) -> list[str]:
    answered = sum(answer.error is None for answer in answers)
    notes = [f"Percent, ± 95 %, by {annotator}; LC is the rate at equal length. Characters are means.", _LENGTH_NOTE]
    if codes := count(answer.error for answer in answers if answer.error):
        told = ", ".join(f"{n} {code}" for code, n in codes.items())
        notes.append(f"{sum(codes.values())} of {len(answers)} prompts have no answer ({told}), and no rate counts them.")
    if answered != _WHOLE:
        notes.append(f"There is no LC win rate: it is a fit to all {_WHOLE} prompts, and {answered} were answered.")
    if judged is not None and judged < answered:
        notes.append(f"{answered - judged:.0f} answers have no annotation that could be read, and no rate counts them.")
    if cut := sum(answer.cut for answer in answers):
        notes.append(f"{cut} answers were cut by the token limit.")
    return notes
