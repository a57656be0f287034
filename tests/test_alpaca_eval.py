"""AlpacaEval with a served model: its files, its own package's command where that is installed (a stand-in that reads and writes
the same files elsewhere), what has no answer, and every complaint."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SECRET
from hub_server import UPLOAD_WARNING, LocalHub, point_at
from huggingface_hub import HfApi
from tgi_server import Answer, LocalTGI

from srt_hf.evaluation import alpaca
from srt_hf.evaluation.results import Results

pytestmark = pytest.mark.filterwarnings(UPLOAD_WARNING)
Run = Callable[..., tuple[int, str, str]]
INSTALLED = shutil.which("alpaca_eval")
# Reads what alpaca_eval reads and writes what it writes (0.6.6); the rates are invented, the lengths are not.
STAND_IN = """#!{python}
import ast, csv, json, pathlib, sys
options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
options = {{name: ast.literal_eval(value) for name, value in options.items()}}
outputs, references = (json.load(open(options[name])) for name in ("model_outputs", "reference_outputs"))
assert {{row["instruction"] for row in outputs}} <= {{row["instruction"] for row in references}}
[name] = {{row["generator"] for row in outputs}}
folder = pathlib.Path(options["output_path"])
if "/" not in options["annotators_config"]:
    folder = folder / options["annotators_config"]
row = {{"": name, "win_rate": 60.5, "standard_error": 1.5, "n_total": len(outputs) - 1, "mode": "community"}}
row["avg_length"] = int(sum(len(one["output"]) for one in outputs) / len(outputs))
if options["fn_metric"] == "get_length_controlled_winrate":
    row |= {{"length_controlled_winrate": 40.25, "lc_standard_error": 0.5}}
if "{fails}":
    sys.exit("{fails}")
with open(folder / "leaderboard.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, row)
    writer.writeheader()
    writer.writerow(row)
"""


def rows_of(count: int) -> list[dict[str, str]]:
    return [
        {"instruction": f"Tell me of {n}.", "output": f"Number {n}.", "generator": "text_davinci_003", "dataset": "koala"}
        for n in range(count)
    ]


def answer(body: dict[str, Any]) -> Answer:
    return f"About this: {body['messages'][-1]['content']}", "stop"


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, run_script: Run, tmp_path: Path) -> Run:
    """Run the subcommand in this process, in an empty folder -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(model: str, *more: str) -> tuple[int, str, str]:
        given = ("--model", model, "--journal", "journal.sqlite", *more)
        return run_script("evaluate.py", "alpaca-eval", *given)

    return run


def stand_in(fails: str = "") -> str:
    """The command of a package that is not here."""
    path = Path("stand_in").resolve()
    path.write_text(STAND_IN.format(python=sys.executable, fails=fails))
    path.chmod(0o755)
    return str(path)


def references(count: int) -> str:
    Path("references.json").write_text(json.dumps(rows_of(count)))
    return "references.json"


FOLDER = Path("alpaca_eval_outputs/org_model")


def test_all_prompts_from_the_hub_and_the_length_controlled_rate_first(
    evaluate: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = rows_of(805)
    with LocalHub() as hub, LocalTGI(answer, model_id="org/model") as model:
        point_at(monkeypatch, hub.url, tmp_path / "hub-home")
        upload(json.dumps(rows), "alpaca_eval.json")
        options = ["--references", "davinci003", "--alpaca_eval", stand_in()]
        code, out, err = evaluate(model.url, *options)
        assert (code, err) == (0, "")
        asked = len(model.chats)
        assert evaluate(model.url, *options, "--compare", "alpaca-eval.json")[0] == 0
        assert len(model.chats) == asked == 805
    written = json.loads((FOLDER / "outputs.json").read_text())
    assert written[3] == {
        "instruction": "Tell me of 3.",
        "output": "About this: Tell me of 3.",
        "generator": "org/model",
        "dataset": "koala",
    }
    assert json.loads((FOLDER / "references.json").read_text()) == rows
    results = Results.load("alpaca-eval.json")
    assert [(metric.name, metric.value) for metric in results.metrics[:2]] == [
        ("length_controlled_winrate", 40.25),
        ("win_rate", 60.5),
    ]
    assert results.metrics[0].interval == (40.25 - 0.98, 40.25 + 0.98)
    assert results.metrics[2].value == pytest.approx(sum(len(row["output"]) for row in written) / 805)
    assert results.metrics[3].value == pytest.approx(sum(len(row["output"]) for row in rows) / 805)
    assert results.head == ["model", "LC win rate", "win rate", "characters", "judged"]
    assert results.lines[0][:3] == ["org/model", "40.25 ± 0.98", "60.50 ± 2.94"] and results.lines[0][4] == "804"
    assert ["paper: sRecycled WizardLM 7B", "51.10", "83.48", "1583", "805"] in results.lines
    assert "A win rate rewards length" in out and "1 answers have no annotation that could be read" in out
    assert SECRET not in Path("alpaca-eval.json").read_text()


def test_without_the_package_it_writes_the_files_and_says_what_to_run(evaluate: Run) -> None:
    with LocalTGI(answer, model_id="org/model") as model:
        code, out, err = evaluate(model.url, "--references", references(3), "--alpaca_eval", "not_here_alpaca_eval")
    assert (code, err) == (0, "") and len(json.loads((FOLDER / "outputs.json").read_text())) == 3
    assert "not_here_alpaca_eval is not installed, so nobody judged them" in out
    command = out.splitlines()[-1]
    assert command.startswith("not_here_alpaca_eval ") and str(FOLDER.resolve() / "outputs.json") in command
    assert not Path("alpaca-eval.json").exists()


@pytest.mark.filterwarnings("ignore:.* rejected the request")
def test_what_has_no_answer_is_no_lost_comparison(evaluate: Run) -> None:
    def fault(n: int, body: dict[str, Any]) -> tuple[int, bytes] | None:
        rejected = body["messages"][-1]["content"] in ("Tell me of 1.", "Tell me of 4.")
        return (422, b'{"error": "Input validation error: no", "error_type": "validation"}') if rejected else None

    with LocalTGI(answer, model_id="org/model", fault=fault) as model:
        code, out, _ = evaluate(model.url, "--references", references(8), "--alpaca_eval", stand_in())
    assert code == 0 and len(json.loads((FOLDER / "outputs.json").read_text())) == 6
    results = Results.load("alpaca-eval.json")
    assert results.metrics[0].value is None and results.metrics[1].value == 60.5
    assert results.details["no_answer"] == {"rejected": 2} and results.lines[0][1] == "–"
    assert "2 of 8 prompts have no answer (2 rejected), and no rate counts them." in out
    assert "There is no LC win rate: it is a fit to all 805 prompts, and 6 were answered." in out
    assert not any(line[0].startswith("paper") for line in results.lines)


def test_when_the_package_fails_nothing_is_lost(evaluate: Run) -> None:
    with LocalTGI(answer, model_id="org/model") as model:
        given = (model.url, "--references", references(3), "--alpaca_eval")
        assert evaluate(*given, stand_in())[0] == 0
        before = Path("alpaca-eval.json").read_text()
        code, _, err = evaluate(*given, stand_in(fails="No key."))
        assert code == 1 and err.startswith("error: alpaca_eval ended with exit code 1. What it said stands above.")
        assert err.count("\n") == 1 and len(model.chats) == 3
    assert Path("alpaca-eval.json").read_text() == before and (FOLDER / "outputs.json").exists()
    assert not list(FOLDER.rglob("leaderboard.csv"))  # an old one would pass for new


def test_a_file_of_answers_can_be_judged(evaluate: Run) -> None:
    rows = [{**row, "output": "Mine.", "generator": "mine"} for row in rows_of(3)]
    Path("mine.json").write_text(json.dumps(rows))
    code, _, err = evaluate("mine.json", "--references", references(3), "--alpaca_eval", stand_in())
    assert (code, err) == (0, "")
    [written] = Path("alpaca_eval_outputs").glob("*/outputs.json")
    assert [row["output"] for row in json.loads(written.read_text())] == ["Mine."] * 3


@pytest.mark.parametrize(
    ("content", "code", "complaint"),
    [
        ([{"instruction": "One."}], 1, "Row 1 of given.json has no texts instruction and output."),
        ([*rows_of(2), *rows_of(1)], 1, "given.json holds an instruction twice."),
        ([], 1, "given.json holds no rows of named fields."),
        (None, 2, "There are no references 'given.json'. Choose from gpt4_turbo, davinci003,"),
    ],
)
def test_bad_references_are_one_line_before_anybody_is_asked(evaluate: Run, content: Any, code: int, complaint: str) -> None:
    if content is not None:
        Path("given.json").write_text(json.dumps(content))
    with LocalTGI(answer) as model:
        found, _, err = evaluate(model.url, "--references", "given.json")
        assert found == code and complaint in err and err.count("\n") == 1 and not model.chats


def test_where_the_hub_has_no_references_it_says_what_to_give(
    evaluate: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with LocalHub() as hub:
        point_at(monkeypatch, hub.url, tmp_path / "hub-home")
        code, _, err = evaluate("http://127.0.0.1:9")
    assert code == 1 and "cannot be had from the Hub. Give the file itself: --references alpaca_eval_gpt4_baseline.json" in err
    assert err.count("\n") == 1


def upload(content: str, name: str) -> None:
    """Put a file where AlpacaEval's are on the Hub."""
    HfApi().create_repo(alpaca._HUB, repo_type="dataset", exist_ok=True)
    HfApi().upload_file(path_or_fileobj=content.encode(), path_in_repo=name, repo_id=alpaca._HUB, repo_type="dataset")


def difficulties() -> str:
    """df_gamed.csv, which the length-controlled rate is regularised with: two invented models' preferences."""
    draw = random.Random(0)
    lines = [",preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    hard = [draw.gauss(0, 1) for _ in range(805)]
    for model in ("short", "long"):
        lines += [f"{n},{draw.random():.3f},{n},{draw.gauss(0, 1):.3f},{hard[n]:.3f},False,{model}" for n in range(805)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def annotator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The folder of an annotator that asks a local server, which prefers the answer with an even number of letters."""

    def prefers(body: dict[str, Any]) -> Answer:
        first, second = body["messages"][-1]["content"].split("|")[1:3]
        return f"Output ({'a' if len(first) % 2 == 0 or len(second) % 2 else 'b'})", "stop"

    folder = tmp_path / "even_letters"
    folder.mkdir()
    (folder / "prompt.txt").write_text("<|im_start|>user\nWhich? |{output_1}|{output_2}|\n<|im_end|>")
    config = {
        "prompt_template": str(folder / "prompt.txt"),
        "fn_completions": "openai_completions",
        "completions_kwargs": {"model_name": "judge", "max_tokens": 9, "temperature": 0, "top_p": 0.9, "price_per_token": 0},
        "completion_parser_kwargs": {"outputs_to_match": {1: r"(?i)output \(a\)", 2: r"(?i)output \(b\)"}},
        "batch_size": 1,
    }
    (folder / "configs.yaml").write_text(yaml.safe_dump({"even_letters": config}))
    with LocalTGI(prefers) as server:
        clients = {"default": [{"api_key": "-", "base_url": f"{server.url}/v1"}]}
        (tmp_path / "clients.yaml").write_text(yaml.safe_dump(clients))
        monkeypatch.setenv("OPENAI_CLIENT_CONFIG_PATH", str(tmp_path / "clients.yaml"))
        yield str(folder)


@pytest.mark.skipif(
    INSTALLED is None, reason="no alpaca_eval on the PATH (pip install alpaca-eval, here or in another environment)"
)
def test_the_package_itself_reads_the_files_and_its_leaderboard_is_read(
    evaluate: Run, annotator: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with LocalHub() as hub, LocalTGI(answer, model_id="org/model") as model:
        point_at(monkeypatch, hub.url, tmp_path / "hub-home")
        upload(json.dumps(rows_of(805)), "alpaca_eval_gpt4_baseline.json")
        upload(difficulties(), "df_gamed.csv")
        code, _, err = evaluate(model.url, "--annotators_config", annotator)
        assert code == 0, err
    results = Results.load("alpaca-eval.json")
    [annotations] = FOLDER.rglob("annotations.json")
    judged = json.loads(annotations.read_text())
    assert len(judged) == 805 and {row["generator_2"] for row in judged} == {"org/model"}
    rate = sum(row["preference"] - 1 for row in judged) / 8.05
    found = {metric.name: metric for metric in results.metrics}
    assert found["win_rate"].value == pytest.approx(rate)
    assert found["win_rate"].interval[0] < rate < found["win_rate"].interval[1]  # type: ignore[index]
    assert 0 < found["length_controlled_winrate"].value < 100  # type: ignore[operator]
    assert results.details["leaderboard"]["avg_length"] == int(found["characters of an answer"].value)  # type: ignore[arg-type]
    assert results.details["leaderboard"]["n_total"] == 805 and results.lines[0][4] == "805"
