"""The four tasks of the Open LLM Leaderboard (v1) that the paper reports, by lm-evaluation-harness, beside the paper's numbers.

    python scripts/evaluate.py openllm --model org/srecycled-alpaca-7b

It needs lm-eval (the extra `[eval]`) and runs the model in this process: ARC-Challenge with 25 examples in the prompt and
HellaSwag with 10, both by length-normalised accuracy, MMLU with 5, TruthfulQA (mc2) with none of its own. Every answer is kept
under HF_HOME, so that the same command goes on where a stopped one was. MMLU is the plain mean of its 57 subjects, as on that
leaderboard; lm-eval's own number of the group weighs them by their questions. Other tasks, your own files included, with --tasks
and --include_path; they have no numbers of the paper beside them.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf.cli import option
from srt_hf.errors import ConfigError, DataError, StudentError
from srt_hf.evaluation.files import digest
from srt_hf.evaluation.leaderboard import PAPER_TASKS, Task, average, beside_the_paper, metrics_of, other_tasks
from srt_hf.evaluation.results import OutputArguments, Results
from srt_hf.identity import base_model, brief, model_identity, revisions, shown_name
from srt_hf.network import HUB_AWAY, HUB_REFUSED
from srt_hf.report import versions

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


_DTYPES = ("auto", "float32", "bfloat16", "float16")
_FAILURES = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AssertionError, *HUB_AWAY, *HUB_REFUSED)


@dataclass
class TaskArguments:
    """The tasks"""

    tasks: str | None = option(None, "other tasks than the paper's, by lm-eval's names, with commas")
    num_fewshot: int | None = option(None, "examples in the prompt, for --tasks [each task's own]")
    include_path: str | None = option(None, "folder of your own task files (YAML); they go before lm-eval's of the same name")
    limit: int | None = option(None, "questions of each task, the first ones: for trying out, not for comparing [all]")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is {self.limit}.", "Give at least 1, or leave it out for all questions.")
        if self.num_fewshot is not None and (self.num_fewshot < 0 or not self.tasks):
            raise ConfigError("--num_fewshot is 0 or more, for --tasks; the paper's are fixed.", "Leave it out.")
        if self.include_path and not Path(self.include_path).is_dir():
            raise ConfigError(f"--include_path {self.include_path} is no folder.", "Name the folder that holds the task files.")

    @property
    def chosen(self) -> list[Task]:
        if not self.tasks:
            return list(PAPER_TASKS.values())
        return [Task(name.strip(), self.num_fewshot) for name in self.tasks.split(",") if name.strip()]


@dataclass
class MeasuredArguments:
    """The model that is evaluated, in this process"""

    model: str | None = option(None, "Hub id or folder of a causal LM or of a PEFT adapter (required)")
    model_revision: str | None = option(None, "branch, tag or commit of a Hub model")
    dtype: str = option("auto", f"{', '.join(_DTYPES)}; auto is the checkpoint's own")
    batch_size: str = option("auto", "sequences a forward pass, or auto for as many as fit into memory")

    def __post_init__(self) -> None:
        if (self.model or "").startswith(("http://", "https://", "tgi+")):
            raise ConfigError(
                "openllm reads probabilities of given texts, which a chat server does not tell.",
                "Name the model by its Hub id or folder.",
            )
        if self.dtype not in _DTYPES:
            raise ConfigError(f"--dtype is {self.dtype!r}.", f"Choose from {', '.join(_DTYPES)}.")
        if self.batch_size != "auto" and not (self.batch_size.isdigit() and int(self.batch_size)):
            raise ConfigError(f"--batch_size is {self.batch_size!r}.", "Give a number of at least 1, or auto.")


ARGUMENTS = (TaskArguments, MeasuredArguments, OutputArguments)


def main(tasks: TaskArguments, model: MeasuredArguments, output: OutputArguments) -> int:
    """Measure, and write the results."""
    about = _about(model)
    manager = _manager(tasks)
    setup = {"tasks": _tasks(tasks.chosen, manager), "limit": tasks.limit, "task_files": _task_files(tasks.include_path)}
    output.check("openllm", setup)
    lm, cache = _load(model, about), _cache(about)
    measured = {task.name: _measure(lm, task, tasks.limit, manager, cache) for task in tasks.chosen}
    output.finish(_results(tasks, about, setup, measured))
    return 0


def _results(
    tasks: TaskArguments, about: dict[str, Any], setup: dict[str, Any], measured: Mapping[str, Mapping[str, Any]]
) -> Results:
    metrics = [metric for task in tasks.chosen for metric in metrics_of(task, measured[task.name], tasks.limit)]
    if not tasks.tasks:
        metrics = [average(metrics, tasks.limit), *metrics]
    told = other_tasks(metrics, measured) if tasks.tasks else beside_the_paper(metrics, about["name"])
    if tasks.limit:
        told["notes"].append(
            f"Only the first {tasks.limit} questions of each task were asked: no numbers to compare with others."
        )
    if tasks.include_path:
        told["notes"].append("Task files of your own were read; one of a known name stands in its place.")
    by = {**versions(), "lm_eval": importlib.metadata.version("lm_eval")}
    subject = ", ".join(task.name for task in tasks.chosen) if tasks.tasks else ""
    return Results("openllm", about, setup, metrics, **told, details={"lm_eval": measured}, subject=subject, versions=by)


def _tasks(tasks: Sequence[Task], manager: TaskManager) -> dict[str, Any]:
    """What is measured, for the setup; version: lm-eval's, which tells that a task asks otherwise than before."""
    configs = {task: manager.task_index[task.name].cfg or {} for task in tasks}
    return {
        task.name: {
            "few_shot": task.few_shot,
            "metric": task.metric,
            "version": str((config.get("metadata") or {}).get("version")),
        }
        for task, config in configs.items()
    }


def _manager(tasks: TaskArguments) -> TaskManager:
    """lm-eval's index of all tasks. Raises ConfigError where it is not installed, or knows none of that name."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(f"lm-eval is not installed ({brief(error)}).", "Install it with: pip install 'srt_hf[eval]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings name what is meant to be, such as few-shot counts
    manager = TaskManager(include_path=tasks.include_path)
    for task in tasks.chosen:
        if task.name not in manager.task_index:
            close = difflib.get_close_matches(task.name, manager.all_tasks, n=3)
            cure = f"Did you mean {', '.join(close)}?" if close else "`lm-eval ls tasks` lists all; --include_path adds your own."
            raise ConfigError(f"lm-eval has no task {task.name!r}.", cure)
    return manager


def _about(model: MeasuredArguments) -> dict[str, Any]:
    """The model for the results. Raises ConfigError without a name, StudentError where there is no model of that name."""
    if not model.model:
        raise ConfigError("No model is named with --model.", "Give a Hub id or a folder.")
    identity = model_identity(model.model, model.model_revision)
    base = base_model(model.model, model.model_revision)
    adapter = {"adapter_of": shown_name(base)} if base else {}
    return {"name": shown_name(model.model), "revision": identity, "how": "lm-eval", "dtype": model.dtype, **adapter}


def _task_files(folder: str | None) -> str | None:
    """A digest of your own task files, which can replace lm-eval's."""
    if folder is None:
        return None
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".yaml", ".py") and path.is_file())
    return digest([[path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8")] for path in files])


def _load(model: MeasuredArguments, about: Mapping[str, Any]) -> Any:
    """lm-eval's model. Raises StudentError."""
    from huggingface_hub import snapshot_download
    from lm_eval.models.huggingface import HFLM

    from srt_hf.student.loading import pick_device

    name = str(model.model)
    base = base_model(name, model.model_revision)
    own, of_base = revisions(about["revision"])
    named = {"pretrained": name, "revision": own or "main"}
    try:
        if base:  # lm-eval has one revision for both, so that the adapter comes as a folder
            folder = name if own is None else snapshot_download(name, revision=own)
            named = {"pretrained": base, "revision": of_base or "main", "peft": folder}
            if (Path(folder) / "tokenizer_config.json").is_file():
                named["tokenizer"] = folder
        return HFLM(**named, dtype=model.dtype, batch_size=model.batch_size, device=str(pick_device(None, None)))
    except _FAILURES as error:
        raise StudentError(f"The model {name} cannot be loaded: {brief(error)}") from error


def _cache(about: Mapping[str, Any]) -> str:
    """Where lm-eval keeps each answer of this very model, without its own ending."""
    from huggingface_hub.constants import HF_HOME

    name = digest([about["revision"], about["dtype"], importlib.metadata.version("lm_eval")]).removeprefix("sha256:")[:16]
    return str(Path(HF_HOME) / "srt_hf" / "lm_eval" / name)


def _measure(lm: Any, task: Task, limit: int | None, manager: TaskManager, cache: str) -> dict[str, Any]:
    """What lm-eval says of one task: its numbers ("acc,none"), its version and how many examples and questions it had."""
    from lm_eval import simple_evaluate

    try:
        found = simple_evaluate(
            lm,
            tasks=[task.name],
            num_fewshot=task.few_shot,
            limit=limit,
            task_manager=manager,
            use_cache=cache,
            log_samples=False,
        )
    except _FAILURES as error:
        print(file=sys.stderr)  # below lm-eval's bar, which is left where it was
        cure = "What was answered so far is kept; the same command goes on from there."
        raise DataError(f"lm-eval cannot measure {task.name}: {brief(error)}.", cure) from error
    rows = found["results"]
    return {
        "results": {name: {key: value for key, value in row.items() if "," in key} for name, row in rows.items()},
        "version": found["versions"].get(task.name),
        "few_shot": found["n-shot"].get(task.name),
        "parts": list(found["n-samples"]),  # the tasks that a group is made of
        "questions": sum(size["effective"] for size in found["n-samples"].values()),
    }
