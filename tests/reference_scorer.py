"""The published way to score a pair, written plainly and independently of `srt_hf.student`.

One text at a time, `tokenizer.encode`, all logits, CrossEntropy over the labels. Slow, and easy to check by eye: the guard of the
engine where the oracle's numbers are not at hand. Not taken over are the published code's faults: the target is found by token
count, not by `rfind`; a tokenizer without BOS gets its EOS in front.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import CrossEntropyLoss

_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions. USER: {} ASSISTANT:"
)
_GUESS = (
    "Below is the response to an instruction, please guess the corresponding instruction for the given response.\n{}\n"
    "Generate the instruction for the above response."
)


def reference_nlls(
    model: Any, tokenizer: Any, instruction: str, input: str, output: str, max_length: int
) -> dict[str, float | None]:
    """The four mean nlls of a pair under the Vicuna template, None where no target token is left."""
    asked = f"{instruction}\nInput:\n{input}" if input else instruction
    y_alone, y_given_x = _both(model, tokenizer, _VICUNA.format(asked), output, max_length)
    x_alone, x_given_y = _both(model, tokenizer, _VICUNA.format(_GUESS.format(output)), instruction + input, max_length)
    return {"nll_y": y_alone, "nll_y_given_x": y_given_x, "nll_x": x_alone, "nll_x_given_y": x_given_y}


def _both(model: Any, tokenizer: Any, prompt: str, target: str, max_length: int) -> tuple[float | None, float | None]:
    n_prompt = len(_encode(tokenizer, prompt))
    alone = _encode(tokenizer, target)[: max(0, max_length - n_prompt + 1)]
    given = _encode(tokenizer, prompt + target)[:max_length]
    return _mean_nll(model, alone, 1), _mean_nll(model, given, n_prompt)


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer.encode(text)
    return ids if tokenizer.bos_token_id is not None else [tokenizer.eos_token_id, *ids]


@torch.no_grad()
def _mean_nll(model: Any, ids: list[int], start: int) -> float | None:
    if len(ids) <= start:
        return None
    logits = model(torch.tensor([ids])).logits[0, :-1]
    labels = torch.tensor([-100] * (start - 1) + ids[start:])
    return CrossEntropyLoss()(logits, labels).item()
