"""The output head, asked only where a target is predicted."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn


class TargetHead(nn.Module):
    """Stands in for a model's output head: logits at the target positions only, in fp32.

    In the head's place instead of `logits_to_keep`, so that whatever the model does to its logits afterwards (soft-capping,
    scaling) is still done to these, in every version of transformers that this project supports.
    """

    head: nn.Module
    mixed: bool
    rows: Tensor  # positions in the flattened batch whose logits are wanted, set before each forward pass

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        in_fp32 = all(weight.dtype == torch.float32 for weight in head.parameters())
        # A GPU multiplies 16-bit numbers into fp32 at full speed. Elsewhere an fp32 copy does it, a copy because a head is often
        # tied to the input embedding, which keeps its dtype.
        self.mixed = type(head) is nn.Linear and head.weight.is_cuda and not in_fp32
        self.head = head if in_fp32 or self.mixed else copy.deepcopy(head).float()

    def __getattr__(self, name: str) -> Any:
        """The head's own attributes: some models read its weight (Mamba casts to its dtype) or its bias."""
        return super().__getattr__(name) if name in ("head", "rows", "mixed") else getattr(self.head, name)

    def forward(self, hidden: Tensor) -> Tensor:  # (batch, length, width) -> (1, targets, vocabulary)
        wanted = hidden.flatten(0, 1)[self.rows]
        if not self.mixed:
            return self.head(wanted.float()).unsqueeze(0)
        weight = cast(Tensor, self.head.weight)
        logits = torch.mm(wanted.to(weight.dtype), weight.t(), out_dtype=torch.float32)
        return (logits if self.head.bias is None else logits + cast(Tensor, self.head.bias)).unsqueeze(0)
