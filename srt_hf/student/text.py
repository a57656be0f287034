"""How a student reads a pair: the template around it, the start token before it, and its token ids.

The published code calls `tokenizer.encode`, which adds what the tokenizer's post-processor adds: BOS for Llama, nothing for
GPT-2 and Qwen, an EOS at the end for some. Then the first target token is scored only where a prompt stands before it
(a fault of the published code). Here every tokenizer encodes bare text and the start token is put before it by hand: BOS, or
EOS where there is none. On a Llama-like tokenizer that is the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from srt_hf.errors import ConfigError, StudentError
from srt_hf.prompts import TEMPLATE_NAMES, TEMPLATES, user_turn


class Texts:
    """One tokenizer and one template. `template` is the resolved name, `start` the start token's id.

    Raises StudentError for a tokenizer that cannot be used, ConfigError for a template that does not fit it.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer = tokenizer
        self.template = _resolve(template, tokenizer)
        self.start = _start_token(tokenizer)
        if not self.encode(["text"])[0]:  # what transformers makes of a folder without one
            raise StudentError(
                f"The tokenizer of {tokenizer.name_or_path} is empty.", "Save the student's tokenizer into its folder."
            )

    @property
    def lead(self) -> tuple[int, ...]:
        """Ids before a prompt. None before a chat prompt: its template writes the BOS itself where the model wants one."""
        return () if self.template == "chat" else (self.start,)

    def prompts(self, turns: Sequence[tuple[str, str]]) -> list[str]:
        """The text before the answer for each (instruction, input)."""
        if self.template != "chat":
            template = TEMPLATES[self.template]
            return [template.prompt(instruction, input) for instruction, input in turns]
        conversations = [[{"role": "user", "content": user_turn(instruction, input)}] for instruction, input in turns]
        try:
            return self.tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
        except jinja2.TemplateError as error:
            name = self.tokenizer.name_or_path
            raise StudentError(
                f"The chat template of {name} refuses a user turn: {error}.", "Choose another template."
            ) from error

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text (at least one), nothing added and nothing cut; equal texts are encoded once.

        Text of the dataset that spells a special token ("</s>", "<|im_end|>") becomes that token, as in the published code.
        """
        distinct = list(dict.fromkeys(texts))
        # verbose=False: a text longer than the window is no warning here, it is cut by the plan.
        ids = self.tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"]
        known = dict(zip(distinct, ids, strict=True))
        return [known[text] for text in texts]


def check_template(name: str) -> None:
    """Raises ConfigError where no template has this name."""
    if name not in TEMPLATE_NAMES:
        raise ConfigError(f"There is no template {name!r}.", f"Choose from {', '.join(TEMPLATE_NAMES)}.")


def _resolve(name: str, tokenizer: Any) -> str:
    if name == "auto":
        return "chat" if tokenizer.chat_template else "vicuna"
    if name == "chat" and not tokenizer.chat_template:
        raise ConfigError(
            f"template='chat', but the tokenizer of {tokenizer.name_or_path} has no chat template.",
            f"Choose from {', '.join(TEMPLATES)}.",
        )
    return name


def _start_token(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise StudentError(f"The tokenizer of {tokenizer.name_or_path} has neither a BOS nor an EOS token to start a text with.")
