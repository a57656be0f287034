"""The model card of a fine-tuned student: what it was made of, how, and what the run measured. What is unknown stays unknown.

class Trainer(WithCard, SFTTrainer): ...        # writes this card wherever TRL writes its own
trainer.start = start_of(data, model, rows, revision)   # before the first step, when the Hub's cache knows what was loaded
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srt_hf.card import block, citation, inline, template_path
from srt_hf.cli import command
from srt_hf.identity import shown_name
from srt_hf.prompts import TEMPLATES
from srt_hf.report import duration, versions
from srt_hf.schema import REPO_TAG

_HUB = "https://huggingface.co/"
_PATIENCE = 10.0  # seconds that the Hub has to tell a licence
_LICENSE_KEYS = ("license", "license_name", "license_link")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_EXAMPLE = "Name three rivers in Africa."


@dataclass(frozen=True)
class Source:
    """A model or a dataset that went in: a Hub id (`is_hub`), or a local path's own name without the path to it.

    revision: of the Hub's, the commit that was loaded.
    """

    name: str
    is_hub: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    rows: pairs trained on, of `config` (None where there is but one) and `split`; in words, which were `chosen` and which
    `held_out`, where that is not all. `recycled` by this tool, or any other.
    template: as in prompts.TEMPLATES, or "chat". quantization: of the base model while it is trained, in words.
    license: what the base model's card has of license, license_name and license_link. command: what was typed.
    """

    base: Source
    data: Source
    rows: int
    config: str | None = None
    split: str = "train"
    chosen: str = ""
    held_out: str = ""
    recycled: bool = True
    template: str = "vicuna"
    quantization: str | None = None
    license: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""


@dataclass
class CardData:
    """What a model card is made of. name: what the model is loaded by, a Hub id or a folder's name. settings, metrics: label and
    words. finished: the run came to its end, and this is no checkpoint."""

    name: str
    start: Start
    settings: Mapping[str, str]
    metrics: Mapping[str, str]
    adapter: bool = False
    finished: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)


class WithCard:
    """Before a TRL trainer among a class's bases, it puts this card where TRL writes its own, with checkpoints and pushes."""

    start: Start

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write README.md into the output folder, from the main process."""
        trainer: Any = self
        if trainer.is_world_process_zero():
            folder = Path(trainer.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "README.md").write_text(render(describe(trainer, self.start)), encoding="utf-8")


def start_of(data: Any, model: Any, rows: Any, revision: str | None = None) -> Start:
    """What a run starts from: the data and model arguments of train_sft.py, its TrainingRows, the model's revision.

    To be called once the model is loaded: the commits are read from what the Hub's clients keep on disk. Only for the licence is
    the Hub asked.
    """
    base = base_source(model.model_name_or_path, revision)
    source = data_source(data.dataset_name, rows.loaded)
    quantization = f"4 bit, {model.bnb_4bit_quant_type}" if model.load_in_4bit else "8 bit" if model.load_in_8bit else None
    return Start(
        base=base,
        data=source,
        rows=len(rows.train),
        config=data.dataset_config or (rows.loaded.info.config_name if source.is_hub else None),
        split=data.dataset_train_split,
        chosen=rows.chosen,
        held_out=rows.kept_back,
        recycled="origin" in rows.loaded.column_names,
        template=data.template,
        quantization=quantization,
        license=base_license(base),
        command=command(),
    )


def base_source(model: str, revision: str | None = None) -> Source:
    """The base model; of a Hub model, the commit is that which the loader's cache has for `revision`."""
    from transformers.utils import cached_file

    if Path(model).is_dir():
        return Source(shown_name(model))
    try:
        config = cached_file(model, "config.json", revision=revision, local_files_only=True)
    except (OSError, ValueError):  # no cache, or a repo without that file, such as an adapter's
        return Source(model, True)
    return Source(model, True, Path(config).parent.name)


def data_source(dataset: str, rows: Any) -> Source:
    """The dataset; `datasets` keeps the tables of a Hub dataset in a folder that is named by the commit."""
    if Path(dataset).exists():
        return Source(Path(dataset).resolve().name)
    folders = {Path(file["filename"]).parent.name for file in rows.cache_files}
    commits = [name for name in folders if _COMMIT.fullmatch(name)]
    return Source(dataset, True, commits[0] if len(commits) == len(folders) == 1 else None)


def base_license(base: Source) -> dict[str, Any]:
    """What the Hub says of the base model's licence. Nothing, where it does not answer: a licence is no reason to stop a run."""
    from huggingface_hub import HfApi

    from srt_hf.network import HUB_AWAY

    if not base.is_hub:
        return {}
    try:
        card = HfApi().model_info(base.name, revision=base.revision, timeout=_PATIENCE).card_data
    except (OSError, ValueError, *HUB_AWAY):
        return {}
    told = {key: card.get(key) for key in _LICENSE_KEYS} if card else {}
    # A link like LICENSE leads to a file of the base model's repo, which this one does not have.
    return {key: value for key, value in told.items() if value and (key != "license_link" or str(value).startswith("https://"))}


def describe(trainer: Any, start: Start) -> CardData:
    """The card's data, from a transformers trainer as it is now."""
    state, arguments = trainer.state, trainer.args
    adapter = _adapter(trainer.model)
    extra = ["trl", *(["peft"] if adapter else []), *(["bitsandbytes"] if start.quantization else [])]
    return CardData(
        name=trainer.hub_model_id or Path(arguments.output_dir).resolve().name,
        start=start,
        settings=settings(arguments, trainer.model, state.max_steps, start.quantization),
        metrics=metrics(state, resumed=bool(arguments.resume_from_checkpoint)),
        adapter=adapter is not None,
        finished=any("train_runtime" in entry for entry in state.log_history),
        versions={**versions(), **{name: importlib.metadata.version(name) for name in extra}},
    )


def settings(arguments: Any, model: Any, steps: int, quantization: str | None = None) -> dict[str, str]:
    """The hyper-parameters that decide the result, in words; `arguments` are TRL's SFTConfig, `steps` all that were planned."""
    schedule, optimizer = (str(getattr(value, "value", value)) for value in (arguments.lr_scheduler_type, arguments.optim))
    per_device, passes = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    devices = arguments.world_size * max(1, arguments.n_gpu)
    what = "packed sequences" if arguments.packing else "rows"
    mixed = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else None
    adam = f" (betas {arguments.adam_beta1:g} and {arguments.adam_beta2:g}, epsilon {arguments.adam_epsilon:g})"
    found = {
        "learning rate": f"{arguments.learning_rate:g}, {schedule}, {arguments.get_warmup_steps(steps)} of {steps} steps warmup",
        "global batch": f"{per_device * devices * passes} {what} (a device: {per_device}, devices: {devices}, passes: {passes})",
        "epochs": f"{arguments.num_train_epochs:g}" if arguments.max_steps <= 0 else None,
        "longest sequence": f"{arguments.max_length} tokens, what is longer is cut" if arguments.max_length else "no limit",
        "packing": arguments.packing_strategy if arguments.packing else "none",
        "loss": f"{arguments.loss_type}, on the {'completion only' if arguments.completion_only_loss else 'prompt too'}",
        "optimizer": optimizer + (adam if "adam" in optimizer else ""),
        "weight decay": f"{arguments.weight_decay:g}",
        "largest gradient norm": f"{arguments.max_grad_norm:g}",
        "precision": str(model.dtype).removeprefix("torch.") + (f" weights, {mixed} mixed precision" if mixed else ""),
        "base model quantised": quantization,
        **_lora_settings(_adapter(model)),
        "seed": str(arguments.seed),
    }
    return {name: value for name, value in found.items() if value is not None}


def _adapter(model: Any) -> Any:
    """The configuration of the PEFT adapter that is trained; None for a whole model."""
    known = getattr(model, "peft_config", None)
    return next(iter(known.values()), None) if isinstance(known, dict) else None


def _lora_settings(lora: Any) -> dict[str, str]:
    """LoRA's part of the hyper-parameters; of another kind of adapter its name."""
    if lora is None:
        return {}
    if not hasattr(lora, "lora_alpha"):
        return {"adapter": inline(type(lora).__name__)}
    variants = "".join(f", {name}" for name, used in (("DoRA", lora.use_dora), ("rank-stabilised", lora.use_rslora)) if used)
    found = {"LoRA": f"rank {lora.r}, alpha {lora.lora_alpha:g}, dropout {lora.lora_dropout:g}{variants}"}
    for label, modules in (("LoRA on", lora.target_modules), ("trained beside it", lora.modules_to_save)):
        if modules:
            found[label] = inline(modules if isinstance(modules, str) else ", ".join(_by_last_part(modules)))
    return found


def _by_last_part(modules: Iterable[str]) -> list[str]:
    """Names of modules, those that only the layer tells apart as one.

    >>> _by_last_part(["layers.0.q_proj", "layers.1.q_proj", "lm_head"])
    ['2 × q_proj', 'lm_head']
    """
    named: dict[str, list[str]] = {}
    for name in sorted(modules):
        named.setdefault(name.rpartition(".")[2], []).append(name)
    return [f"{len(names)} × {last}" if len(names) > 1 else names[0] for last, names in named.items()]


def metrics(state: Any, resumed: bool = False) -> dict[str, str]:
    """What was measured, in words, from a transformers TrainerState.

    A resumed run says nothing of its mean loss and its tokens, which are counted from where it was resumed: transformers 4
    divides such a loss by the steps of the whole run.
    """
    history: Sequence[Mapping[str, Any]] = state.log_history
    epoch = f", epoch {state.epoch:.2f}" if state.epoch is not None else ""
    found = {"optimizer steps": f"{state.global_step:,} of {state.max_steps:,}{epoch}"}
    if not resumed:
        found |= _last(history, "train_loss", "training loss, mean of the run", "{:.4f}")
    found |= _last(history, "loss", "training loss, last logged", "{:.4f}", step=True)
    found |= _last(history, "mean_token_accuracy", "token accuracy in training, last logged", "{:.4f}", step=True)
    for name in sorted({name for entry in history for name in entry if name.startswith("eval_")}):
        if not name.endswith(("_runtime", "_per_second", "_num_tokens")):
            found |= _last(history, name, inline(name), "{:.4f}", step=True)
    if not resumed:
        found |= _last(history, "num_tokens", "tokens seen", "{:,.0f}")
    ended = next((entry for entry in reversed(history) if "train_runtime" in entry), None)
    if ended:
        found["time since it was resumed" if resumed else "time"] = duration(ended["train_runtime"])
    return found


def _last(history: Sequence[Mapping[str, Any]], name: str, label: str, form: str, step: bool = False) -> dict[str, str]:
    """The last number that was logged under `name`, with its step or without; nothing where there is none."""
    entry = next((entry for entry in reversed(history) if isinstance(entry.get(name), (int, float))), None)
    if entry is None:
        return {}
    return {label: form.format(entry[name]) + (f" (step {entry['step']:,})" if step else "")}


def render(card: CardData) -> str:
    """The card as Markdown with the Hub's YAML header."""
    from huggingface_hub import ModelCard, ModelCardData

    start = card.start
    data = ModelCardData(
        base_model=start.base.name if start.base.is_hub else None,
        datasets=[start.data.name] if start.data.is_hub else None,
        library_name="peft" if card.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[
            REPO_TAG,
            "trl",
            "sft",
            *(["selective-reflection-tuning"] if start.recycled else []),
            *(["lora"] if card.adapter else []),
        ],
        **start.license,
    )
    return str(ModelCard.from_template(data, template_path=str(template_path("model_card.md")), **_values(card)))


def _values(card: CardData) -> dict[str, Any]:
    start = card.start
    form = TEMPLATES.get(start.template)
    license = [inline(start.license[key]) for key in ("license", "license_name") if key in start.license]
    return {
        "title": inline(card.name.rpartition("/")[2]),
        "start": start,
        "base": _linked(start.base, _HUB),
        "data": _linked(start.data, f"{_HUB}datasets/"),
        "base_revision": _revision(start.base, _HUB),
        "data_revision": _revision(start.data, f"{_HUB}datasets/"),
        "config": inline(start.config) if start.config else "",
        "split": inline(start.split),
        "chosen": inline(start.chosen) if start.chosen else "",
        "held_out": inline(start.held_out) if start.held_out else "",
        "template": start.template + (", the tokenizer's own" if start.template == "chat" else ""),
        "license": ", ".join(license),
        "adapter": card.adapter,
        "finished": card.finished,
        "snippet": _snippet(card.name),
        "form": block(form.no_input) if form else "",
        "with_input": block(form.turn("{instruction}", "{input}")) if form else "",
        "settings": card.settings,
        "metrics": card.metrics,
        "command": block(start.command) if start.command else "The command is not known.",
        "pins": _pins(start),
        "versions": card.versions,
        "citation": citation(),
    }


def _linked(source: Source, where: str) -> str:
    return f"[{inline(source.name)}]({where}{source.name})" if source.is_hub else f"{inline(source.name)} (local, not on the Hub)"


def _revision(source: Source, where: str) -> str:
    return f"[{inline(source.revision)}]({where}{source.name}/tree/{source.revision})" if source.revision else ""


def _pins(start: Start) -> str:
    """The options that name the commits which were loaded, where they are known and were not typed."""
    found = (("--dataset_revision", start.data.revision), ("--model_revision", start.base.revision))
    wanted = [f"{option} {revision}" for option, revision in found if revision and revision not in start.command]
    return f"`{' '.join(wanted)}`" if wanted else ""


def _snippet(name: str) -> str:
    """Python that asks the model one question: the saved chat template has the form that it was trained with."""
    return "\n".join(
        [
            "from transformers import pipeline",
            "",
            f'generate = pipeline("text-generation", model={_literal(name)})',
            f'messages = [{{"role": "user", "content": {_literal(_EXAMPLE)}}}]',
            'print(generate(messages, max_new_tokens=512)[0]["generated_text"][-1]["content"].strip())',
        ]
    )


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
