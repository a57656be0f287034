"""Batches -> mean losses. The only place that runs the student.

Logits are computed where a target is predicted and nowhere else, in fp32 whatever the body's dtype (a bf16 log-softmax costs
3e-3 in a mean loss); sums are in fp64. Nobody waits for a GPU until all batches are under way: their means come back once.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from srt_hf.errors import StudentError
from srt_hf.identity import brief
from srt_hf.student.attention import PACKED, over, tensor_on
from srt_hf.student.batches import Batch, pack, packing_order, pad, padding_order
from srt_hf.student.head import TargetHead
from srt_hf.student.plan import Pass
from srt_hf.student.probe import free_memory

# Tokens a forward pass: on a CPU more than 2,000 gain nothing (scripts/bench_student.md); a GPU wants more.
_TOKENS = {"cpu": 2048, "cuda": 16384}
# Every token of a batch may be a target: bytes of fp32 logits that this may cost; on a GPU a share of what is free.
_LOGIT_BYTES = 1 << 30
_LOGIT_SHARE = 0.25
# Bytes of logits whose log-probabilities are in memory at a time, beside them.
_LOSS_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
# How far packed losses may be from plain ones, and a pass's from its own beside another neighbour: where nothing is rounded
# by the batch, where 16 bits are, and where a quantised product depends on what else is in it.
_MEAN_TOLERANCE = {"exact": 1e-4, "16 bits": 0.1, "quantised": 0.1}
_TARGET_TOLERANCE = {"exact": 1e-4, "16 bits": 0.02, "quantised": 0.5}
_NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


class Engine:
    """A causal language model, ready to score. `token_budget`: tokens a forward pass; None for what suits the device.
    `torch_compile`: compile its layers.

    `packs` says whether passes share their beginnings. Raises StudentError for a model without an output head, one that sees
    the future and one that cannot be compiled.
    """

    def __init__(self, model: Any, token_budget: int | None = None, torch_compile: bool = False) -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise StudentError(f"{type(model).__name__} has no output head.")
        self.model = model
        self.quantised = bool(getattr(model, "is_quantized", False))
        self.head = TargetHead(head)
        model.set_output_embeddings(self.head)
        config = model.config.get_text_config()
        if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
            # Before transformers 5 it is the default of Gemma 2, and leaves the soft-capping out.
            model.set_attn_implementation("eager")
        self.token_budget = token_budget or _default_budget(model)
        self._told_of_memory = False
        self._windows: set[int | None] = set()  # what layers have told packed attention
        self._check_causal()
        self.packs = _may_pack(model) and self._packs_right()
        if torch_compile:
            self._compile()

    def mean_nlls(self, passes: Sequence[Pass]) -> list[float | None]:
        """Mean nll of each pass's targets, nats per token: NaN or infinite where the model's loss is, None where a pass does not
        fit into memory even alone. Batches shrink when memory runs out, and stay small.

        Raises StudentError where no pass at all fits: that is a lack of memory now, and no property of the passes.
        """
        order, cut = (packing_order(passes), pack) if self.packs else (padding_order(passes), pad)
        members: list[int] = []
        found: list[Tensor] = []
        limit = _rope_limit(self.model)
        for rest in ([i for i in order if (len(passes[i].ids) - 1 > limit) is long] for long in (False, True)):
            while rest:
                batch = cut(passes, rest, self.token_budget)
                values = self._try(batch)
                if values is None and len(batch.members) > 1:
                    self.token_budget = batch.size // 2
                    self._tell_of_memory(f"batches of {self.token_budget:,} tokens from now on")
                    continue
                if values is None:
                    self._tell_of_memory(f"a pass of {batch.size:,} tokens does not fit even alone and has no score")
                if values is not None:
                    members += batch.members
                    found.append(values)
                rest = rest[len(batch.members) :]
        if passes and not found:
            raise StudentError("Not even one pass fits into the memory that is free now.", "Free some and start again.")
        means: list[float | None] = [None] * len(passes)
        try:
            values_on_host = torch.cat(found).tolist() if found else []
        except RuntimeError as error:  # of a GPU, which tells late
            raise StudentError(f"{type(self.model).__name__} failed: {brief(error)}") from error
        for i, mean in zip(members, values_on_host, strict=True):
            means[i] = mean
        return means

    def _tell_of_memory(self, what: str) -> None:
        if not self._told_of_memory:
            self._told_of_memory = True
            warnings.warn(f"Memory ran out while {type(self.model).__name__} scored: {what}.", stacklevel=2)

    def _try(self, batch: Batch) -> Tensor | None:
        """The batch's means, or None where memory ran out."""
        try:
            return self._means(batch)
        except Exception as error:  # foreign code of many authors
            if not _out_of_memory(error):
                raise StudentError(f"{type(self.model).__name__} failed on a batch: {brief(error)}") from error
        # Here, not in the handler, whose traceback still holds the failed batch's tensors.
        torch.cuda.empty_cache()
        return None

    def _means(self, batch: Batch) -> Tensor:  # (members,), fp64
        losses = self._losses(batch)
        counts = [len(own) for own in batch.losses]
        owners = [n for n, count in enumerate(counts) for _ in range(count)]
        own, owner, count = (tensor_on(losses.device, values) for values in (list(chain(*batch.losses)), owners, counts))
        return losses.new_zeros(len(counts)).index_add_(0, owner, losses[own]) / count

    @torch.inference_mode()
    def _losses(self, batch: Batch) -> Tensor:  # (rows,), fp64
        logits = self._logits(batch)
        rows = max(1, _LOSS_BYTES[_kind(self.model)] // (4 * logits.shape[-1]))
        targets = tensor_on(self.model.device, batch.targets)[:, None]
        log_probs = torch.empty_like(logits[:rows])  # of each part in turn: cross_entropy would ask for memory each time
        losses = torch.cat(
            [
                -torch.log_softmax(part, -1, out=log_probs[: len(part)]).gather(1, wanted).squeeze(1)
                for part, wanted in zip(logits.split(rows), targets.split(rows), strict=True)
            ]
        )
        return (losses if losses.is_cuda else losses.cpu()).double()  # Apple's GPUs have no fp64

    def _logits(self, batch: Batch) -> Tensor:  # (rows, vocabulary), fp32
        device = self.model.device
        self.head.rows = tensor_on(device, batch.rows)
        inputs = {"input_ids": tensor_on(device, batch.inputs)}
        if batch.segments:
            inputs["position_ids"] = tensor_on(device, [batch.positions])
        with over(batch.segments, device, self._windows):
            # use_cache=False: a cache costs memory, and with packed sequences it makes SDPA silently wrong.
            return self.model(**inputs, use_cache=False).logits.squeeze(0).float()

    @torch.inference_mode()
    def _check_causal(self) -> None:
        """A model that sees the tokens after a position (BERT as a language model) has losses, but they mean nothing."""
        one, other = self._logits(Batch(inputs=[[0, 1, 2], [0, 1, 3]], rows=[1, 4]))
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise StudentError(f"{type(self.model).__name__} is not causal: its logits depend on later tokens.")

    def _packs_right(self) -> bool:
        """Switch the model to packed attention if a few passes then give what they give one by one, whatever is beside them; warn
        where they do not."""
        usual = self.model.config._attn_implementation
        passes = _some_passes(self.model)
        try:
            plain = torch.cat([self._means(pad(passes, [n], 1)) for n in range(3)])
            self.model.set_attn_implementation(PACKED)
            packed = self._means(pack(passes, [0, 1, 2], 1000))
            # Where state runs from one pass into the next (convolutions, recurrences), the neighbour before it shows.
            beside = [self._losses(pack(passes, [n, 2], 1000))[-31:] for n in (0, 3)]
            why = self._doubt(plain, packed, *beside)
        except Exception as error:  # foreign code: a kernel or a layer that cannot do this
            why = brief(error)
        if why:
            self.model.set_attn_implementation(usual)
            warnings.warn(f"{type(self.model).__name__} is scored in padded batches, which is slower: {why}.", stacklevel=2)
        return not why

    def _doubt(self, plain: Tensor, packed: Tensor, beside: Tensor, beside_another: Tensor) -> str | None:
        kind = self._exactness()
        for what, one, other, tolerance in (
            ("a mean loss is off", plain, packed, _MEAN_TOLERANCE[kind]),
            ("a pass changes with what is packed beside it", beside, beside_another, _TARGET_TOLERANCE[kind]),
        ):
            if not torch.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True):
                return f"{what} by {(one - other).abs().max().item():.1g}"
        window = _window(self.model)
        return None if window is None or window in self._windows else f"no layer tells its window of {window} tokens"

    def _compile(self) -> None:
        """Compile the layers instead of the model: they are alike, so that one's code serves all. Raises StudentError where a few
        passes cannot be run so, or give something else."""
        name = type(self.model).__name__
        layers = [module for module in self.model.modules() if type(module).__name__ in (self.model._no_split_modules or ())]
        if not layers or not _all_attention(self.model):
            # A loop over tokens would be compiled anew for each length.
            why = "it names no layers" if not layers else "state runs through its layers from token to token"
            raise StudentError(f"{name} cannot be compiled: {why}.", "Do without torch_compile.")
        batch = (pack if self.packs else pad)(_some_passes(self.model), [0, 1, 2], 1000)
        plain = self._means(batch)
        try:
            for layer in layers:
                layer.compile(dynamic=True)
            compiled = self._means(batch)
        except Exception as error:  # foreign code, a compiler's among it
            cure = "Do without torch_compile; on a CPU it needs a C++ compiler."
            raise StudentError(f"{name} cannot be compiled: {brief(error)}", cure) from error
        if not torch.allclose(plain, compiled, rtol=0, atol=_MEAN_TOLERANCE[self._exactness()], equal_nan=True):
            off = (plain - compiled).abs().max().item()
            raise StudentError(f"{name} cannot be compiled: a mean loss is then off by {off:.1g}.", "Do without torch_compile.")

    def _exactness(self) -> str:
        return "quantised" if self.quantised else "exact" if self.model.dtype == torch.float32 else "16 bits"


def _some_passes(model: Any) -> list[Pass]:
    """Four passes of random tokens, 30 to 32 long; the first two share their beginning."""
    draw = random.Random(0)
    vocabulary = model.config.get_text_config().vocab_size
    one, two, three = ([draw.randrange(vocabulary) for _ in range(32)] for _ in range(3))
    return [Pass(tuple(ids), 1) for ids in (one, one[:20] + two[:10], two, three)]


def _may_pack(model: Any) -> bool:
    """Whether the model is all attention, its layers tell that all that it must know, as flash-attn needs it too, and the device
    can."""
    if _kind(model) == "cuda" and model.dtype == torch.float32:
        return False  # the kernels know 16 bits only
    tells = all(getattr(model, f"_supports_{what}", False) for what in ("attention_backend", "flash_attn"))
    return tells and _all_attention(model)


def _all_attention(model: Any) -> bool:
    """Whether tokens see each other by attention alone, and not by a convolution's or a recurrence's state."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return not getattr(model, "_is_stateful", False) and kinds <= {"full_attention", "sliding_attention"}


def _window(model: Any) -> int | None:
    """The keys that a query of some layers sees at most, by the model's config."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    used = getattr(config, "use_sliding_window", True) and "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) if used else None


def _rope_limit(model: Any) -> float:
    """The longest sequence with the short factors of a longrope model, which go by the longest in a batch; else infinite."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) != "longrope":
        return math.inf
    name = "original_max_position_embeddings"
    return rope.get(name) or getattr(config, name, None) or math.inf


def _kind(model: Any) -> str:
    return "cuda" if model.device.type == "cuda" else "cpu"


def _default_budget(model: Any) -> int:
    kind = _kind(model)
    room = _LOGIT_SHARE * free_memory(model.device) if kind == "cuda" else _LOGIT_BYTES
    return max(1, min(_TOKENS[kind], int(room) // (4 * model.config.get_text_config().vocab_size)))


def _out_of_memory(error: BaseException) -> bool:
    # The CPU allocator and cuBLAS raise a bare RuntimeError.
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in _NO_MEMORY)
