"""The commands as a user types them: real processes for the whole road, the same scripts in this process for every complaint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, SECRET
from datasets import Dataset, load_dataset
from hub_server import UPLOAD_WARNING, LocalHub, hub_environment, point_at
from serving import transformers_serve
from tgi_server import LocalTGI

from srt_hf.selection import KEEPS, RULES
from srt_hf.sources import load_rows

ROWS = [{"instruction": f"Write about number {n}.", "output": f"The number {n} is far away."} for n in range(12)]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return str(tmp_path / "rows.jsonl")


def report_text(folder: Path) -> str:
    """The only report in an output folder."""
    [path] = folder.glob("reports/*/report.json")
    return path.read_text()


def call(
    name: str, *arguments: str, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *arguments],
        capture_output=True,
        text=True,
        env=environment or dict(os.environ),
        cwd=cwd,
        timeout=300,
    )


@pytest.fixture
def here(run_script: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    return run_script


def recycle_arguments(rows: str, tgi: LocalTGI, student: str, folder: Path, *more: str) -> list[str]:
    return [
        *("--dataset", rows, "--teacher", tgi.url, "--student", student, "--template", "vicuna", "--keep", "all"),
        *("--journal", str(folder / "journal.sqlite"), "--output_dir", str(folder / "out"), *more),
    ]


def test_the_whole_road_in_a_real_process(rows: str, tgi: LocalTGI, student_folder: str, tmp_path: Path) -> None:
    """Recycle, push to a Hub, and start again: the second run buys nothing."""
    with LocalHub() as hub:
        environment = hub_environment(hub.url, tmp_path / "home")
        environment = {name: value for name, value in environment.items() if "PROGRESS" not in name}
        arguments = recycle_arguments(
            rows, tgi, student_folder, tmp_path, "--repo", "tester/made", "--private", "--mode", "exhaustive", "--replies"
        )
        first = call("recycle_and_push.py", *arguments, environment=environment)
        assert first.returncode == 0, first.stderr
        for text in (
            "kept",
            "12 (100.0 %)",
            "teacher tokens",
            "seconds: score",
            "Saved to",
            f"Pushed: {hub.url}/datasets/tester/made",
        ):
            assert text in first.stdout
        for stage in ("Teacher reflects", "Student scores", "Student selects"):
            assert stage in first.stderr  # a progress bar for each stage
        bought = len(tgi.chats)
        replies = (tmp_path / "out" / "replies.jsonl").read_text()
        assert len(replies.splitlines()) == 36 and "replies.jsonl" in str(hub.repos["dataset", "tester/made"].files())
        assert bought == 36 and hub.repos["dataset", "tester/made"].private
        again = call("recycle_and_push.py", *arguments, "--limit", "5", "--create_pr", environment=environment)
        assert again.returncode == 0 and "from journal" in again.stdout and len(tgi.chats) == bought, again.stderr
    sent = json.dumps([headers for _, headers, _ in tgi.requests])
    assert "hf_test" not in sent and SECRET not in sent
    card = (tmp_path / "out" / "README.md").read_text()
    assert "--repo tester/made" in card and "hf_test" not in card
    assert all(b"hf_test" not in file.read_bytes() for file in tmp_path.glob("journal.sqlite*"))


def test_candidates_of_an_earlier_run_need_no_teacher(
    here, rows: str, tgi: LocalTGI, student_folder: str, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    code, _, _ = here("recycle_and_push.py", *recycle_arguments(rows, tgi, student_folder, tmp_path, "--mode", "exhaustive"))
    earlier, asked = str(tmp_path / "out"), len(tgi.requests)
    arguments = ["--candidates", earlier, "--student", student_folder, "--template", "alpaca", "--keep", "all"]
    code, out, _ = here("recycle_and_push.py", *arguments, "--limit", "5", "--output_dir", str(tmp_path / "again"))
    assert code == 0 and "5 (100.0 %)" in out and len(tgi.requests) == asked
    assert (
        load_dataset(str(tmp_path / "again"), "candidates", split="train")[:3]
        == load_dataset(earlier, "candidates", split="train")[:3]
    )


def test_without_a_repo_it_saves_and_says_so(here, rows: str, tgi: LocalTGI, student_folder: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = here("recycle_and_push.py", *recycle_arguments(rows, tgi, student_folder, tmp_path))
    assert code == 0 and "No --repo was given, so nothing was pushed" in out
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 12


def test_an_estimate_calls_nobody(here, rows: str, tgi: LocalTGI, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = recycle_arguments(rows, tgi, "/no/such/student", tmp_path, "--estimate", "--price_in", "1", "--price_out", "2")
    code, out, _ = here("recycle_and_push.py", *arguments)
    assert code == 0 and "teacher calls      24, and" in out and "Nobody was called." in out and "cost of tokens  " in out
    rates = ("--teacher_rate", "1000", "--teacher_servers", "2", "--student_rate", "5000", "--student_devices", "3")
    code, out, _ = here("recycle_and_push.py", *arguments, *rates, "--num_shards", "4", "--shard_index", "3")
    assert code == 0 and "2 servers at 1,000 completion tokens/s" in out and "3 devices at 5,000 tokens/s" in out
    assert "one after the other" in out and "teacher calls      6, and" in out  # of a shard of three rows
    code, out, _ = here("recycle_and_push.py", *arguments, *rates, "--engine", "ray", "--mode", "exhaustive")
    assert code == 0 and "the slower of the two, which overlap" in out and "bottleneck" in out and "one more server" in out
    assert not tgi.requests and not (tmp_path / "out").exists() and not (tmp_path / "journal.sqlite").exists()


def test_options_from_a_file_and_the_command_line_wins(
    here, rows: str, tgi: LocalTGI, student_folder: str, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "run.yaml").write_text(
        f"dataset: {rows}\nteacher: {tgi.url}\nstudent: {student_folder}\nlimit: 3\nkeep: all\nmode: exhaustive\n"
    )
    more = ["--journal", str(tmp_path / "j"), "--output_dir", str(tmp_path / "out")]
    code, _, _ = here("recycle_and_push.py", "--config", str(tmp_path / "run.yaml"), "--limit", "2", *more)
    report = json.loads(report_text(tmp_path / "out"))
    assert code == 0 and report["rows"] == 2 and report["mode"] == "exhaustive"


def test_help_is_a_page(here) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = here("recycle_and_push.py", "--help")
    assert code == 0 and max(map(len, out.splitlines())) < 130
    choices = (
        "dataset id_column split revision limit instruction_column teacher temperature student template dtype mode rule keep repo"
    )
    for option in (*choices.split(), "private", "create_pr", "output_dir"):
        assert f"--{option}" in out
    assert out.count("--id") == 1  # one spelling of each
    assert "[0.0]" in out and all(f"{value} (" in out for value in (*RULES, *KEEPS))


def complaint(result: tuple[int, str, str], code: int = 1) -> str:
    """The one error line of a run that failed as it should."""
    exit_code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert exit_code == code and len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"--dataset": "no/such.jsonl"}, "no/such.jsonl"),
        ({"--instruction_column": "prompt"}, "no column prompt; it has instruction, output"),
        ({"--id_column": "nr"}, "no id column `nr`"),
        ({"--student": "/no/such/model"}, "/no/such/model"),
        ({"--student": "org/no-such-model"}, "org/no-such-model"),
        ({"--teacher": "http://127.0.0.1:9"}, "transformers serve"),
        ({"--journal": "/proc/nothing/j"}, "/proc/nothing/j"),
        ({"--split": "test"}, 'Unknown split "test"'),
        ({"--teacher": "org/no-such-model"}, "org/no-such-model"),
    ],
)
def test_bad_input_is_one_clear_line(  # type: ignore[no-untyped-def]
    here, rows: str, tgi: LocalTGI, student_folder: str, tmp_path: Path, monkeypatch, options: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr("srt_hf.teacher.http._PROBE_PAUSES", (0.0,))
    arguments = recycle_arguments(rows, tgi, student_folder, tmp_path)
    for name, value in options.items():
        arguments += [name, value]
    with LocalHub() as hub:
        point_at(monkeypatch, hub.url, tmp_path / "home")
        assert expected in complaint(here("recycle_and_push.py", *arguments))
    assert len(tgi.chats) == 0  # before anything was paid for


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"question": ["a"], "answer": ["b"]}, "no columns `instruction` and `output`; it has `question`, `answer`"),
        ({"instruction": ["a"], "output": [1]}, "`output` holds Value('int64'), not text"),
        ({"instruction": [["a"]], "output": ["b"]}, "`instruction` holds List(Value('string')), not text"),
        ({"messages": ["just text"]}, "No row is a single question and answer"),
        ({"messages": [1]}, "No row is a single question and answer"),
        ({"messages": [[{"role": "user", "content": [{"type": "image"}]}]]}, "No row is a single question and answer"),
    ],
)
def test_bad_columns(here, tgi: LocalTGI, student_folder: str, tmp_path: Path, data: dict, expected: str) -> None:  # type: ignore[no-untyped-def]
    Dataset.from_dict(data).to_parquet(tmp_path / "d.parquet")
    assert expected in complaint(
        here("recycle_and_push.py", *recycle_arguments(str(tmp_path / "d.parquet"), tgi, student_folder, tmp_path))
    )


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--limit", "0", "--limit is 0"),
        ("--limit", "few", "invalid int value: 'few'"),
        ("--template", "llama-9", "no template 'llama-9'"),
        ("--dtype", "int1", "no dtype 'int1'"),
        ("--max_length", "1", "max_length=1"),
        ("--rule", "best", "no rule 'best'"),
        ("--keep", "most", "no keep 'most'"),
        ("--mode", "fast", "no mode 'fast'"),
        ("--temperature", "-1", "temperature is -1.0"),
        ("--extra_body", "top_k=5", "--extra_body is no JSON"),
        ("--extra_body", "[5]", "--extra_body is no JSON object"),
        ("--retry", "unparsable,borken", "There is no error code borken to ask again for. Choose from unparsable, "),
        ("--price_in", "1", "--price_in and --price_out belong together"),
        ("--teacher_rate", "0", "--teacher_rate is 0.0"),
        ("--student_devices", "0", "--student_devices is 0"),
        ("--teacher_price", "-1", "--teacher_price is -1.0"),
        ("--teacher_servers", "4", "Without --teacher_rate, --teacher_servers says nothing"),
        ("--teacher", "localhost:8080", "is no teacher"),
        ("--prompts", "nothing.yaml", "nothing.yaml"),
        ("--output_dir", "/proc/nothing", "The output folder /proc/nothing cannot be made"),
        ("--output_dir", str(ROOT), "holds files that are not a result of this tool"),
        ("--private", "true", "Name it with --repo."),
        ("--instruktion", "x", "There is no option --instruktion. See --help."),
        ("--config", "nothing.yaml", "The config file nothing.yaml cannot be read: No such file or directory."),
    ],
)
def test_a_wrong_option_is_refused_before_the_dataset_is_looked_for(  # type: ignore[no-untyped-def]
    here, tmp_path: Path, option: str, value: str, expected: str
) -> None:
    fine = ["--dataset", "no/such.jsonl", "--journal", str(tmp_path / "j"), "--output_dir", str(tmp_path / "out")]
    assert expected in complaint(here("recycle_and_push.py", *fine, option, value), code=2)


def test_wrong_config_files(here, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    wrong = {
        "- a": "mapping",
        "temprature: 1": "There is no option --temprature, which the config file sets. See --help.",
        "a: [": "The config file is no YAML",
        "mode: fast": "no mode 'fast'",
    }
    for text, expected in wrong.items():
        (tmp_path / "c.yaml").write_text(text)
        assert expected in complaint(here("recycle_and_push.py", "--config", str(tmp_path / "c.yaml")), code=2)
    assert "--config needs a file" in complaint(here("recycle_and_push.py", "--config"), code=2)


def test_an_output_folder_is_a_teacher_for_the_same_ids(  # type: ignore[no-untyped-def]
    here, rows: str, tgi: LocalTGI, student_folder: str, tmp_path: Path
) -> None:
    here("recycle_and_push.py", *recycle_arguments(rows, tgi, student_folder, tmp_path))
    made = json.loads(report_text(tmp_path / "out"))
    more = ["--teacher", f"replay:{tmp_path / 'out'}", "--output_dir", str(tmp_path / "again")]
    code, _, _ = here("recycle_and_push.py", *recycle_arguments(rows, tgi, student_folder, tmp_path), *more)
    report = json.loads(report_text(tmp_path / "again"))
    assert code == 0 and report["candidates"] == made["candidates"] and report["teacher"]["name"].startswith("replay:out@")
    assert len(tgi.chats) == 24
    more[-1] = str(tmp_path / "other")
    Path(rows).write_text("\n".join(json.dumps({**row, "output": "Another."}) for row in ROWS))  # other texts, other ids
    code, _, err = here(
        "recycle_and_push.py", *recycle_arguments(rows, tgi, student_folder, tmp_path), *more, "--keep", "reflected"
    )
    assert code == 3 and "None of the recorded ids occur in this dataset: --id_column" in err
    assert "neither a file, nor an output folder" in complaint(
        here("recycle_and_push.py", *recycle_arguments(rows, tgi, student_folder, tmp_path), "--teacher", "replay:nothing.jsonl"),
        code=2,
    )


@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_complaints_of_the_hub_come_before_anything_is_paid_for(  # type: ignore[no-untyped-def]
    here, rows: str, tgi: LocalTGI, student_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    with LocalHub() as hub:
        point_at(monkeypatch, hub.url, tmp_path / "home")
        HfApi().create_repo("tester/other", repo_type="dataset")
        HfApi().upload_file(path_or_fileobj=b"precious", path_in_repo="data.txt", repo_id="tester/other", repo_type="dataset")
        arguments = recycle_arguments(rows, tgi, student_folder, tmp_path)
        assert "--overwrite" in complaint(here("recycle_and_push.py", *arguments, "--repo", "tester/other"))
        assert "is no repo name" in complaint(here("recycle_and_push.py", *arguments, "--repo", "a b"))
        hub.tokens.clear()
        assert "hf auth login" in complaint(here("recycle_and_push.py", *arguments, "--repo", "tester/new"))
        assert len(tgi.chats) == 0


def test_a_part_of_a_file(here, rows: str, tgi: LocalTGI, student_folder: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, _ = here("recycle_and_push.py", *recycle_arguments(rows, tgi, student_folder, tmp_path, "--split", "train[:2]"))
    assert code == 0 and len(load_rows(str(tmp_path / "out"), name="candidates")) == 2 and len(tgi.chats) == 4


def test_nobody_is_told_where_a_folder_lies(here, rows: str, tgi: LocalTGI, student_folder: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    here("recycle_and_push.py", *recycle_arguments(rows, tgi, student_folder, tmp_path, "--teacher", f"{tgi.url}?key=sesame"))
    report = report_text(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert student_folder not in report and Path(student_folder).name in report
    assert "sesame" not in report + card and tgi.url in card


def test_an_outage_in_the_middle_is_one_line_and_loses_nothing(  # type: ignore[no-untyped-def]
    here, rows: str, student_folder: str, tmp_path: Path
) -> None:
    with LocalTGI(fault=lambda n, body: (401, b"{}") if n > 7 else None) as tgi:
        line = complaint(here("recycle_and_push.py", *recycle_arguments(rows, tgi, student_folder, tmp_path)))
        assert "401" in line and "SRT_HF_TEACHER_KEY" in line
        tgi.fault = None
        before = len(tgi.chats)
        code, out, _ = here("recycle_and_push.py", *recycle_arguments(rows, tgi, student_folder, tmp_path))
        assert code == 0 and "7 from journal" in out and len(tgi.chats) - before == 24 - 7


@pytest.fixture(scope="module")
def transformers_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`transformers serve` on a tiny random chat model, over a real socket: (URL, model folder)."""
    from tiny_models import make_llama

    folder = tmp_path_factory.mktemp("served")
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    make_llama(folder, chat_template=template)
    with transformers_serve(folder, tmp_path_factory.mktemp("log") / "serve.log") as url:
        yield url, str(folder)


def test_transformers_serve_as_teacher(
    transformers_server: tuple[str, str], rows: str, student_folder: str, tmp_path: Path
) -> None:
    """A real server whose model cannot reflect: every row comes out as its original with a reason, and the command exits 3."""
    url, model = transformers_server
    run = call(
        "recycle_and_push.py",
        *("--dataset", rows, "--limit", "6", "--teacher", url, "--teacher_model", model, "--student", student_folder),
        *("--template", "vicuna", "--max_tokens", "24", "--journal", str(tmp_path / "j"), "--output_dir", str(tmp_path / "out")),
    )
    assert run.returncode == 3, run.stderr
    assert (
        "No row was kept, so nothing is pushed. Top reasons: teacher_failed (6)" in run.stderr and "Traceback" not in run.stderr
    )
    candidates = load_dataset(str(tmp_path / "out"), "candidates", split="train")
    codes = {candidate["error"] for row in candidates for candidate in row["candidates"][1:]}
    assert codes <= {"unparsable", "truncated", "empty", "too_long"} and None not in codes
    assert [row["candidates"][0]["output"] for row in candidates] == [row["output"] for row in ROWS[:6]]


def test_the_demo(tmp_path: Path) -> None:
    run = call("demo.py", "--output_dir", str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "honest toy" in run.stdout and "all that they show is that the road works" in run.stdout
    table = [line.split() for line in run.stdout.splitlines() if line.startswith("demo-") and "kept" in line]
    assert all("1.000" not in line[-4:-2] for line in table)  # what is kept is below 1 and reads so
    assert "honest toy" in run.stdout and run.stdout.count("demo-") >= 40 and "both_chosen" in run.stdout
    assert len(load_dataset(str(tmp_path / "dataset"), split="train")) > 0
    assert {"README.md", "reports"} <= {path.name for path in (tmp_path / "dataset").iterdir()}
    assert (tmp_path / "fine-tuned" / "model.safetensors").is_file()


def test_train_sft(here, student_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """A real, tiny training run: loss on the completion only, score columns dropped, the model saved."""
    seen = {}

    import trl

    class Watched(trl.SFTTrainer):
        def train(self, *args, **options):  # type: ignore[no-untyped-def]
            seen.update(next(iter(self.get_train_dataloader())), columns=self.train_dataset.column_names, args=self.args)
            return super().train(*args, **options)

    monkeypatch.setattr(trl, "SFTTrainer", Watched)
    flat = [{**row, "input": "", "origin": "both", "ifd": 0.5, "r_ifd": 0.4, "id": str(n)} for n, row in enumerate(ROWS[:8])]
    Dataset.from_list(flat).to_parquet(tmp_path / "flat.parquet")
    arguments = [
        *(
            "--dataset",
            str(tmp_path / "flat.parquet"),
            "--model_name_or_path",
            student_folder,
            "--output_dir",
            str(tmp_path / "sft"),
        ),
        *("--global_batch_size", "8", "--per_device_train_batch_size", "2", "--num_train_epochs", "1", "--report_to", "none"),
        *("--save_strategy", "no"),
    ]
    code, out, err = here("train_sft.py", *arguments)
    assert code == 0 and "Saved to" in out, err
    assert (tmp_path / "sft" / "model.safetensors").is_file()
    settings = seen["args"]
    assert (settings.learning_rate, settings.weight_decay, settings.get_warmup_steps(1000)) == (2e-5, 0.0, 30)
    assert settings.gradient_accumulation_steps == 4 and settings.max_length == 2048 and settings.completion_only_loss
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student_folder)
    for ids, labels in zip(seen["input_ids"], seen["labels"], strict=True):
        trained = tokenizer.decode([token for token in labels.tolist() if token != -100])
        assert "far away" in trained and "ASSISTANT" not in trained and "USER" in tokenizer.decode(ids)
    assert "global batch" in complaint(here("train_sft.py", *arguments, "--global_batch_size", "7"), code=2)
    assert "--global_batch_size" in complaint(here("train_sft.py", *arguments, "--gradient_accumulation_steps", "4"), code=2)
    assert "No dataset" in complaint(here("train_sft.py", *arguments[2:]), code=2)
    assert "no template 'llama-9'" in complaint(here("train_sft.py", *arguments, "--template", "llama-9"), code=2)
    assert "cannot be trained" in complaint(here("train_sft.py", *arguments, "--template", "chat"))  # the model has none


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**ROWS[0], "candidates": []}, "--dataset_config"),
        ({**ROWS[0], "scores": []}, "--dataset_config"),
        ({"origin": "both", "question": "a", "answer": "b"}, "Rename yours with Dataset.rename_columns"),
    ],
)
def test_train_sft_refuses_what_is_no_training_data(here, tmp_path: Path, row: dict, expected: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    assert expected in complaint(here("train_sft.py", "--dataset", str(tmp_path / "d.jsonl")))


@pytest.mark.filterwarnings("always")
def test_train_sft_says_that_a_dataset_is_not_recycled(here, rows: str) -> None:  # type: ignore[no-untyped-def]
    _, _, err = here("train_sft.py", "--dataset", rows, "--model_name_or_path", "/no/such/model")
    assert "warning: " in err and "rows.jsonl is no recycled dataset; it is trained on as it is." in err
