"""The model card: the golden file, what it says of runs of every kind, and the cards of real, tiny training runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, SECRET
from datasets import Dataset
from hub_server import UPLOAD_WARNING, LocalHub, point_at

from srt_hf.card import citation
from srt_hf.cli import publishable
from srt_hf.model_card import CardData, Source, Start, WithCard, base_license, metrics, render

ROWS = [
    {"instruction": f"Write about number {n}.", "input": "", "output": f"The number {n} is far away.", "origin": "both"}
    for n in range(8)
]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def example_card(**changes: Any) -> CardData:
    """A card of invented figures, the golden file's; `changes` are of its Start."""
    known: dict[str, Any] = {
        "base": Source("org/student-7b", True, COMMIT),
        "data": Source("org/srecycled-rows", True, COMMIT[::-1]),
        "rows": 2345,
        "config": "default",
        "license": {"license": "apache-2.0"},
        "command": "python scripts/train_sft.py --dataset org/srecycled-rows --model_name_or_path org/student-7b --push_to_hub",
    }
    return CardData(
        name="org/srecycled-rows-7b",
        start=Start(**{**known, **changes}),
        settings={
            "learning rate": "2e-05, cosine, 2 of 57 steps warmup",
            "global batch": "128 rows (a device: 4, devices: 8, passes: 4)",
            "epochs": "3",
            "longest sequence": "2048 tokens, what is longer is cut",
            "packing": "none",
            "loss": "nll, on the completion only",
            "optimizer": "adamw_torch_fused (betas 0.9 and 0.999, epsilon 1e-08)",
            "weight decay": "0",
            "largest gradient norm": "1",
            "precision": "float32 weights, bfloat16 mixed precision",
            "seed": "42",
        },
        metrics={
            "optimizer steps": "57 of 57, epoch 3.00",
            "training loss, mean of the run": "0.9876",
            "training loss, last logged": "0.8765 (step 50)",
            "token accuracy in training, last logged": "0.7654 (step 50)",
            "tokens seen": "1,234,567",
            "time": "1 h 5 min",
        },
        versions={"python": "3.11.7", "srt_hf": "0.1.0", "trl": "1.0.0"},
    )


def header(text: str) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    return ModelCard(text).data.to_dict()


def test_the_card_is_the_golden_file() -> None:
    """After a wanted change: python tests/test_model_card.py writes the file anew."""
    assert render(example_card()) == (ROOT / "cards" / "example_model_card.md").read_text(encoding="utf-8")


def test_the_header_is_what_the_hub_reads() -> None:
    data = header(render(example_card()))
    assert (
        data["base_model"] == "org/student-7b" and data["datasets"] == ["org/srecycled-rows"] and data["license"] == "apache-2.0"
    )
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    assert {"srt-hf", "sft", "selective-reflection-tuning"} <= set(data["tags"])


def test_what_is_unknown_stays_unknown() -> None:
    """A local model and rows that nobody recycled: no Hub names in the header, no licence, no method that was not used."""
    text = render(
        example_card(base=Source("mine"), data=Source("rows.jsonl"), config=None, license={}, recycled=False, command="")
    )
    assert set(header(text)) == {"library_name", "pipeline_tag", "tags"}
    assert "`mine` (local, not on the Hub)" in text and "`rows.jsonl` (local, not on the Hub)" in text
    assert "licence is not known to this tool" in text and "The command is not known." in text
    assert "Reflection" not in text and "bibtex" not in text and "its revision" not in text and "config" not in text
    assert render(example_card(base=Source("org/student-7b", True))).count("| its revision | unknown |") == 1


def test_the_other_shapes_of_a_card() -> None:
    card = example_card(template="chat")
    card.adapter, card.finished = True, False
    text = render(card)
    assert (
        header(text)["library_name"] == "peft" and "is an adapter" in text and "a checkpoint of a run that had not ended" in text
    )
    assert '{"role": "user"' in text and "with an input" not in text
    assert "{instruction}\n\n### Input:\n{input}\n```" in render(example_card(template="alpaca"))
    some = render(example_card(chosen="the 2 with the highest ifd of 9 (20 %)", held_out="3 of 12, chosen with seed 42"))
    assert (
        "| chosen as | `the 2 with the highest ifd of 9 (20 %)` |\n| held out of training | `3 of 12, chosen with seed 42` |"
        in some
    )
    assert "The training metrics are of the rows that it was trained on, `eval_` ones of those that were held out;" in some
    assert "held out" not in text and "chosen as" not in text
    assert f"```bibtex\n{citation()}\n```" in text and citation().startswith("@inproceedings{li-etal-2024")
    own = render(example_card(license={"license": "other", "license_name": "own"}))
    assert header(own)["license_name"] == "own" and "| its licence | `other`, `own` |" in own


def test_a_strangers_text_cannot_leave_its_place() -> None:
    evil = "evil`|\n# Owned | <b>"
    text = render(
        example_card(
            base=Source(evil),
            data=Source(evil),
            config=evil,
            split=evil,
            chosen=evil,
            held_out=evil,
            license={"license": evil},
            command="a",
        )
    )
    assert "\n# Owned" not in text.partition("\n---\n")[2] and header(text)["license"] == evil


def test_nobody_is_told_a_token_or_where_a_folder_lies() -> None:
    token = "hf_" + "a1B2" * 8
    typed = (
        "python scripts/train_sft.py --dataset '/home/my name/rows.jsonl' --model_name_or_path=/models/me/base"
        f" --output_dir ../../me/out --hub_token {token} --push-to-hub-token={token} --eos_token '</s>' --run_name {token}"
        """ --model_init_kwargs '{"cache_dir": "/home/me/cache", "offload": "~/me/off"}' --hub_model_id org/name/ --a ~me/x"""
    )
    shown = publishable(typed)
    assert not re.search(r"home|my name|models|a1B2|\bme/", shown)
    for kept in (
        "--dataset rows.jsonl",
        "--model_name_or_path=base",
        "--output_dir out",
        "'</s>'",
        '"cache"',
        '"off"',
        "org/name/",
    ):
        assert kept in shown
    assert publishable("python a.py --url http://host:80/a/b --d data/rows.jsonl").endswith(
        "http://host:80/a/b --d data/rows.jsonl"
    )


def state(*history: dict[str, Any], steps: int = 4) -> Any:
    return SimpleNamespace(log_history=list(history), global_step=steps, max_steps=4, epoch=steps / 2)


def test_metrics_of_runs_of_every_kind() -> None:
    first = {"loss": 2.0, "mean_token_accuracy": 0.5, "num_tokens": 1000.0, "step": 2}
    second = {"loss": 1.0, "mean_token_accuracy": 0.75, "num_tokens": 2000.0, "step": 4}
    judged = {"eval_loss": 1.5, "eval_runtime": 3.0, "eval_samples_per_second": 9.0, "eval_num_tokens": 1.0, "step": 4}
    ended = {"train_loss": 1.5, "train_runtime": 90.0, "step": 4}
    assert metrics(state(first, second, judged, ended)) == {
        "optimizer steps": "4 of 4, epoch 2.00",
        "training loss, mean of the run": "1.5000",
        "training loss, last logged": "1.0000 (step 4)",
        "token accuracy in training, last logged": "0.7500 (step 4)",
        "`eval_loss`": "1.5000 (step 4)",
        "tokens seen": "2,000",
        "time": "2 min",
    }
    resumed = metrics(state(first, second, {**ended, "train_loss": 0.7, "num_tokens": 900.0}), resumed=True)
    assert "0.7000" not in str(resumed) and "tokens" not in str(resumed) and resumed["time since it was resumed"] == "2 min"
    assert metrics(state(first, steps=2))["optimizer steps"] == "2 of 4, epoch 1.00"
    assert set(metrics(state())) == {"optimizer steps"}


def test_a_hub_that_does_not_answer_costs_the_licence_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_license(Source("org/student-7b", True)) == {}  # nobody listens where conftest's Hub is
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert base_license(Source("org/student-7b", True)) == {}


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    class Other(WithCard):
        args = SimpleNamespace(output_dir=str(tmp_path / "out"))

        def is_world_process_zero(self) -> bool:
            return False

    Other().create_model_card()
    assert not (tmp_path / "out").exists()


@pytest.fixture
def train(run_script: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Run train_sft.py in this process for two epochs of two steps -> what it printed."""

    def run(*arguments: str, code: int = 0) -> str:
        few = "--global_batch_size 4 --per_device_train_batch_size 2 --num_train_epochs 2 --logging_steps 1 --report_to none"
        ended, out, err = run_script("train_sft.py", *few.split(), *arguments)
        assert ended == code, err
        return out + err

    return run


def row_of(text: str, label: str) -> str:
    """The value beside `label` in a table of the card."""
    found = re.search(rf"^\| {re.escape(label)} \| (.*) \|$", text, re.MULTILINE)
    assert found, f"no {label} in\n{text}"
    return found[1]


def test_the_card_of_a_local_run_and_of_its_continuation(
    train: Callable[..., str], student_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = tmp_path / "flat.parquet", tmp_path / "sft"
    Dataset.from_list(ROWS).to_parquet(rows)
    arguments = ["--dataset", str(rows), "--model_name_or_path", student_folder, "--output_dir", str(out)]
    train(*arguments, "--save_strategy", "steps", "--save_steps", "3")
    text = (out / "README.md").read_text()
    assert set(header(text)) == {"library_name", "pipeline_tag", "tags"} and header(text)["library_name"] == "transformers"
    assert str(tmp_path) not in text and student_folder not in text and SECRET not in text
    assert f"--dataset flat.parquet --model_name_or_path {Path(student_folder).name} --output_dir sft" in text
    assert row_of(text, "dataset") == "`flat.parquet` (local, not on the Hub)" and row_of(text, "rows") == "8"
    assert row_of(text, "learning rate") == "2e-05, cosine, 1 of 4 steps warmup"
    assert row_of(text, "global batch") == "4 rows (a device: 2, devices: 1, passes: 2)"
    assert row_of(text, "epochs") == "2" and row_of(text, "precision") == "float32"
    assert row_of(text, "loss") == "nll, on the completion only" and row_of(text, "packing") == "none"
    assert row_of(text, "optimizer steps") == "4 of 4, epoch 2.00" and int(row_of(text, "tokens seen").replace(",", "")) > 800
    assert 1 < float(row_of(text, "training loss, mean of the run")) < 50
    assert re.fullmatch(r"[01]\.\d{4} \(step 4\)", row_of(text, "token accuracy in training, last logged"))
    assert "LoRA" not in text and "checkpoint" not in text

    monkeypatch.chdir(tmp_path)  # the snippet names the folder as one who stands beside it
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    exec(code[1].replace("512", "2"), {})

    train(*arguments, "--resume_from_checkpoint", str(out / "checkpoint-3"), "--save_strategy", "no")
    again = (out / "README.md").read_text()
    assert row_of(again, "optimizer steps") == "4 of 4, epoch 2.00" and "time since it was resumed" in again
    assert "mean of the run" not in again and "tokens seen" not in again and str(tmp_path) not in again
    loss = [float(row_of(card, "training loss, last logged").split()[0]) for card in (text, again)]
    assert loss[0] == pytest.approx(loss[1], rel=0.01)


@pytest.mark.filterwarnings(UPLOAD_WARNING)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 on transformers 5
def test_the_card_of_an_adapter_that_is_pushed(
    train: Callable[..., str], student_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    with LocalHub() as hub:
        point_at(monkeypatch, hub.url, tmp_path / "home")
        api = HfApi()
        Dataset.from_list(ROWS).to_parquet(tmp_path / "train.parquet")
        api.create_repo("tester/base")
        api.upload_folder(repo_id="tester/base", folder_path=student_folder)
        api.upload_file(repo_id="tester/base", path_in_repo="README.md", path_or_fileobj=b"---\nlicense: apache-2.0\n---\n")
        api.create_repo("tester/rows", repo_type="dataset")
        for name, file in (("train.parquet", tmp_path / "train.parquet"), ("later.txt", b"later")):
            api.upload_file(repo_id="tester/rows", repo_type="dataset", path_in_repo=name, path_or_fileobj=file)
        rows, base = (hub.repos[key].head() for key in (("dataset", "tester/rows"), ("model", "tester/base")))
        assert rows.parent
        chosen = "--use_peft --lora_r 4 --lora_target_modules q_proj v_proj --max_steps 1 --template alpaca --save_strategy no"
        target = f"--output_dir {tmp_path / 'lora'} --push_to_hub --hub_model_id tester/tuned --hub_token hf_test"
        source = f"--dataset tester/rows --dataset_revision {rows.parent.oid} --model_name_or_path tester/base"
        hub.fail_next("POST", "/tester/tuned/commit/", 403)
        assert "error: The model could not be pushed: " in train(*f"{source} {chosen} {target}".split(), code=1)
        assert (tmp_path / "lora" / "README.md").is_file()
        train(*f"{source} {chosen} {target}".split())
        files, commits = hub.repos["model", "tester/tuned"].files(), hub.repos["model", "tester/tuned"].commits
    text = files["README.md"].decode()
    assert text == (tmp_path / "lora" / "README.md").read_text() and "adapter_model.safetensors" in files
    assert [commit.title for commit in commits][1:] == ["End of training"]  # after that which made the repo
    data = header(text)
    assert (data["base_model"], data["datasets"], data["license"]) == ("tester/base", ["tester/rows"], "apache-2.0")
    assert data["library_name"] == "peft" and "lora" in data["tags"]
    assert f"/tester/base/tree/{base.oid})" in text and f"/datasets/tester/rows/tree/{rows.parent.oid})" in text
    assert f"With `--model_revision {base.oid}` it starts from" in text and row_of(text, "config") == "`default`"
    assert row_of(text, "LoRA") == "rank 4, alpha 32, dropout 0.05" and row_of(text, "LoRA on") == "`q_proj, v_proj`"
    assert (
        row_of(text, "optimizer steps").startswith("1 of 1") and "| epochs |" not in text and row_of(text, "template") == "alpaca"
    )
    assert 'model="tester/tuned"' in text and "### Response:" in text and "peft 0." in text
    assert "hf_test" not in text and "hub_token" not in text and str(tmp_path) not in text
    assert [name for name, content in files.items() if b"hf_test" in content] == []


if __name__ == "__main__":
    (ROOT / "cards" / "example_model_card.md").write_text(render(example_card()), encoding="utf-8")
