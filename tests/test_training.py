"""train_sft.py for real on tiny models: what carries loss, what is learned and resumed, how the trained model is asked and
answers, the first look, the presets, and one clear line for what cannot be trained."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trl
import yaml
from conftest import ROOT
from datasets import Dataset
from safetensors.torch import load_file
from serving import transformers_serve
from tiny_models import make, make_llama
from transformers import AutoTokenizer

from srt_hf.errors import ConfigError
from srt_hf.look import Counts, count_tokens, planned_steps
from srt_hf.prompts import TEMPLATES
from srt_hf.rows import to_prompt_completion
from srt_hf.training import checkpoint

SCRIPT = str(ROOT / "scripts" / "train_sft.py")
PRESETS = ROOT / "scripts" / "configs"
CHAT = (
    "{% for message in messages %}[{{ message['role'] }}]\n{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
PEFT_WARNING = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft 0.21 on transformers 5


def row(n: int, **more: Any) -> dict[str, Any]:
    """Rows whose answer follows from their question, every third with an input: what a tiny model can learn."""
    asked = {"instruction": f"Write about number {n}.", "input": "" if n % 3 else "In one line."}
    return {"id": f"{n:03}", **asked, "output": f"The number {n} is far away.", "origin": "both", "ifd": n / 100, **more}


def write(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama with neither BOS nor pad token, whose tokens do not run from a prompt into its answer."""
    return str(make("llama", tmp_path_factory.mktemp("student"), bos=False, initializer_range=0.02, hidden_size=64))


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write(tmp_path, *map(row, range(48)))


class Run:
    """What a run printed, and its trainer where it came so far."""

    def __init__(self, said: str, trainers: list[Any]) -> None:
        self.said = said
        self.trainer: Any = trainers[-1] if trainers else None


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, run_script: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Callable[..., Run]:
    """Run train_sft.py in this process."""
    made: list[Any] = []

    class Watched(trl.SFTTrainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            made.append(self)
            super().__init__(*args, **options)

    def run(*arguments: str, code: int = 0) -> Run:
        made.clear()
        usual = "--report_to none --global_batch_size 8 --per_device_train_batch_size 8 --save_strategy no --learning_rate 5e-3"
        where = ["--output_dir", str(tmp_path / "out")]
        monkeypatch.setattr(trl, "SFTTrainer", Watched)
        ended, out, err = run_script("train_sft.py", *where, *usual.split(), *arguments)
        assert ended == code, err
        return Run(out + err, made)

    return run


def complaint(run: Run) -> str:
    """The one line of a run that failed."""
    [line] = [line for line in run.said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in run.said
    return line


# How the trained model is asked -----------------------------------------------------------------------------------------------


def llama_2_like(folder: Path) -> Any:
    """As Llama-2's: transformers 5 puts a space before the first word of a text, but none after a BOS that is written out."""
    make_llama(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


MAKERS: dict[str, Callable[[Path], Any]] = {
    "with BOS": make_llama,
    "without BOS": lambda folder: make("llama", folder, bos=False),
    "as Llama-2": llama_2_like,
}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = MAKERS[request.param](tmp_path_factory.mktemp("tokenizer"))
    return made


def asked(tokenizer: Any, *turns: tuple[str, str], **options: Any) -> Any:
    return tokenizer.apply_chat_template([{"role": who, "content": said} for who, said in turns], **options)


def load(folder: Path | str, template: str) -> Any:
    from srt_hf.training import load_tokenizer

    unset = {"eos_token": None, "chat_template_path": None, "trust_remote_code": False}
    return load_tokenizer(str(folder), template, SimpleNamespace(**unset, model_init_kwargs={"revision": "main"}))


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_chat_template_asks_what_was_trained(folder: Path, template: str) -> None:
    """Byte for byte and token for token, with an input and without, with a system turn, and with the answer behind it."""
    tokenizer, form = load(folder, template), TEMPLATES[template]
    for instruction, input in (('Say {input} it\'s "so".', ""), ("Add.\n", "1 and\n\n{2}"), ("Fasse zusammen: äöü", " \\n ")):
        rows = to_prompt_completion({"instruction": instruction, "input": input, "output": "  3\n"}, template)
        turn = ("user", form.turn(instruction, input))
        text = asked(tokenizer, turn, tokenize=False, add_generation_prompt=True)
        assert text.endswith(rows["prompt"]) and text.removesuffix(rows["prompt"]).strip() in ("", tokenizer.bos_token)
        ids = asked(tokenizer, turn, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ids == tokenizer(rows["prompt"])["input_ids"]
        whole = asked(tokenizer, turn, ("assistant", "  3\n"), tokenize=False)
        assert whole == text + rows["completion"] + tokenizer.eos_token
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    shown = asked(tokenizer, ("system", "Be brief."), ("user", "Hi"), tokenize=False, add_generation_prompt=True)
    assert shown.endswith(to_prompt_completion({"messages": chat}, template)["prompt"])


def test_several_turns_follow_each_other(folder: Path) -> None:
    turns = [("user", "One?"), ("assistant", "1"), ("user", "Two?")]
    expected = {
        "vicuna": "USER: One? ASSISTANT: 1</s>USER: Two? ASSISTANT:",
        "alpaca": "### Instruction:\nOne?\n\n### Response:1</s>\n\n### Instruction:\nTwo?\n\n### Response:",
        "wizardlm": "One?\n\n### Response:1</s>\n\nTwo?\n\n### Response:",
        "none": "One?\n1</s>\n\nTwo?\n",
    }
    for template, end in expected.items():
        tokenizer = load(folder, template)
        text = asked(tokenizer, *turns, tokenize=False, add_generation_prompt=True)
        assert text.endswith(end.replace("</s>", tokenizer.eos_token))
        with pytest.raises(Exception, match="not tool"):
            asked(tokenizer, ("tool", "42"), tokenize=False)


# What is learned --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["vicuna", "alpaca", "wizardlm", "none", "chat"])
def test_only_the_answer_and_its_end_carry_loss(
    train: Callable[..., Run], rows: str, student: str, tmp_path: Path, template: str
) -> None:
    """On the collated batch, with a model that has no pad token: EOS stands in for it, and is learned all the same."""
    folder = shutil.copytree(student, tmp_path / "model")
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    (folder / "chat_template.jinja").write_text(CHAT)
    run = train("--dataset", rows, "--model_name_or_path", str(folder), "--template", template, "--max_steps", "1")
    batch, tokenizer = next(iter(run.trainer.get_train_dataloader())), run.trainer.processing_class
    assert batch["input_ids"].shape == batch["labels"].shape and len(batch["labels"]) == 8
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        taught = labels[labels != -100]
        [n] = re.findall(r"number (\d+)\.", tokenizer.decode(ids))
        assert tokenizer.decode(taught).strip() == f"The number {n} is far away.{tokenizer.eos_token}"
        begin, end = (labels != -100).nonzero()[0].item(), int(mask.sum())
        assert (labels[begin:end] == ids[begin:end]).all() and (labels[:begin] == -100).all() and (labels[end:] == -100).all()
        pair = row(int(n))
        turn = TEMPLATES[template].turn if template != "chat" else (lambda text, input: f"{text}\n{input}" if input else text)
        question = asked(
            tokenizer, ("user", turn(pair["instruction"], pair["input"])), add_generation_prompt=True, return_dict=True
        )
        assert ids[:begin].tolist() == question["input_ids"]
    assert (batch["attention_mask"] == 0).any()  # some are padded
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (saved.chat_template == CHAT) == (template == "chat") and saved.chat_template


TWO = ["--global_batch_size", "2", "--per_device_train_batch_size", "2"]
# Settings, and the model's own: an adapter cannot change the output layer, which is random here, and needs one that it can reach
# something with; 4-bit weights come in blocks of 64.
WAYS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "full": (["--num_train_epochs", "3"], {"initializer_range": 0.02}),
    "lora": (["--use_peft", "--lora_target_modules", "all-linear", "--learning_rate", "2e-2", "--num_train_epochs", "3"], {}),
    "qlora": (
        ["--config", str(PRESETS / "lora-24gb.yaml"), "--learning_rate", "2e-2"],
        {"intermediate_size": 128, "num_key_value_heads": 4},
    ),
    "packed": (
        [*["--packing", "--max_length", "512", "--num_train_epochs", "6"], *TWO],
        {"initializer_range": 0.02},
    ),
}


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.filterwarnings("ignore:bitsandbytes.*autograd kernel:UserWarning")  # of its CPU kernels
@pytest.mark.parametrize("kind", WAYS)
def test_the_loss_on_rows_that_were_held_out_falls(train: Callable[..., Run], rows: str, tmp_path: Path, kind: str) -> None:
    given, config = WAYS[kind]
    base = str(make("llama", tmp_path / "base", bos=False, **{"hidden_size": 64, **config}))
    run = train(*given, "--dataset", rows, "--model_name_or_path", base, "--eval_fraction", "0.25", "--eval_on_start", "true")
    losses = [entry["eval_loss"] for entry in run.trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) > 3 and losses[-1] < 0.6 * losses[0], losses
    assert "held out: 12 of 48, chosen with seed 42" in run.said
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| rows | 36 |" in text and "| held out of training | `12 of 48, chosen with seed 42` |" in text
    assert f"| `eval_loss` | {losses[-1]:.4f} (step" in text and ("4 bit, nf4" in text) == (kind == "qlora")
    assert (tmp_path / "out" / ("adapter_model.safetensors" if "lora" in kind else "model.safetensors")).is_file()
    if kind == "packed":
        assert "2 packed sequences, of which there are" in run.said and len(run.trainer.train_dataset) < 36


def test_packed_rows_do_not_see_each_other(train: Callable[..., Run], rows: str, student: str) -> None:
    """The loss of rows in one packed sequence is that of the same rows in a padded batch."""
    losses = []
    for way in ("--packing --max_length 4096", "--max_length 4096"):
        run = train("--dataset", rows, "--model_name_or_path", student, "--look", *way.split())
        batch = run.trainer.data_collator(list(run.trainer.train_dataset))
        assert (batch["input_ids"].shape[0] == 1) == way.startswith("--packing")
        with torch.no_grad():
            losses.append(run.trainer.compute_loss(run.trainer.model, run.trainer._prepare_inputs(batch)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize("way", ["", "--use_peft --lora_target_modules all-linear"])
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    train: Callable[..., Run], rows: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    given = [
        "--dataset",
        rows,
        "--model_name_or_path",
        student,
        *["--num_train_epochs", "2", "--save_strategy", "steps", "--save_steps", "2"],
    ]
    train(*given, *way.split(), "--output_dir", str(tmp_path / "whole"))
    broken = [*given, *way.split(), "--output_dir", str(tmp_path / "broken")]
    compute = trl.SFTTrainer.compute_loss

    def fail(self: Any, *args: Any, **options: Any) -> Any:
        if self.state.global_step == 9:
            raise RuntimeError("the power is gone")
        return compute(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trl.SFTTrainer, "compute_loss", fail)
        with pytest.raises(RuntimeError, match="the power is gone"):
            train(*broken)
    (tmp_path / "broken" / "checkpoint-8" / "trainer_state.json").unlink()  # as if the power went while it was written
    weights = "adapter_model.safetensors" if way else "model.safetensors"
    assert not (tmp_path / "broken" / weights).exists()
    run = train(*broken, "--resume_from_checkpoint", "true")
    assert run.trainer.state.global_step == 12 and str(run.trainer.args.resume_from_checkpoint).endswith("checkpoint-6")
    whole, resumed = (load_file(tmp_path / name / weights) for name in ("whole", "broken"))
    start = load_file(tmp_path / "whole" / "checkpoint-2" / weights)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(whole[name], start[name]) for name in whole)


def test_which_checkpoint_is_meant(tmp_path: Path) -> None:
    for number in (2, 10):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").touch()
    (tmp_path / "checkpoint-20").mkdir()
    assert checkpoint(None, str(tmp_path)) is None and checkpoint("false", str(tmp_path)) is None
    for true in (True, "true", "True"):
        assert checkpoint(true, str(tmp_path)) == str(tmp_path / "checkpoint-10")
    assert checkpoint(str(tmp_path / "checkpoint-2"), "elsewhere") == str(tmp_path / "checkpoint-2")
    for wanted in (str(tmp_path / "checkpoint-20"), "/no/such"):
        with pytest.raises(ConfigError, match="no whole checkpoint"):
            checkpoint(wanted, str(tmp_path))
    with pytest.raises(ConfigError, match="There is no checkpoint in"):
        checkpoint("true", str(tmp_path / "new"))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """`transformers serve` of a folder on a real socket -> its URL."""
    with ExitStack() as running:
        yield lambda folder: f"{running.enter_context(transformers_serve(folder, tmp_path / 'serve.log'))}/v1"


def test_the_trained_model_answers_its_own_form_on_a_server(
    train: Callable[..., Run], student: str, tmp_path: Path, serve: Callable[[Path], str]
) -> None:
    """What it was taught, on a server that knows nothing of this project: the answer, and then the end."""
    from huggingface_hub import InferenceClient

    few = [row(n) for n in range(4)]
    given = ["--dataset", write(tmp_path, *few), "--model_name_or_path", student]
    train(*given, *["--num_train_epochs", "120", "--global_batch_size", "4", "--per_device_train_batch_size", "4"])
    client = InferenceClient(base_url=serve(tmp_path / "out"), api_key="-")
    for pair in few[:2]:  # with an input, and without
        messages = [{"role": "user", "content": TEMPLATES["vicuna"].turn(pair["instruction"], pair["input"])}]
        reply = client.chat_completion(messages, model=str(tmp_path / "out"), max_tokens=40, temperature=0.0)
        assert reply.choices[0].message.content.strip() == pair["output"] and reply.choices[0].finish_reason == "stop"


# The rows and the first look --------------------------------------------------------------------------------------------------


def test_the_first_look(train: Callable[..., Run], student: str, tmp_path: Path) -> None:
    """Figures of the trainer's own rows; two of ten are cut, one of them before its answer begins."""
    odd = [row(90, output="far " * 300), row(91, instruction="Write " * 300 + "91.")]
    escape = row(1, instruction="Clear \x1b[2J\u202e all.")
    source = write(tmp_path, escape, *map(row, range(2, 9)), *odd)
    run = train("--dataset", source, "--model_name_or_path", student, "--max_length", "200", "--num_train_epochs", "3", "--look")
    text = run.said[run.said.index("First look") :]
    assert text.startswith("First look: 10 rows; template vicuna\n")
    assert "\n| A chat between a curious user" in text and "\n>  The number 1 is far away.<|endoftext|>\n" in text
    assert "Clear \\x1b[2J\\u202e all. ASSISTANT:" in text and "\x1b" not in text
    assert "Cut at 200 tokens: 2 (20.0 %)" in text and "Left without any of the answer, to teach nothing: 1 (10.0 %)" in text
    bars = [int(count) for count in re.findall(r"^ +[\d,]+ (?:to [\d,]+|and more) +([\d,]+)", text, re.MULTILINE)]
    assert sum(bars) == 10 and bars[0] == 8 and re.search(r"Percentiles: 5 % \d+, .*; longest \d,?\d+", text)
    kept, learned = (int(count) for count in re.findall(r"once: (\d+) of which (\d+) are", text.replace(",", ""))[0])
    data = list(run.trainer.train_dataset)
    assert learned == sum(label != -100 for row in data for label in row["labels"])
    assert kept == sum(len(row["input_ids"]) for row in data) + 200  # and the one that is cut before its answer
    assert "To come: 6 steps of 8 rows, of which there are 9" in text  # TRL leaves out the one that teaches nothing
    assert text.count("First look") == 1 and not (tmp_path / "out" / "model.safetensors").exists()
    assert len(run.trainer.train_dataset) == 9 and run.trainer.state.global_step == 0
    done = train("--dataset", source, "--model_name_or_path", student, "--max_length", "200", "--num_train_epochs", "3")
    assert done.trainer.state.max_steps == 6 == planned_steps(done.trainer)


def test_tokens_are_counted_as_they_are_cut() -> None:
    labels = [[-100, -100, 5, 6], [-100] * 5 + [7], [8], [-100, 3, 4] * 500]
    counts = count_tokens(Dataset.from_dict({"labels": labels}), 4)
    assert counts.lengths.tolist() == [4, 6, 1, 1500] and counts.learned.tolist() == [2, 0, 1, 2]
    assert (counts.cut, counts.lost) == (2, 1)
    assert count_tokens(Dataset.from_dict({"labels": labels}), 4, keep_end=True).learned.tolist() == [2, 1, 1, 3]
    uncut = count_tokens(Dataset.from_dict({"labels": labels}))
    assert uncut.learned.tolist() == [2, 1, 1, 1000] and (uncut.cut, uncut.lost) == (0, 0)
    many = count_tokens(Dataset.from_dict({"labels": [[-100] * (n % 7) + [1] for n in range(2500)]}), 3)
    assert many.lengths.tolist() == [n % 7 + 1 for n in range(2500)] and many.lost == sum(n % 7 > 2 for n in range(2500))
    assert Counts(np.array([1]), np.array([1]), None).cut == 0


def test_the_small_data_setting(train: Callable[..., Run], rows: str, student: str, tmp_path: Path) -> None:
    """The top of what is not held out; the held-out rows are the same for every fraction."""
    given = ["--dataset", rows, "--model_name_or_path", student, "--eval_fraction", "0.25", "--num_train_epochs", "1"]
    run = train(*given, "--top_fraction", "0.1", "--by", "ifd", "--global_batch_size", "4", "--per_device_train_batch_size", "4")
    assert "First look: 4 rows, the 4 with the highest ifd of 36 (10 %); template vicuna; held out: 12 of 48" in run.said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| rows | 4 |" in card and "| chosen as | `the 4 with the highest ifd of 36 (10 %)` |" in card
    numbers = {name: [int(re.findall(r"number (\d+)", text)[0]) for text in data["prompt"]] for name, data in of(run).items()}
    left = sorted(set(range(48)) - set(numbers["eval"]))
    assert sorted(numbers["train"]) == left[-4:]
    assert list(of(train(*given, "--look"))["eval"]["prompt"]) == list(of(run)["eval"]["prompt"])
    other = train(*given, "--look", "--seed", "7")
    assert list(of(other)["eval"]["prompt"]) != list(of(run)["eval"]["prompt"])


def of(run: Run) -> dict[str, Any]:
    return {"train": run.trainer.train_dataset, "eval": run.trainer.eval_dataset}


def test_a_split_of_the_dataset_can_be_what_it_is_measured_on(train: Callable[..., Run], student: str, tmp_path: Path) -> None:
    """TRL's own way, where the dataset has such a split."""
    (tmp_path / "data").mkdir()
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        Dataset.from_list([row(n) for n in numbers]).to_parquet(tmp_path / "data" / f"{split}.parquet")
    given = ["--dataset", str(tmp_path / "data"), "--model_name_or_path", student, "--num_train_epochs", "1"]
    run = train(*given, "--eval_strategy", "epoch")
    assert len(run.trainer.eval_dataset) == 4 and "held out: 4, the split test" in run.said
    missing = train(*given, "--eval_strategy", "epoch", "--dataset_test_split", "dev", code=1)
    assert "dev" in complaint(missing)


# Presets ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any, Any]]:
    def parse(*arguments: str) -> tuple[Any, Any, Any]:
        from srt_hf import cli

        monkeypatch.setattr(sys, "argv", ["train_sft.py", *arguments])
        script = runpy.run_path(SCRIPT)
        groups = [script[name] for name in ("DataArguments", "TrainingArguments", "StudentArguments")]
        data, training, model = cli.parse(script["__doc__"], *groups)
        return data, training, model

    return parse


def chosen(arguments: tuple[Any, Any, Any], *names: str) -> list[Any]:
    values = {name: value for group in arguments for name, value in vars(group).items()}
    return [values[name] for name in names]


@pytest.mark.parametrize(("size", "rate"), [("7b", 2e-5), ("13b", 1e-5)])
def test_the_presets_of_the_paper(parsed: Callable[..., Any], size: str, rate: float) -> None:
    """§4: Adam, global batch 128, 3 epochs, 2,048 tokens, warmup 0.03, no weight decay, Vicuna."""
    found = parsed("--config", str(PRESETS / f"llama-2-{size}.yaml"), "--dataset", "org/rows")
    names = (
        "learning_rate",
        "global_batch_size",
        "num_train_epochs",
        "max_length",
        "weight_decay",
        "template",
        "use_peft",
        "packing",
    )
    assert chosen(found, *names) == [rate, 128, 3, 2048, 0.0, "vicuna", False, False]
    _, training, model = found
    assert model.model_name_or_path == f"meta-llama/Llama-2-{size}-hf" and training.get_warmup_steps(1000) == 30
    assert str(getattr(training.optim, "value", training.optim)) == "adamw_torch"
    assert to_prompt_completion({"instruction": "a", "output": "b"}, "vicuna")["completion"] == " b"


def test_the_other_presets(parsed: Callable[..., Any]) -> None:
    lora = parsed("--config", str(PRESETS / "lora-24gb.yaml"), "--dataset", "org/rows", "--learning_rate", "1e-4")
    names = ("use_peft", "load_in_4bit", "bnb_4bit_quant_type", "lora_r", "lora_target_modules", "dtype", "learning_rate")
    assert chosen(lora, *names) == [True, True, "nf4", 64, "all-linear", "bfloat16", 1e-4]  # the command line wins
    small = parsed("--config", str(PRESETS / "small-chat.yaml"), "--dataset", "org/rows")
    names = ("model_name_or_path", "template", "packing", "eos_token", "eval_fraction", "use_peft")
    assert chosen(small, *names) == ["Qwen/Qwen3-0.6B-Base", "chat", True, "<|im_end|>", 0.01, False]


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_says_for_whom_it_is_and_its_command_runs(preset: Path, parsed: Callable[..., Any]) -> None:
    """The command line in the comment at its head, as the launcher and the script read it."""
    from accelerate.commands.launch import launch_command_parser

    comment = preset.read_text().partition("\nmodel_name_or_path")[0]
    assert comment.startswith("# ") and all(line.startswith("#") for line in comment.splitlines())
    lines = comment.replace("\\\n#", "").splitlines()
    [words] = [line.lstrip("# ").split() for line in lines if "scripts/train_sft.py" in line]
    if words[0] == "accelerate":
        launched = launch_command_parser().parse_args(words[2:])
        assert launched.use_fsdp and launched.num_processes == 8
        script, given = launched.training_script, launched.training_script_args
    else:
        script, given = words[1], words[2:]
    assert (ROOT / script) == Path(SCRIPT) and given[:2] == ["--config", f"scripts/configs/{preset.name}"]
    data, training, _ = parsed("--config", str(preset), *given[2:])
    assert data.dataset_name.startswith("org/") and training.output_dir == yaml.safe_load(preset.read_text())["output_dir"]


# What cannot be trained -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ("--template chat", 1, "cannot be trained with --template chat: its tokenizer has no chat template"),
        ("--template alpaca --chat_template_path x.jinja", 2, "goes with --template chat"),
        ("--max_length 20", 1, "Every answer of the train rows lies beyond --max_length 20"),
        ("--report_to nobody", 2, "There is no tracker 'nobody'"),
        ("--report_to comet_ml", 2, "`pip install comet_ml`"),
        ("--resume_from_checkpoint true", 2, "There is no checkpoint in"),
        ("--resume_from_checkpoint /no/such", 2, "/no/such is no whole checkpoint"),
        ("--top_fraction 0", 2, "--top_fraction is 0"),
        ("--top_fraction 0.5 --by score", 1, "There is no column score"),
        ("--dataset_streaming", 2, "Leave it out"),
        ("--eval_fraction 1", 2, "--eval_fraction is 1"),
        ("--eval_fraction 0.999", 2, "leaves none to train on"),
        ("--eos_token <none>", 1, "cannot be trained"),
        ("--lora_target_modules nothing --use_peft", 1, "cannot be trained"),
    ],
)
def test_one_line_before_a_model_is_loaded_for_long(
    train: Callable[..., Run], rows: str, student: str, arguments: str, code: int, expected: str
) -> None:
    run = train("--dataset", rows, "--model_name_or_path", student, *arguments.split(), code=code)
    assert expected in complaint(run)
    if "chat" in arguments or "report_to" in arguments:
        assert run.trainer is None


@pytest.mark.filterwarnings("always:The answers do not end")
def test_a_model_that_could_never_stop(train: Callable[..., Run], rows: str, student: str, tmp_path: Path) -> None:
    folder = shutil.copytree(student, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert "no EOS token" in complaint(train("--dataset", rows, "--model_name_or_path", str(folder), code=1))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHAT.replace("eos_token if", "'.' if"))
    run = train("--dataset", rows, "--model_name_or_path", str(folder), "--template", "chat", "--look")
    assert "warning: The answers do not end with the EOS token '<|endoftext|>'" in run.said


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_trackers_that_are_installed(
    train: Callable[..., Run], rows: str, student: str, tmp_path: Path, tracker: str, monkeypatch: Any
) -> None:
    pytest.importorskip(tracker)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    train("--dataset", rows, "--model_name_or_path", student, "--max_steps", "1", "--report_to", tracker)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "devices", "passes"), [("accelerate launch --cpu", 1, 4), ("torchrun --nproc_per_node 2 --standalone", 2, 2)]
)
def test_launchers(rows: str, student: str, tmp_path: Path, launcher: str, devices: int, passes: int) -> None:
    """With several processes the global batch holds, and one of them talks. (On CPUs `accelerate launch` starts one.)"""
    name, *options = launcher.split()
    given = ["--dataset", rows, "--model_name_or_path", student, "--output_dir", str(tmp_path / "out"), "--report_to", "none"]
    sizes = "--global_batch_size 8 --per_device_train_batch_size 2 --num_train_epochs 1 --use_cpu true --eval_fraction 0.25"
    command = [str(Path(sys.executable).parent / name), *options, SCRIPT, *given, *sizes.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            out, err = run.communicate(timeout=120)
        finally:
            run.terminate()  # torchrun ends its processes with itself
    assert run.returncode == 0, err
    assert out.count("First look") == 1 and "To come: 5 steps of 8 rows" in out
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"8 rows (a device: 2, devices: {devices}, passes: {passes})" in card and "| optimizer steps | 5 of 5" in card
