"""The output head, asked only where a target is predicted."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

_PRECISION = threading.Lock()  # the setting is the process's, and students may score in several threads


class TargetHead(nn.Module):
    """Stands in for a model's output head: logits at the target positions only, in fp32, good until the next ones.

    In the head's place instead of `logits_to_keep`, so that whatever the model does to its logits afterwards (soft-capping,
    scaling) is still done to these, in every version of transformers that this project supports.
    """

    head: nn.Module
    mixed: bool
    rounded: bool
    reused: bool
    rows: Tensor  # positions in the flattened batch whose logits are wanted, set before each forward pass

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        in_fp32 = all(weight.dtype == torch.float32 for weight in head.parameters())
        self.rounded = all(weight.dtype == torch.bfloat16 for weight in head.parameters())
        # A GPU multiplies 16-bit numbers into fp32 at full speed. Elsewhere an fp32 copy does it, a copy because a head is often
        # tied to the input embedding, which keeps its dtype.
        self.mixed = type(head) is nn.Linear and head.weight.is_cuda and not in_fp32
        self.head = head if in_fp32 or self.mixed else copy.deepcopy(head).float()
        # Logits are too large for malloc to keep their memory, and fresh from the system it is cleared page by page.
        self.reused = type(head) is nn.Linear and head.weight.device.type == "cpu" and head.bias is None
        self._logits = torch.empty(0, dtype=torch.float32, device="cpu")

    def __getattr__(self, name: str) -> Any:
        """The head's own attributes: some models read its weight (Mamba casts to its dtype) or its bias."""
        return super().__getattr__(name) if name in ("head", "rows") else getattr(self.head, name)

    def forward(self, hidden: Tensor) -> Tensor:  # (batch, length, width) -> (1, targets, vocabulary)
        wanted = hidden.flatten(0, 1)[self.rows]
        if self.mixed:
            weight = cast(Tensor, self.head.weight)
            logits = torch.mm(wanted.to(weight.dtype), weight.t(), out_dtype=torch.float32)
            logits = logits if self.head.bias is None else logits + cast(Tensor, self.head.bias)
        else:
            logits = self._product(wanted) if self.reused else self.head(wanted.float())
        return logits.unsqueeze(0)

    def _product(self, wanted: Tensor) -> Tensor:  # (targets, width) -> (targets, vocabulary)
        weight = cast(Tensor, self.head.weight)
        size = len(wanted) * len(weight)
        if self._logits.numel() < size:
            self._logits = weight.new_empty(size)
        logits = self._logits[:size].view(len(wanted), len(weight))
        with _bfloat16_products() if self.rounded and wanted.dtype == torch.bfloat16 else nullcontext():
            return torch.mm(wanted.float(), weight.t(), out=logits)


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """While entered, a CPU may read fp32 factors as bfloat16 ones; products are fp32. Nothing is lost where they come from
    bfloat16, and oneDNN, which takes over, is faster than MKL on some CPUs (scripts/bench_student.md).

    Meanwhile other threads' products may be read so too. What held before holds afterwards, set by name where it was inherited.
    """
    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # since torch 2.9
    if matmul is None:
        yield
        return
    with _PRECISION:
        usual, matmul.fp32_precision = matmul.fp32_precision, "bf16"
        try:
            yield
        finally:
            matmul.fp32_precision = usual
