# /// script
# requires-python = ">=3.10"
# dependencies = ["srt_hf"]
# ///
"""Fine-tune a student on a recycled dataset with TRL's SFTTrainer; loss on the completion only.

    python scripts/train_sft.py --dataset org/srecycled-alpaca --model_name_or_path meta-llama/Llama-2-7b-hf \\
        --output_dir srecycled-alpaca-7b
    python scripts/train_sft.py --config scripts/configs/small-chat.yaml --dataset org/srecycled-alpaca
    accelerate launch scripts/train_sft.py --config run.yaml        # several GPUs

The defaults are the paper's for 7B: Adam, learning rate 2e-5 (give 1e-5 for 13B), global batch 128, 3 epochs, 2,048 tokens,
warmup 0.03, no weight decay, Vicuna template; scripts/configs/ has presets for this and other runs. The tokenizer is saved with a
chat template of the form that was trained, so that a server asks in it. Every option of TRL's ScriptArguments, SFTConfig and
ModelConfig is accepted here or in a YAML file given with --config; the command line wins.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import torch
from transformers import IntervalStrategy
from transformers.utils import is_torch_bf16_gpu_available
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from srt_hf.cli import option, parse, run
from srt_hf.errors import ConfigError, HubError
from srt_hf.identity import brief
from srt_hf.look import WithLook, first_look
from srt_hf.model_card import WithCard, start_of
from srt_hf.network import HUB_AWAY, HUB_REFUSED
from srt_hf.prompts import TEMPLATES
from srt_hf.training import accumulation, check_trackers, checkpoint, in_one_line, load_tokenizer, train, training_rows


@dataclass
class DataArguments(ScriptArguments):
    """The dataset"""

    dataset_name: str | None = option(
        None, "recycled dataset: Hub id, local JSONL or Parquet file, or folder (required)", aliases=["--dataset"]
    )
    dataset_config: str | None = option(None, "config, such as a student's name [the repo's default]")
    dataset_revision: str | None = option(None, "branch, tag or commit of the dataset [the repo's main]")
    dataset_test_split: str = option("test", "split for the evaluation that --eval_strategy asks for, without --eval_fraction")
    template: str = option(
        "vicuna", f"prompt format: {', '.join(TEMPLATES)}, or chat for the tokenizer's own; as it was scored with"
    )
    global_batch_size: int = option(128, "rows an optimizer step over all devices; gradient accumulation follows from it")
    top_fraction: float | None = option(None, "train on this share of the rows, those with the highest --by (paper: 0.02)")
    by: str = option("ifd", "column that --top_fraction ranks the rows by")
    eval_fraction: float = option(0.0, "share of the rows that is held out, for the loss on them")
    look: bool = option(False, "stop after the first look at the data, before a step is taken")

    def __post_init__(self) -> None:
        if self.top_fraction is not None and not 0 < self.top_fraction <= 1:
            raise ConfigError(f"--top_fraction is {self.top_fraction:g}.", "Give a share above 0 and at most 1.")
        if not 0 <= self.eval_fraction < 1:
            raise ConfigError(f"--eval_fraction is {self.eval_fraction:g}.", "Give a share of at least 0 and below 1.")
        if self.dataset_streaming:
            raise ConfigError("--dataset_streaming is not for this script.", "Leave it out: the first look needs all rows.")


@dataclass
class TrainingArguments(SFTConfig):
    """Training (TRL's SFTConfig)"""

    output_dir: str = option("sft-output", "folder that gets the model")
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

    model_name_or_path: str = option("meta-llama/Llama-2-7b-hf", "Hub id or folder of the model to train")


class Trainer(WithCard, WithLook, SFTTrainer):
    """TRL's trainer, with this tool's card in place of TRL's own, and a count of what it cuts."""


def save(trainer: Trainer) -> None:
    """The model and its card in the output folder and, with --push_to_hub, on the Hub."""
    trainer.save_model(trainer.args.output_dir, _internal_call=True)  # any other call pushes too
    trainer.create_model_card()
    trainer.accelerator.print(f"Saved to {trainer.args.output_dir}.")
    try:
        if trainer.args.push_to_hub:
            trainer.push_to_hub()
    except (*HUB_AWAY, *HUB_REFUSED) as error:
        raise HubError(f"The model could not be pushed: {brief(error)}", "`hf upload` pushes the folder.") from error


def main(data: DataArguments, training: TrainingArguments, model: StudentArguments) -> int:
    check_trackers(training.report_to)
    training.resume_from_checkpoint = checkpoint(training.resume_from_checkpoint, training.output_dir)
    training.gradient_accumulation_steps = accumulation(
        data.global_batch_size, training.per_device_train_batch_size, training.world_size
    )
    training.completion_only_loss = True
    with training.main_process_first(desc="the rows"):
        rows = training_rows(data, training)
    if rows.held_out is not None and training.eval_strategy == "no":
        training.eval_strategy, training.do_eval = IntervalStrategy.EPOCH, True
    loading = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    training.model_init_kwargs = {**loading, **(training.model_init_kwargs or {})}
    tokenizer = load_tokenizer(model.model_name_or_path, data.template, training)
    with in_one_line(model.model_name_or_path):
        trainer = Trainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=rows.train,
            eval_dataset=rows.held_out,
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    trainer.accelerator.print(first_look(trainer, rows, data.template))
    if data.look:
        return 0
    trainer.start = start_of(data, model, rows, training.model_init_kwargs["revision"])
    train(trainer)
    save(trainer)
    return 0


if __name__ == "__main__":
    arguments = parse(__doc__, DataArguments, TrainingArguments, StudentArguments)
    sys.exit(run(lambda: main(*arguments), "Where a checkpoint was saved, --resume_from_checkpoint true goes on from it."))
