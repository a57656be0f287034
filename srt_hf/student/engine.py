"""Model passes -> mean losses. The only place that runs the student.

Right padding without an attention mask is exact for causal models: no token sees what comes after it. Logits are computed
where a target is predicted and nowhere else, in fp32 whatever the body's dtype (a bf16 log-softmax costs 3e-3 in a mean loss),
and each batch comes back to the host once.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srt_hf.errors import StudentError
from srt_hf.identity import brief
from srt_hf.student.attention import PACKED, over
from srt_hf.student.batches import Batch, pack, packing_order, pad, padding_order
from srt_hf.student.plan import Pass

# Tokens a forward pass: on a CPU more than 2,000 gain nothing (scripts/bench_student.md); a GPU wants more.
_TOKENS = {"cpu": 2048, "cuda": 16384}
# Every token of a batch may be a target: bytes of fp32 logits that this may cost; on a GPU a share of what is free.
_LOGIT_BYTES = 1 << 30
_LOGIT_SHARE = 0.25
# Bytes of logits that cross_entropy sees at a time, because it makes a copy of them.
_LOSS_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
# How far a mean loss of packed passes may be from that of a pass alone: rounded by the batch (16 bits, quantised) or not.
_PACKING_TOLERANCE = {"rounded": 0.1, "exact": 1e-4}


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
        logits = torch.mm(wanted, cast(Tensor, self.head.weight).t(), out_dtype=torch.float32)
        return (logits if self.head.bias is None else logits + cast(Tensor, self.head.bias)).unsqueeze(0)


class Engine:
    """A causal language model, ready to score. `token_budget`: tokens a forward pass; None for what suits the device.

    Raises StudentError for a model without an output head or one that sees the future.
    """

    def __init__(self, model: Any, token_budget: int | None = None) -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise StudentError(f"{type(model).__name__} has no output head.")
        self.model = model
        self.head = TargetHead(head)
        model.set_output_embeddings(self.head)
        self.token_budget = token_budget or _default_budget(model)
        self.packs = False
        self._check_causal()
        self.packs = _may_pack(model) and self._packs_right()

    def mean_nlls(self, passes: Sequence[Pass]) -> list[float | None]:
        """Mean nll of each pass's targets, nats per token: NaN or infinite where the model's loss is, None where a pass does not
        fit into memory even alone. Batches shrink when memory runs out, and stay small."""
        order, cut = (packing_order(passes), pack) if self.packs else (padding_order(passes), pad)
        members: list[int] = []
        found: list[Tensor] = []
        while order:
            batch = cut(passes, order, self.token_budget)
            values = self._try(batch)
            if values is None and len(batch.members) > 1:
                self.token_budget = batch.size // 2
                continue
            if values is not None:
                members += batch.members
                found.append(values)
            order = order[len(batch.members) :]
        means: list[float | None] = [None] * len(passes)
        # Once, so that a GPU computes while the next batches are made.
        for i, mean in zip(members, torch.cat(found).tolist() if found else [], strict=True):
            means[i] = mean
        return means

    def _try(self, batch: Batch) -> Tensor | None:
        """The batch's means, or None where memory ran out."""
        try:
            return self._means(batch)
        except (RuntimeError, IndexError) as error:
            if not _out_of_memory(error):
                raise StudentError(f"{type(self.model).__name__} failed on a batch: {brief(error)}") from error
        # Here, not in the handler, whose traceback still holds the failed batch's tensors.
        torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def _means(self, batch: Batch) -> Tensor:  # (members,), fp64
        logits = self._logits(batch)
        rows = max(1, _LOSS_BYTES[_kind(self.model)] // (4 * logits.shape[-1]))
        parts = zip(logits.split(rows), self._tensor(batch.targets).split(rows), strict=True)
        losses = torch.cat([F.cross_entropy(*part, reduction="none") for part in parts]).double()
        counts = [len(own) for own in batch.losses]
        owner = self._tensor(counts).new_tensor(range(len(counts))).repeat_interleave(self._tensor(counts))
        sums = losses.new_zeros(len(counts)).index_add_(0, owner, losses[self._tensor(list(chain(*batch.losses)))])
        return sums / self._tensor(counts)

    def _logits(self, batch: Batch) -> Tensor:  # (rows, vocabulary), fp32
        self.head.rows = self._tensor(batch.rows)
        inputs = {"input_ids": self._tensor(batch.inputs)}
        if batch.segments:
            inputs["position_ids"] = self._tensor([batch.positions])
        with over(batch.segments, self.model.device):
            # use_cache=False: a cache costs memory, and with packed sequences it makes SDPA silently wrong.
            return self.model(**inputs, use_cache=False).logits.squeeze(0).float()

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.model.device)

    @torch.inference_mode()
    def _check_causal(self) -> None:
        """A model that sees the tokens after a position (BERT as a language model) has losses, but they mean nothing."""
        one, other = self._logits(Batch(inputs=[[0, 1, 2], [0, 1, 3]], rows=[1, 4]))
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise StudentError(f"{type(self.model).__name__} is not causal: its logits depend on later tokens.")

    def _packs_right(self) -> bool:
        """Switch the model to packed attention if a few passes then give what they give one by one; warn where they do not."""
        usual = self.model.config._attn_implementation
        draw = random.Random(0)
        vocabulary = self.model.config.get_text_config().vocab_size
        one, other = ([draw.randrange(vocabulary) for _ in range(32)] for _ in range(2))
        passes = [Pass(tuple(ids), 1) for ids in (one, one[:20] + other[:10], other)]
        try:
            plain = torch.cat([self._means(pad(passes, [n], 1)) for n in range(len(passes))])
            self.model.set_attn_implementation(PACKED)
            packed = self._means(pack(passes, range(len(passes)), 1000))
            off = (plain - packed).abs().max().item()
        except Exception as error:  # foreign code: a kernel or a layer that cannot do this
            off, why = math.inf, brief(error)
        else:
            why = f"a mean loss is off by {off:.3f}"
        exact = self.model.dtype == torch.float32 and not getattr(self.model, "is_quantized", False)
        if off > _PACKING_TOLERANCE["exact" if exact else "rounded"]:
            self.model.set_attn_implementation(usual)
            warnings.warn(f"{type(self.model).__name__} is scored in padded batches, which is slower: {why}.", stacklevel=2)
            return False
        return True


def _may_pack(model: Any) -> bool:
    """Whether the model's layers tell their attention all that it must know, as flash-attn needs it too, and the device can."""
    if _kind(model) == "cuda" and model.dtype == torch.float32:
        return False  # the kernels know 16 bits only
    return bool(getattr(model, "_supports_attention_backend", False) and getattr(model, "_supports_flash_attn", False))


def _kind(model: Any) -> str:
    return "cuda" if model.device.type == "cuda" else "cpu"


def _default_budget(model: Any) -> int:
    kind = _kind(model)
    room = _LOGIT_SHARE * torch.cuda.mem_get_info(model.device)[0] if kind == "cuda" else _LOGIT_BYTES
    return max(1, min(_TOKENS[kind], int(room) // (4 * model.config.get_text_config().vocab_size)))


def _out_of_memory(error: BaseException) -> bool:
    # The CPU allocator raises a bare RuntimeError.
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
