"""Fine-tune a student on a recycled dataset with TRL's SFTTrainer; loss on the completion only.

    python scripts/train_sft.py --dataset org/srecycled-alpaca --model_name_or_path meta-llama/Llama-2-7b-hf \\
        --output_dir srecycled-alpaca-7b
    accelerate launch scripts/train_sft.py --config run.yaml        # several GPUs

The defaults are the paper's for 7B: Adam, learning rate 2e-5 (give 1e-5 for 13B), global batch 128, 3 epochs, 2,048 tokens,
warmup 0.03, no weight decay, Vicuna template. Every option of TRL's ScriptArguments, SFTConfig and ModelConfig is accepted here
or in a YAML file given with --config; the command line wins.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from transformers.hf_argparser import HfArg
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

import srt_hf
from srt_hf.cli import parse, run
from srt_hf.errors import ConfigError, StudentError
from srt_hf.prompts import TEMPLATES


@dataclass
class DataArguments(ScriptArguments):
    """The dataset"""

    dataset_name: str | None = HfArg(
        aliases=["--dataset"], default=None, help="recycled dataset: Hub id, local JSONL or Parquet file, or folder (required)"
    )
    dataset_config: str | None = HfArg(default=None, help="config, such as a student's name; default: the repo's default")
    template: str = HfArg(
        default="vicuna", help=f"prompt format: {', '.join(TEMPLATES)}, or chat for the tokenizer's own; as it was scored with"
    )
    global_batch_size: int = HfArg(
        default=128, help="rows an optimizer step over all devices; gradient accumulation follows from it"
    )


@dataclass
class TrainingArguments(SFTConfig):
    """Training (TRL's SFTConfig)"""

    output_dir: str | None = field(default="sft-output", metadata={"help": "folder that gets the model"})
    learning_rate: float = field(default=2e-5, metadata={"help": "peak learning rate"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "schedule after the warmup"})
    num_train_epochs: float = field(default=3.0, metadata={"help": "passes over the data"})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "rows a device a forward pass"})
    warmup_steps: float = field(default=0.03, metadata={"help": "steps, or below 1 the share of all steps"})
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay"})
    # TRL sets the old name of this switch, which transformers 5 warns about.
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "old name of activation_checkpointing"})
    activation_checkpointing: bool | None = field(default=True, metadata={"help": "less memory for a fifth more time"})
    max_length: int | None = field(default=2048, metadata={"help": "tokens of prompt and completion together"})


@dataclass
class StudentArguments(ModelConfig):
    """The model (TRL's ModelConfig)"""

    model_name_or_path: str | None = field(
        default="meta-llama/Llama-2-7b-hf", metadata={"help": "Hub id or folder of the model to train"}
    )


def accumulation(global_batch_size: int, per_device: int, world_size: int) -> int:
    """Forward passes an optimizer step, so that devices × rows × passes is the global batch. ConfigError where it is not."""
    passes, rest = divmod(global_batch_size, per_device * world_size)
    if rest or not passes:
        raise ConfigError(
            f"A global batch of {global_batch_size} is no multiple of {world_size} devices × {per_device} rows.",
            "Change --per_device_train_batch_size or --global_batch_size.",
        )
    return passes


def load_training_rows(data: DataArguments) -> object:
    """The dataset as prompt/completion; all other columns are dropped, scores among them."""
    if not data.dataset_name:
        raise ConfigError("No dataset is named.", "Give one with --dataset.")
    rows = srt_hf.load_rows(data.dataset_name, name=data.dataset_config, split=data.dataset_train_split)
    return rows.map(
        srt_hf.to_prompt_completion,
        fn_kwargs={"template": data.template},
        remove_columns=rows.column_names,
        desc="Formatting",
    )


def main(data: DataArguments, training: TrainingArguments, model: StudentArguments) -> int:
    rows = load_training_rows(data)
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
        trainer = SFTTrainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=rows,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    except OSError as error:
        raise StudentError(f"The model {model.model_name_or_path} cannot be loaded: {str(error).splitlines()[0]}") from error
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)
    trainer.accelerator.print(f"Saved to {training.output_dir}.")
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=data.dataset_name)
    return 0


if __name__ == "__main__":
    arguments = parse(__doc__, DataArguments, TrainingArguments, StudentArguments)
    sys.exit(run(lambda: main(*arguments)))
