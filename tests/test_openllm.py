"""lm-evaluation-harness on a tiny model with local task files: the paper's table, few-shot counts, runs that go on, and
every complaint."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_models import make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from srt_hf.evaluation import leaderboard
from srt_hf.evaluation.results import Results

Run = Callable[..., tuple[int, str, str]]
MULTIPLE_CHOICE = {
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "train",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
}
QUESTIONS = 13
FEW = 5  # of MMLU's second subject


def metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def question(name: str) -> dict[str, Any]:
    """One with two answers of random words, of which a random one is right."""
    draw = random.Random(name)
    choices = [" ".join(draw.choices(["red", "blue", "atom", "sleep", "diet", "add", "user"], k=length)) for length in (2, 5)]
    return {"question": f"What of {name}?", "choices": choices, "label": draw.randrange(2)}


def right_share(model: str) -> float:
    """The share of the test questions whose right answer has the higher probability, without any harness."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    right = 0
    for n in range(QUESTIONS):
        row = question(f"test {n}")
        prompt = f"{row['question']}\nAnswer:"
        start, sums = len(tokenizer(prompt).input_ids), []
        for choice in row["choices"]:
            ids = torch.tensor([tokenizer(f"{prompt} {choice}").input_ids])
            with torch.inference_mode():
                each = network(ids[:, :-1]).logits.log_softmax(-1)[0].gather(1, ids[0, 1:, None])
            sums.append(float(each[start - 1 :].sum()))
        right += sums.index(max(sums)) == row["label"]
    return right / QUESTIONS


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of task files of the names that the paper's four have, about local questions."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = {}
    for split, count in (("train", 40), ("test", QUESTIONS), ("few", FEW)):
        rows = [question(f"{split} {n}") for n in range(count)]
        data[split] = str(tmp_path / f"{split}.jsonl")
        Path(data[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = {"data_files": {"train": data["train"], "test": data.pop("few")}}
    common = {**MULTIPLE_CHOICE, "dataset_kwargs": {"data_files": data}, "metadata": {"version": 1.0}}
    own: dict[str, dict[str, Any]] = {
        "arc_challenge": {"metric_list": metrics("acc", "acc_norm")},
        "hellaswag": {"metric_list": metrics("acc", "acc_norm")},
        "truthfulqa_mc2": {"metric_list": metrics("acc"), "num_fewshot": 0},
        "mmlu_one": {"metric_list": metrics("acc")},
        "mmlu_two": {"metric_list": metrics("acc"), "dataset_kwargs": few},
    }
    for name, config in own.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **config}))
    group = {
        "group": "mmlu",
        "task": ["mmlu_one", "mmlu_two"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (folder / "mmlu.yaml").write_text(yaml.safe_dump({**group, "metadata": {"version": 2}}))
    return folder


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, run_script: Run, tmp_path: Path) -> Run:
    """Run the subcommand in this process, in an empty folder -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else a name that is none is asked for again and again

    def run(*arguments: str) -> tuple[int, str, str]:
        return run_script("evaluate.py", "openllm", *arguments)

    return run


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> Any:
    """lm-eval without its own 14,000 tasks, whose index takes seconds."""
    module = pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra [eval])", exc_type=ImportError)
    import lm_eval.tasks

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_llama(tmp_path_factory.mktemp("openllm") / "tiny"))


def error_line(err: str) -> str:
    """The one line of a complaint, below whatever lm-eval and its bars wrote."""
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def test_the_papers_tasks_beside_the_papers_numbers(evaluate: Run, lm_eval: Any, tasks: Path, model: str) -> None:
    (Path("card")).mkdir()
    code, out, err = evaluate("--model", model, "--include_path", str(tasks), "--card", "card")
    assert code == 0, err
    results = Results.load("openllm.json")
    found = {(metric.dataset, metric.name): metric for metric in results.metrics}
    names = ("arc_challenge", "acc_norm (%)"), ("hellaswag", "acc_norm (%)"), ("mmlu", "acc (%)"), ("truthfulqa_mc2", "acc (%)")
    own = list(names)
    assert list(found) == [("open_llm_leaderboard", "average (%)"), *own]
    values = [found[name].value for name in own]
    assert all(value * QUESTIONS * 10 / 100 == pytest.approx(round(value * QUESTIONS * 10 / 100)) for value in values)
    assert values[3] == pytest.approx(100 * right_share(model))
    assert results.metrics[0].value == pytest.approx(sum(values) / 4)
    measured = results.details["lm_eval"]
    assert {name: measured[name]["few_shot"] for name, _ in own} == dict(
        zip((name for name, _ in own), (25, 10, 5, 0), strict=True)
    )
    assert measured["mmlu"]["questions"] == QUESTIONS + FEW
    # The plain mean of two tasks of unlike size, not the share of all questions.
    parts = [measured["mmlu"]["results"][name] for name in ("mmlu_one", "mmlu_two")]
    assert values[2] == pytest.approx(100 * sum(part["acc,none"] for part in parts) / 2)
    error = 100 * math.hypot(*(part["acc_stderr,none"] for part in parts)) / 2
    assert found[own[2]].interval == pytest.approx((values[2] - 1.96 * error, values[2] + 1.96 * error))
    row = measured["arc_challenge"]["results"]["arc_challenge"]
    assert values[0] == pytest.approx(100 * row["acc_norm,none"])
    error = 100 * row["acc_norm_stderr,none"]
    assert found[own[0]].interval == pytest.approx((values[0] - 1.96 * error, values[0] + 1.96 * error))

    assert results.head == ["model", "average", "ARC", "HellaSwag", "MMLU", "TruthfulQA"]
    assert results.lines[0][0] == "tiny" and results.lines[0][2].startswith(f"{values[0]:.2f} ± ")
    assert ["paper: sRecycled Alpaca 7B", "56.05", "54.01", "78.07", "46.69", "45.41"] in results.lines
    assert "students of Llama 2" in out and "ARC 25, HellaSwag 10, MMLU 5, TruthfulQA 0" in out
    card = (Path("card") / "README.md").read_text()
    index = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    assert {entry["dataset"]["type"] for entry in index} == {"open_llm_leaderboard", *(name for name, _ in own)}
    assert "| paper: sRecycled Alpaca 7B | 56.05 |" in card


def test_the_papers_numbers_are_those_of_its_tables(shared: Path) -> None:
    lines = [line for line in (shared / "METHOD.md").read_text().splitlines() if line.startswith("| ")]
    rows = {cells[1].strip(): cells[3:8] for line in lines if len(cells := line.split("|")) == 9}
    for name, values in leaderboard.PAPER.items():
        assert [float(cell) for cell in rows["… 2 % (926 rows)" if name.endswith("2 %") else name]] == list(values)


def test_a_stopped_run_goes_on_without_the_model(
    evaluate: Run, lm_eval: Any, tasks: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    given = ["--model", model, "--include_path", str(tasks), "--tasks", "arc_challenge,mmlu_one", "--batch_size", "4"]
    calls = []
    call = HFLM._model_call

    def dies(self: Any, *arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:
            raise RuntimeError("out of memory\nwith a long tale")
        return call(self, *arguments, **more)

    monkeypatch.setattr(HFLM, "_model_call", dies)
    code, _, err = evaluate(*given)
    complaint = "error: lm-eval cannot measure arc_challenge: out of memory. What was answered so far is kept; the same command"
    assert code == 1 and error_line(err).startswith(complaint)
    assert evaluate(*given)[0] == 0
    whole = math.ceil(
        2 * QUESTIONS / 4
    )  # two choices a question, four a batch; both tasks ask the same here, which is asked once
    assert len(calls) == 1 + whole  # the batch that failed, and each batch once
    before = Results.load("openllm.json")
    assert evaluate(*given, "--compare", "openllm.json")[0] == 0 and len(calls) == 1 + whole
    assert Results.load("openllm.json").metrics == before.metrics
    another = make_llama(Path("another"), seed=1)  # the answers that are kept are one model's
    assert evaluate(*given[2:], "--model", str(another))[0] == 0 and len(calls) == 1 + 2 * whole


def test_other_tasks_and_a_limit(evaluate: Run, lm_eval: Any, tasks: Path, model: str) -> None:
    given = ["--model", model, "--include_path", str(tasks), "--tasks", "hellaswag", "--num_fewshot", "3"]
    code, out, _ = evaluate(*given, "--output", "all.json")
    assert code == 0 and "paper" not in out and "Examples in the prompt: hellaswag 3." in out
    whole = Results.load("all.json")
    assert [(metric.dataset, metric.name) for metric in whole.metrics] == [
        ("hellaswag", "acc (%)"),
        ("hellaswag", "acc_norm (%)"),
    ]
    row = whole.details["lm_eval"]["hellaswag"]["results"]["hellaswag"]
    assert whole.metrics[0].value == pytest.approx(100 * row["acc,none"]) and "Percent where it says so" in out
    assert whole.details["lm_eval"]["hellaswag"]["few_shot"] == 3
    code, out, _ = evaluate(*given, "--limit", "2")
    assert code == 0 and "Only the first 2 questions of each task were asked: no numbers to compare with others." in out
    limited = Results.load("openllm.json")
    assert [metric.name for metric in limited.metrics] == ["acc (%), first 2", "acc_norm (%), first 2"]
    code, _, err = evaluate(*given, "--limit", "2", "--compare", "all.json")
    assert code == 1 and "cannot be compared, they differ in limit (nothing there, 2 here)" in error_line(err)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft, of transformers
def test_an_adapter_is_measured_with_its_base(evaluate: Run, lm_eval: Any, tasks: Path, model: str) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, init_lora_weights=False))
    adapted.save_pretrained("adapter")
    given = ["--include_path", str(tasks), "--tasks", "arc_challenge"]
    code, _, err = evaluate(*given, "--model", "adapter", "--dtype", "float32")
    assert code == 0, err
    found = Results.load("openllm.json")
    assert found.model["name"] == "adapter" and found.model["adapter_of"] == "tiny" and found.model["dtype"] == "float32"
    adapted.merge_and_unload().save_pretrained("merged")
    make = [path for path in Path(model).iterdir() if path.name.startswith("tokenizer")]
    for path in make:
        (Path("merged") / path.name).write_bytes(path.read_bytes())
    assert evaluate(*given, "--model", "merged", "--dtype", "float32", "--compare", "openllm.json")[0] == 0
    assert Results.load("openllm.json").metrics == found.metrics


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (["--tasks", "arc_chalenge"], 2, "lm-eval has no task 'arc_chalenge'. Did you mean arc_challenge"),
        (["--model", "empty"], 1, "The model empty cannot be loaded: "),
        (["--model", "nowhere"], 1, "The model nowhere cannot be found"),
        (["--tasks", "broken"], 1, "lm-eval cannot measure broken: "),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    evaluate: Run, lm_eval: Any, tasks: Path, model: str, options: list[str], code: int, complaint: str
) -> None:
    Path("empty").mkdir()
    broken = {"task": "broken", **MULTIPLE_CHOICE, "dataset_kwargs": {"data_files": {"test": "absent.jsonl"}}}
    (tasks / "broken.yaml").write_text(yaml.safe_dump({**broken, "metric_list": metrics("acc")}))
    found, _, err = evaluate("--include_path", str(tasks), "--tasks", "arc_challenge", "--model", model, *options)
    assert found == code and complaint in error_line(err)
    assert not Path("openllm.json").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "No model is named with --model."),
        (["--model", "http://localhost:8080"], "openllm reads probabilities of given texts, which a chat server does not tell."),
        (["--model", "x", "--limit", "0"], "--limit is 0."),
        (["--model", "x", "--num_fewshot", "3"], "--num_fewshot is 0 or more, for --tasks; the paper's are fixed."),
        (["--model", "x", "--include_path", "absent"], "--include_path absent is no folder."),
        (["--model", "x", "--batch_size", "many"], "--batch_size is 'many'."),
        (["--model", "x", "--dtype", "float7"], "--dtype is 'float7'. Choose from auto, float32,"),
    ],
)
def test_a_wrong_option_is_one_line(evaluate: Run, options: list[str], complaint: str) -> None:
    code, _, err = evaluate(*options)
    assert code == 2 and complaint in err and err.count("\n") == 1


def test_without_lm_eval_it_says_how_to_get_it(evaluate: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    code, _, err = evaluate("--model", model)
    assert code == 2 and "lm-eval is not installed" in err and "pip install 'srt_hf[eval]'" in err and err.count("\n") == 1


@pytest.mark.slow
def test_lm_eval_knows_the_papers_tasks_by_these_names_and_metrics() -> None:
    """Of the installed lm-eval's own files: nothing is downloaded."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-eval is not installed (the extra [eval])", exc_type=ImportError)
    index = tasks.TaskManager().task_index
    for task in leaderboard.PAPER_TASKS.values():
        config = index[task.name].cfg
        measured = config.get("metric_list") or config["aggregate_metric_list"]
        assert task.metric in [one["metric"] for one in measured]
