"""A model name -> a model in memory, ready to score. The border where loading errors become `StudentError`."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from srt_hf.errors import SrtError, StudentError
from srt_hf.identity import base_model, brief, revisions
from srt_hf.student.engine import Engine
from srt_hf.student.probe import fastest_dtype
from srt_hf.student.text import Texts

# glibc's malloc.h; 32 MiB is the largest block that it does not ask the system for each time.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 32 << 20

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
    if not device.startswith("cuda"):
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def load(
    model: str,
    identity: str,
    *,
    template: str,
    dtype: str,
    max_length: int,
    device: str,
    token_budget: int | None,
    torch_compile: bool,
    trust_remote_code: bool,
) -> Loaded:
    """Load model and tokenizer as of `identity`.

    Raises StudentError where they cannot be loaded or used, ConfigError where the template does not fit the tokenizer.
    """
    if device.startswith("cpu"):
        _keep_freed_memory()
    # The dtype is always named: since transformers 5 the default is the checkpoint's own. A device map instead of `.to`, which
    # 8-bit models refuse.
    how = {"dtype": getattr(torch, dtype), "device_map": {"": device}, "trust_remote_code": trust_remote_code}
    own, base_commit = revisions(identity)
    try:
        base = base_model(model, own)
        tokenizer = _tokenizer((model, own), (base, base_commit), trust_remote_code)
        network, missing = _network((model, own), (base, base_commit), how)
    # Foreign code of many authors: transformers raises OSError, ValueError, ImportError, KeyError, RuntimeError and more,
    # safetensors an error of its own, tokenizers a bare Exception.
    except Exception as error:
        raise StudentError(f"The student {model} cannot be loaded: {brief(error)}") from error
    if missing:
        # transformers fills them with random numbers, and so would the scores be.
        raise StudentError(f"The student {model} lacks the weights {', '.join(sorted(missing)[:3])}.")
    texts = Texts(tokenizer, template)
    try:
        engine = Engine(network.eval(), token_budget, torch_compile)
    except SrtError:
        raise
    except Exception as error:  # foreign code again
        raise StudentError(f"The student {model} cannot be run: {brief(error)}") from error
    window = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    return Loaded(identity, texts, engine, min(max_length, window or max_length), dtype)


# A model's name, None where there is none, and its commit, None for a local folder.
_Source = tuple[str | None, str | None]


def _network(own: _Source, base: _Source, how: dict[str, Any]) -> tuple[Any, set[str]]:
    """The model, and the names of weights that it should have and has not. An adapter is put on its base, each at its commit,
    which `from_pretrained` of the adapter cannot do: it takes one revision for both."""
    (model, commit), (base_name, base_commit) = own, base
    if base_name is None:
        network, info = AutoModelForCausalLM.from_pretrained(model, revision=commit, output_loading_info=True, **how)
        return network, set(info["missing_keys"])
    if not find_spec("peft"):
        raise ImportError(f"it is a PEFT adapter of {base_name}, and peft is not installed (`pip install peft`)")
    network, info = AutoModelForCausalLM.from_pretrained(base_name, revision=base_commit, output_loading_info=True, **how)
    loaded = network.load_adapter(model, adapter_kwargs={"revision": commit} if commit else None)
    return network, {*info["missing_keys"], *getattr(loaded, "missing_keys", ())}


def _tokenizer(own: _Source, base: _Source, trust_remote_code: bool) -> Any:
    """The student's tokenizer; an adapter that comes without one has its base model's."""
    (model, commit), (base_name, base_commit) = own, base
    try:
        return AutoTokenizer.from_pretrained(model, revision=commit, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        if not base_name:
            raise
    return AutoTokenizer.from_pretrained(base_name, revision=base_commit, trust_remote_code=trust_remote_code)


def _keep_freed_memory() -> None:
    """Have this process keep the memory of freed tensors. glibc gives it back to the system, which clears it page by page for the
    next layer's: 5 to 10 % of a small model's time (scripts/bench_student.md)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # other C libraries have none
    if mallopt:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
