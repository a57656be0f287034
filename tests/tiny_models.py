"""Tiny random models and tokenizers for tests, saved as folders: nothing is downloaded, everything is deterministic.

make_llama(folder)           a Llama with a Llama-2-like tokenizer: BOS in front, "▁" for spaces, byte fallback
make_gpt2(folder)            a GPT-2 with a byte-level tokenizer that knows no BOS
make(architecture, folder)   any of ARCHITECTURES, with the first tokenizer
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

POSITIONS = 256
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

_SENTENCES = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "Give three tips for staying healthy. Eat a balanced diet, exercise regularly and get enough sleep.",
    "What are the three primary colors? The three primary colors are red, blue, and yellow.",
    "Describe the structure of an atom. An atom is made up of a nucleus and of electrons around it.",
    "A chat between a curious user and an artificial intelligence assistant. USER: Hello! ASSISTANT: Hi, how can I help?",
    "Here is a Python function: def add(a, b): return {a: b} [1, 2, 3] (x + y)",
]


def make_llama(folder: Path, seed: int = 0, chat_template: str | None = None) -> Path:
    return make("llama", folder, seed=seed, chat_template=chat_template)


def make_gpt2(folder: Path, seed: int = 0, chat_template: str | None = None) -> Path:
    return make("gpt2", folder, seed=seed, chat_template=chat_template, bos=False)


def make(
    architecture: str, folder: Path, seed: int = 0, chat_template: str | None = None, bos: bool = True, **config: Any
) -> Path:
    """Save a model of `architecture` and a tokenizer, with a BOS or without, to `folder`; `config` overrides its sizes."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_llama_tokenizer(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if not bos:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level_tokenizer(), eos_token="<|endoftext|>")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), **ARCHITECTURES[architecture], **config}
    kind = getattr(transformers, f"{_CONFIG_NAMES[architecture]}Config")
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(kind(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=None)).save_pretrained(folder)
    return folder


# Large initial weights, so that a token seen or missed by mistake moves the loss.
LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
}
_GPT2_LIKE: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "initializer_range": 0.2}
_HEADS_ALIKE = {name: size for name, size in LLAMA_LIKE.items() if name != "num_key_value_heads"}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE,
    "qwen3": {**LLAMA_LIKE, "head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {**LLAMA_LIKE, "head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 16},
    "mistral": {**LLAMA_LIKE, "sliding_window": 16},
    "granite": {**LLAMA_LIKE, "logits_scaling": 3.0},
    "phi": {**_HEADS_ALIKE},
    "gpt_neox": {**_HEADS_ALIKE},
    "opt": {
        **{name: size for name, size in _HEADS_ALIKE.items() if name not in ("intermediate_size", "initializer_range")},
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
        "init_std": 0.2,
    },
    "gpt2": _GPT2_LIKE,
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "initializer_range": 0.2},
}
_CONFIG_NAMES = {
    "llama": "Llama",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "mistral": "Mistral",
    "granite": "Granite",
    "phi": "Phi",
    "gpt_neox": "GPTNeoX",
    "opt": "OPT",
    "gpt2": "GPT2",
    "mamba": "Mamba",
}


@cache
def _llama_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    # What byte fallback writes unknown characters with.
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *byte_tokens], show_progress=False)
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@cache
def _byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
