"""A model name -> a model in memory, ready to score. The border where loading errors become `StudentError`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from srt_hf.errors import ConfigError, StudentError
from srt_hf.identity import brief
from srt_hf.student.engine import Engine
from srt_hf.student.text import Texts

DTYPES = ("auto", "float32", "bfloat16", "float16")


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
    """The dtype that "auto" stands for on `device`. Raises ConfigError where there is no such dtype."""
    if dtype not in DTYPES:
        raise ConfigError(f"There is no dtype {dtype!r}.", f"Choose from {', '.join(DTYPES)}.")
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
        tokenizer = AutoTokenizer.from_pretrained(model, **source)
        # The dtype is always named: since transformers 5 the default is the checkpoint's own.
        network, info = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype), output_loading_info=True, **source
        )
        network = network.to(device).eval()
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
