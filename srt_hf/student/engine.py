"""Model passes -> mean losses. The only place that runs the student.

Right padding without an attention mask is exact for causal models: no token sees what comes after it. Logits are computed
where a target is predicted and nowhere else, in fp32 whatever the body's dtype (a bf16 log-softmax costs 3e-3 in a mean loss),
and each batch comes back to the host once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srt_hf.errors import StudentError
from srt_hf.identity import brief
from srt_hf.student.plan import Pass, longest_first

# Padded tokens a forward pass. On a CPU 1,000 to 2,000 are fastest; a GPU wants more.
_CPU_TOKENS, _CUDA_TOKENS = 2048, 16384
# Every token of a batch may be a target: bytes of fp32 logits that this may cost.
_LOGIT_BYTES = {"cpu": 1 << 30, "cuda": 1 << 32}
# Rows of logits that cross_entropy sees at a time, because it makes a copy of them.
_LOSS_ROWS = 512


class TargetHead(nn.Module):
    """Stands in for a model's output head: logits at the target positions only, in fp32.

    In the head's place instead of `logits_to_keep`, so that whatever the model does to its logits afterwards (soft-capping,
    scaling) is still done to these, in every version of transformers that this project supports.
    """

    rows: Tensor  # positions in the flattened batch whose logits are wanted, set before each forward pass

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        in_fp32 = all(weight.dtype == torch.float32 for weight in head.parameters())
        # A copy, because a head is often tied to the input embedding, which keeps its dtype.
        self.head = head if in_fp32 else copy.deepcopy(head).float()

    def __getattr__(self, name: str) -> Any:
        """The head's own attributes: some models read its weight (Mamba casts to its dtype) or its bias."""
        return super().__getattr__(name) if name in ("head", "rows") else getattr(self.head, name)

    def forward(self, hidden: Tensor) -> Tensor:  # (batch, length, width) -> (1, targets, vocabulary)
        return self.head(hidden.flatten(0, 1)[self.rows].float()).unsqueeze(0)


class Engine:
    """A causal language model, ready to score. `token_budget`: padded tokens a forward pass; None for what suits the device.

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
        self._check_causal()

    def mean_nlls(self, passes: Sequence[Pass]) -> list[float | None]:
        """Mean nll of each pass's targets, nats per token: NaN or infinite where the model's loss is, None where a pass does not
        fit into memory even alone. Batches shrink when memory runs out, and stay small."""
        means: list[float | None] = [None] * len(passes)
        order = longest_first(passes)
        while order:
            size = max(1, self.token_budget // len(passes[order[0]].ids))
            batch = order[:size]
            values = self._try([passes[i] for i in batch])
            if values is None and len(batch) > 1:
                self.token_budget = len(batch) * len(passes[batch[0]].ids) // 2
                continue
            if values is not None:
                for i, value in zip(batch, values, strict=True):
                    means[i] = value
            order = order[size:]
        return means

    def _try(self, passes: Sequence[Pass]) -> list[float] | None:
        """The batch's means, or None where memory ran out."""
        try:
            return self._means(passes)
        except (RuntimeError, IndexError) as error:
            if not _out_of_memory(error):
                raise StudentError(f"{type(self.model).__name__} failed on a batch: {brief(error)}") from error
        # Here, not in the handler, whose traceback still holds the failed pass's tensors.
        torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def _means(self, passes: Sequence[Pass]) -> list[float]:
        width = max(len(ids) for ids, _ in passes) - 1  # the last token predicts nothing that is asked for
        inputs = [[*ids[:-1], *[0] * (width - len(ids) + 1)] for ids, _ in passes]
        rows = [i * width + at for i, (ids, start) in enumerate(passes) for at in range(start - 1, len(ids) - 1)]
        targets = self._tensor([token for ids, start in passes for token in ids[start:]])
        logits = self._logits(inputs, rows)
        parts = zip(logits.split(_LOSS_ROWS), targets.split(_LOSS_ROWS), strict=True)
        losses = torch.cat([F.cross_entropy(*part, reduction="none") for part in parts]).double()
        counts = [len(ids) - start for ids, start in passes]
        return torch.stack([part.mean() for part in losses.split(counts)]).tolist()

    def _logits(self, inputs: list[list[int]], rows: list[int]) -> Tensor:  # (batch, length) -> (rows, vocabulary)
        self.head.rows = self._tensor(rows)
        # use_cache=False: a cache costs memory, and with packed sequences it makes SDPA silently wrong.
        return self.model(input_ids=self._tensor(inputs), use_cache=False).logits.squeeze(0).float()

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.model.device)

    @torch.inference_mode()
    def _check_causal(self) -> None:
        """A model that sees the tokens after a position (BERT as a language model) has losses, but they mean nothing."""
        one, other = self._logits([[0, 1, 2], [0, 1, 3]], rows=[1, 4])
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise StudentError(f"{type(self.model).__name__} is not causal: its logits depend on later tokens.")


def _default_budget(model: Any) -> int:
    device = "cuda" if model.device.type == "cuda" else "cpu"
    most = _LOGIT_BYTES[device] // (4 * model.config.get_text_config().vocab_size)
    return min(_CUDA_TOKENS if device == "cuda" else _CPU_TOKENS, most)


def _out_of_memory(error: BaseException) -> bool:
    # The CPU allocator raises a bare RuntimeError.
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
