"""Fine-tune a student on a recycled dataset with TRL's SFTTrainer; loss on the completion only.

    python scripts/train_sft.py --dataset org/srecycled-alpaca --model_name_or_path meta-llama/Llama-2-7b-hf \\
        --output_dir srecycled-alpaca-7b
    accelerate launch scripts/train_sft.py --config run.yaml        # several GPUs

The defaults are the paper's for 7B: Adam, learning rate 2e-5 (give 1e-5 for 13B), global batch 128, 3 epochs, 2,048 tokens,
warmup 0.03, no weight decay, Vicuna template. Every option of TRL's ScriptArguments, SFTConfig and ModelConfig is accepted here
or in a YAML file given with --config; the command line wins.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import is_torch_bf16_gpu_available
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

import srt_hf
from srt_hf.cli import option, parse, run
from srt_hf.errors import ConfigError, DataError, HubError, StudentError
from srt_hf.identity import brief
from srt_hf.model_card import WithCard, start_of
from srt_hf.network import HUB_AWAY, HUB_REFUSED
from srt_hf.prompts import TEMPLATES
from srt_hf.rows import check_template


@dataclass
class DataArguments(ScriptArguments):
    """The dataset"""

    dataset_name: str | None = option(
        None, "recycled dataset: Hub id, local JSONL or Parquet file, or folder (required)", aliases=["--dataset"]
    )
    dataset_config: str | None = option(None, "config, such as a student's name [the repo's default]")
    dataset_revision: str | None = option(None, "branch, tag or commit of the dataset [the repo's main]")
    template: str = option(
        "vicuna", f"prompt format: {', '.join(TEMPLATES)}, or chat for the tokenizer's own; as it was scored with"
    )
    global_batch_size: int = option(128, "rows an optimizer step over all devices; gradient accumulation follows from it")


@dataclass
class TrainingArguments(SFTConfig):
    """Training (TRL's SFTConfig)"""

    output_dir: str | None = option("sft-output", "folder that gets the model")
    learning_rate: float = option(2e-5, "peak learning rate")
    lr_scheduler_type: str = option("cosine", "schedule after the warmup")
    num_train_epochs: float = option(3.0, "passes over the data")
    per_device_train_batch_size: int = option(4, "rows a device a forward pass")
    gradient_accumulation_steps: int = option(1, "not to be given: follows from --global_batch_size")
    warmup_steps: float = option(0.03, "steps, or below 1 the share of all steps")
    weight_decay: float = option(0.0, "weight decay")
    # TRL sets the old name of this switch, which transformers 5 warns about.
    gradient_checkpointing: bool | None = option(None, "old name of activation_checkpointing")
    activation_checkpointing: bool | None = option(True, "less memory for a fifth more time")
    max_length: int | None = option(2048, "tokens of prompt and completion together")
    bf16: bool | None = option(None, "bfloat16 mixed precision [where a GPU can do it]")
    hub_token: str | None = option(None, "token for --push_to_hub [HF_TOKEN or your login]")

    def __post_init__(self) -> None:
        if self.gradient_accumulation_steps != 1:
            raise ConfigError(
                "--gradient_accumulation_steps follows from the global batch.", "Leave it out and give --global_batch_size."
            )
        # TRL's defaults are a GPU's: without one, transformers refuses bf16 and torch warns of pinned memory.
        if self.bf16 is None:
            self.bf16 = not (self.fp16 or self.use_cpu) and is_torch_bf16_gpu_available()
        self.dataloader_pin_memory &= torch.accelerator.is_available()
        # transformers 4 has the switch under its old name only, and the share of all steps as an option of its own.
        if not hasattr(SFTConfig, "activation_checkpointing") and self.gradient_checkpointing is None:
            self.gradient_checkpointing = self.activation_checkpointing
        share = getattr(self, "warmup_ratio", None)
        if share is not None:
            self.warmup_ratio = share or self.warmup_steps % 1
            self.warmup_steps = int(self.warmup_steps)
        super().__post_init__()
        if self.hub_token:  # training_args.bin, which is pushed with the model, would publish it
            os.environ["HF_TOKEN"] = self.hub_token
            self.hub_token = self.push_to_hub_token = None


@dataclass
class StudentArguments(ModelConfig):
    """The model (TRL's ModelConfig)"""

    model_name_or_path: str | None = option("meta-llama/Llama-2-7b-hf", "Hub id or folder of the model to train")


def accumulation(global_batch_size: int, per_device: int, world_size: int) -> int:
    """Forward passes an optimizer step, so that devices × rows × passes is the global batch. ConfigError where it is not."""
    passes, rest = divmod(global_batch_size, per_device * world_size)
    if rest or not passes:
        raise ConfigError(
            f"A global batch of {global_batch_size} is no multiple of {world_size} devices × {per_device} rows.",
            "Change --per_device_train_batch_size or --global_batch_size.",
        )
    return passes


def load_training_rows(data: DataArguments) -> Any:
    """The dataset as it is. Raises DataError for a table of all rows, whose texts are the originals."""
    if not data.dataset_name:
        raise ConfigError("No dataset is named.", "Give one with --dataset.")
    check_template(data.template)
    source = {"name": data.dataset_config, "split": data.dataset_train_split, "revision": data.dataset_revision}
    rows = srt_hf.load_rows(data.dataset_name, **source)
    if {"candidates", "scores"} & set(rows.column_names):
        raise DataError(
            f"{data.dataset_name} holds all rows here, with their candidates or scores, and not the kept pairs.",
            "Name the student's config with --dataset_config, or none.",
        )
    if "origin" not in rows.column_names:
        warnings.warn(f"{data.dataset_name} is no recycled dataset; it is trained on as it is.", stacklevel=2)
    return rows


def formatted(rows: Any, template: str) -> Any:
    """The rows as prompt/completion; all other columns are dropped, scores among them."""
    form = {"template": template}
    return rows.map(srt_hf.to_prompt_completion, fn_kwargs=form, remove_columns=rows.column_names, desc="Formatting")


class Trainer(WithCard, SFTTrainer):
    """TRL's trainer, with this tool's card in place of TRL's own."""


def main(data: DataArguments, training: TrainingArguments, model: StudentArguments) -> int:
    rows = load_training_rows(data)
    prompts = formatted(rows, data.template)
    training.completion_only_loss = True
    training.gradient_accumulation_steps = accumulation(
        data.global_batch_size, training.per_device_train_batch_size, training.world_size
    )
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    try:
        trainer = Trainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=prompts,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    # Before the first step: foreign code of many authors, which raises OSError, ValueError, ImportError, KeyError and more.
    except Exception as error:
        raise StudentError(f"The model {model.model_name_or_path} cannot be trained: {brief(error)}") from error
    trainer.start = start_of(data, model, rows, training.model_init_kwargs["revision"])
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir, _internal_call=True)  # any other call pushes too
    trainer.create_model_card()
    trainer.accelerator.print(f"Saved to {training.output_dir}.")
    try:
        if training.push_to_hub:
            trainer.push_to_hub()
    except (*HUB_AWAY, *HUB_REFUSED) as error:
        raise HubError(f"The model could not be pushed: {brief(error)}", "`hf upload` pushes the folder.") from error
    return 0


if __name__ == "__main__":
    arguments = parse(__doc__, DataArguments, TrainingArguments, StudentArguments)
    sys.exit(run(lambda: main(*arguments)))
