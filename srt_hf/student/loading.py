"""A model name -> a model in memory, ready to score. The border where loading errors become `StudentError`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from srt_hf.errors import StudentError
from srt_hf.identity import base_model, brief
from srt_hf.student.engine import Engine
from srt_hf.student.probe import fastest_dtype
from srt_hf.student.text import Texts

DTYPES = ("auto", "fastest", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """A student in memory. `identity` is what it was loaded from, `max_length` the window that it really has."""

    identity: str
    texts: Texts
    engine: Engine
    max_length: int
    dtype: str


def pick_device(device: str | None, rank: int | None) -> str:
    """The device that was asked for; else the GPU of this worker's rank, or the CPU where there is no GPU."""
    if device is not None:
        return device
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{(rank or 0) % torch.cuda.device_count()}"


def resolve_dtype(dtype: str, device: str) -> str:
    """The dtype that "auto" or "fastest" stands for on `device`."""
    if dtype == "fastest":
        return fastest_dtype(device)
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.startswith("cuda") else "float32"


def load(
    model: str, identity: str, *, template: str, dtype: str, max_length: int, device: str, token_budget: int | None, **source: Any
) -> Loaded:
    """Load model and tokenizer; `source` (revision, trust_remote_code) goes to `from_pretrained` of both.

    Raises StudentError where they cannot be loaded or used, ConfigError where the template does not fit the tokenizer.
    """
    try:
        tokenizer = _tokenizer(model, source)
        # The dtype is always named: since transformers 5 the default is the checkpoint's own. A device map instead of `.to`,
        # which 8-bit models refuse.
        network, info = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype), device_map={"": device}, output_loading_info=True, **source
        )
        network.eval()
    # Foreign code of many authors: transformers raises OSError, ValueError, ImportError, KeyError, RuntimeError and more,
    # safetensors an error of its own, tokenizers a bare Exception.
    except Exception as error:
        raise StudentError(f"The student {model} cannot be loaded: {brief(error)}") from error
    if info["missing_keys"]:
        # transformers fills them with random numbers, and so would the scores be.
        raise StudentError(f"The student {model} lacks the weights {', '.join(sorted(info['missing_keys'])[:3])}.")
    texts = Texts(tokenizer, template)
    window = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    return Loaded(identity, texts, Engine(network, token_budget), min(max_length, window or max_length), dtype)


def _tokenizer(model: str, source: dict[str, Any]) -> Any:
    """The student's tokenizer; an adapter that comes without one has its base model's."""
    base = base_model(model, source.get("revision"))
    if base and not find_spec("peft"):
        raise ImportError(f"it is a PEFT adapter of {base}, and peft is not installed (`pip install peft`)")
    try:
        return AutoTokenizer.from_pretrained(model, **source)
    except (OSError, ValueError):
        if not base:
            raise
    return AutoTokenizer.from_pretrained(base, **{**source, "revision": None})
