"""What scripts/train_sft.py does before TRL's trainer: which rows it trains on, how the model will be asked afterwards, and what
else must be known to be right before a model is loaded and a GPU is paid for.

    rows = training_rows(data, arguments)                               # chosen, held out, formatted
    tokenizer = load_tokenizer("org/student", "vicuna", arguments)      # with a chat template of that form
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf.errors import ConfigError, DataError, SrtError, StudentError
from srt_hf.identity import brief
from srt_hf.prompts import TEMPLATES
from srt_hf.rows import check_template, to_prompt_completion, top
from srt_hf.sources import load_rows

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TrainingRows:
    """A run's rows. loaded: as they are in the source. train, held_out: prompt/completion, ready for TRL. chosen, kept_back: what
    these two are of the source, in words; empty where they are all of it, or none."""

    loaded: Dataset
    train: Dataset
    held_out: Dataset | None = None
    chosen: str = ""
    kept_back: str = ""


def training_rows(data: Any, arguments: Any) -> TrainingRows:
    """The rows that train_sft.py's data and training arguments ask for.

    Rows are held out of all, by `arguments.seed` alone, and the top is then taken of the others: runs with several fractions are
    measured on the same rows. Without `eval_fraction` an evaluation that TRL's `eval_strategy` asks for takes the split
    `dataset_test_split`. Raises ConfigError and DataError.
    """
    if not data.dataset_name:
        raise ConfigError("No dataset is named.", "Give one with --dataset.")
    check_template(data.template)
    loaded = _load(data, data.dataset_train_split)
    if "origin" not in loaded.column_names:
        warnings.warn(f"{data.dataset_name} is no recycled dataset; it is trained on as it is.", stacklevel=3)
    train, held_out, kept_back = _hold_out(loaded, data, arguments)
    chosen = ""
    if data.top_fraction is not None:
        of = len(train)
        train = top(train, by=data.by, fraction=data.top_fraction)
        chosen = f"the {len(train):,} with the highest {data.by} of {of:,} ({100 * data.top_fraction:g} %)"
    held_out = None if held_out is None else _formatted(held_out, data.template)
    return TrainingRows(loaded, _formatted(train, data.template), held_out, chosen, kept_back)


def _load(data: Any, split: str) -> Dataset:
    """A split as it is. Raises DataError for a table of all rows, whose texts are the originals."""
    rows = load_rows(data.dataset_name, name=data.dataset_config, split=split, revision=data.dataset_revision)
    if {"candidates", "scores"} & set(rows.column_names):
        raise DataError(
            f"{data.dataset_name} holds all rows here, with their candidates or scores, and not the kept pairs.",
            "Name the student's config with --dataset_config, or none.",
        )
    return rows


def _hold_out(rows: Dataset, data: Any, arguments: Any) -> tuple[Dataset, Dataset | None, str]:
    if data.eval_fraction:
        count = max(1, round(data.eval_fraction * len(rows)))
        if count >= len(rows):
            raise ConfigError(f"--eval_fraction {data.eval_fraction:g} of {len(rows):,} rows leaves none to train on.")
        parts = rows.train_test_split(test_size=count, seed=arguments.seed)
        return parts["train"], parts["test"], f"{count:,} of {len(rows):,}, chosen with seed {arguments.seed}"
    if str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy)) != "no":
        held_out = _load(data, data.dataset_test_split)
        return rows, held_out, f"{len(held_out):,}, the split {data.dataset_test_split}"
    return rows, None, ""


def _formatted(rows: Dataset, template: str) -> Dataset:
    """The rows as prompt/completion; all other columns are dropped, scores among them."""
    form = {"template": template}
    return rows.map(to_prompt_completion, fn_kwargs=form, remove_columns=rows.column_names, desc="Formatting")


def accumulation(global_batch_size: int, per_device: int, world_size: int) -> int:
    """Forward passes an optimizer step, so that devices × rows × passes is the global batch. ConfigError where it is not.

    >>> accumulation(128, 4, 8)
    4
    """
    passes, rest = divmod(global_batch_size, per_device * world_size)
    if rest or not passes:
        raise ConfigError(
            f"A global batch of {global_batch_size} is no multiple of {world_size} devices × {per_device} rows.",
            "Change --per_device_train_batch_size or --global_batch_size.",
        )
    return passes


def check_trackers(names: list[str]) -> None:
    """Raises ConfigError for a --report_to that transformers does not know, or whose package is not installed."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(
                f"There is no tracker {name!r}.", f"--report_to takes {', '.join(sorted(INTEGRATION_TO_CALLBACK))}."
            )
        if name not in get_available_reporting_integrations():
            raise ConfigError(f"--report_to {name}: its package is not installed.", f"`pip install {name}`, or --report_to none.")


def checkpoint(wanted: str | bool | None, output_dir: str) -> str | None:
    """The folder that --resume_from_checkpoint means: its path, or with "true" the newest whole checkpoint in `output_dir`.

    transformers writes a checkpoint's trainer_state.json after its weights, so one that was interrupted has none and is passed
    over. None where nothing is to be resumed. Raises ConfigError where there is no such checkpoint.
    """
    if wanted is None or str(wanted).lower() in ("false", "none", ""):
        return None
    if str(wanted).lower() != "true":
        if not (Path(str(wanted)) / "trainer_state.json").is_file():
            raise ConfigError(
                f"{wanted} is no whole checkpoint of a run.", "--resume_from_checkpoint takes true, or the folder of one."
            )
        return str(wanted)
    whole = [path.parent for path in Path(output_dir).glob("checkpoint-*/trainer_state.json")]
    if not whole:
        raise ConfigError(f"There is no checkpoint in {output_dir}.", "Leave --resume_from_checkpoint out to begin anew.")
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2])))


def load_tokenizer(model: str, template: str, arguments: Any) -> Any:
    """The model's tokenizer, whose chat template asks in the form that `template` trains; with "chat" its own stays.

    `arguments` are TRL's SFTConfig with its `model_init_kwargs`. Its `eos_token` is filled in, for TRL to write it into the
    model's configuration too: generation stops at what that says. Raises StudentError in one line, before a model is loaded, for
    a tokenizer that cannot be loaded, has no chat template for "chat", or has no EOS token to end an answer with.
    """
    from transformers import AutoTokenizer

    loading = {"revision": arguments.model_init_kwargs["revision"], "trust_remote_code": arguments.trust_remote_code}
    with in_one_line(model):
        tokenizer = AutoTokenizer.from_pretrained(model, **loading)
    arguments.eos_token = arguments.eos_token or tokenizer.eos_token
    if arguments.eos_token is None:
        raise StudentError(
            f"The model {model} cannot be trained: its tokenizer has no EOS token, so it would never learn to stop.",
            "Name one of its tokens with --eos_token.",
        )
    if template != "chat":
        if arguments.chat_template_path:
            raise ConfigError(f"--chat_template_path does not go with --template {template}.", "It goes with --template chat.")
        tokenizer.chat_template = TEMPLATES[template].chat_template(_start(tokenizer, TEMPLATES[template].prompt("Say hello.")))
    elif not (tokenizer.chat_template or arguments.chat_template_path):
        raise StudentError(
            f"The model {model} cannot be trained with --template chat: its tokenizer has no chat template.",
            f"Choose another template ({', '.join(TEMPLATES)}), or give one with --chat_template_path.",
        )
    return tokenizer


def _start(tokenizer: Any, prompt: str) -> str:
    """What a chat template has to write before `prompt` for the ids that the tokenizer makes of the bare prompt, as Jinja.

    Trainers let a tokenizer add its BOS, servers of chats do not. With transformers 5, Llama-2's tokenizer puts a space before a
    text's first word, but not after a BOS that is written out.
    """
    ids = tokenizer(prompt)["input_ids"]
    while ids[-1:] == [tokenizer.eos_token_id] != [tokenizer.bos_token_id]:
        ids = ids[:-1]
    bos = tokenizer.bos_token or ""
    for start, expression in (("", "''"), (bos, "bos_token"), (bos + " ", "bos_token + ' '")):
        if tokenizer(start + prompt, add_special_tokens=False)["input_ids"] == ids:
            return expression
    warnings.warn(
        f"No chat template can write what the tokenizer of {tokenizer.name_or_path} puts before a text: "
        "a server's chat will differ from the training in its first tokens.",
        stacklevel=3,
    )
    return "bos_token" if bos else "''"


@contextmanager
def in_one_line(model: str) -> Iterator[None]:
    """Errors of what loads and wraps a model, before the first step, as StudentError."""
    try:
        yield
    except SrtError:
        raise
    # Foreign code of many authors, which raises OSError, ValueError, ImportError, KeyError and more.
    except Exception as error:
        raise StudentError(f"The model {model} cannot be trained: {brief(error)}") from error


def train(trainer: Any) -> None:
    """Train, from the checkpoint that the trainer's arguments name, if any. StudentError where the GPU's memory is too small."""
    from torch import OutOfMemoryError

    try:
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    except OutOfMemoryError as error:
        raise StudentError(
            f"The GPU's memory is full: {brief(error)}",
            "Give a smaller --per_device_train_batch_size or --max_length, or --use_peft --load_in_4bit; where there is a "
            "checkpoint, --resume_from_checkpoint true goes on from it.",
        ) from error
