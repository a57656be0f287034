"""Attention over packed batches, which transformers knows under the name PACKED.

A segment's queries see the keys of its context and, causally, its own (batches.Segment). On CUDA all segments go to one
variable-length kernel, flash-attn's (the package, or its build on the Hub where `kernels` is installed), else torch's own; each
aligns the causal mask to the lower right, as a segment with a context needs it. Elsewhere SDPA takes them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import accumulate, chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention

from srt_hf.student.batches import Segment

PACKED = "srt_hf_packed"
# Tokens whose queries are in a call of SDPA. Its CPU kernel computes what a mask hides: so the last of them sees few keys that
# the first one does not.
_QUERIES = 64
# What layers pass on that changes nothing here. Anything else may be a kind of attention that is not done here.
_IDLE = {
    "cache_position",
    "dropout",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "use_cache",
}


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """What a layer calls: (1, heads, length, width) of each, key and value maybe of fewer heads -> (1, length, heads, width).

    Raises NotImplementedError for a kind of attention that is not done here.
    """
    rest = {name: value for name, value in rest.items() if value is not None and name not in _IDLE}
    asked = [name for name, value in rest.items() if (name, value) != ("is_causal", True)]
    if attention_mask is not None or asked:
        raise NotImplementedError(f"packed attention with {', '.join(asked) or 'a mask'}")
    attention, windows = _current.get()
    windows.add(sliding_window)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return attention(query, key, value, _How(scale, sliding_window, softcap)), None


# What it asks of Python and of this batch cannot be compiled into a layer's code.
AttentionInterface.register(PACKED, torch.compiler.disable(attend))


class _How(NamedTuple):
    """What a layer sets: the factor before the softmax, how many keys a query sees at most, and the bound of its scores."""

    scale: float
    window: int | None
    softcap: float | None


# Attention over the batch that is being run, and the windows that its layers tell.
_current: ContextVar[tuple[Loop | Kernel, set[int | None]]] = ContextVar("packed batch")


@contextmanager
def over(segments: Sequence[Segment], device: torch.device, windows: set[int | None]) -> Iterator[None]:
    """While entered, `attend` means these segments and notes the layers' windows. Without any, the batch is not packed and
    nothing happens."""
    if not segments:
        yield
        return
    attention = (Kernel if device.type == "cuda" else Loop)(segments, device)
    token = _current.set((attention, windows))
    try:
        yield
    finally:
        _current.reset(token)


def tensor_on(device: torch.device, values: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of Python numbers. A GPU is not waited for, as `torch.tensor(device=...)` would."""
    made = torch.tensor(values, dtype=dtype)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


class _Part(NamedTuple):
    """Some queries of a segment: how many, and which of the gathered keys they see."""

    own: int
    first: int
    seen: int


class Loop:
    """SDPA a segment, some queries at a time. Query heads that share a key head are more queries of it, since larger products
    are faster. One mask serves all parts and layers of a window: what a query sees goes by the distance alone."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self._keys = tensor_on(device, _keys(segments))
        self._parts: list[_Part] = []
        first = 0
        for start, stop, context in segments:
            for at in range(start, stop, _QUERIES):
                end = min(at + _QUERIES, stop)
                self._parts.append(_Part(end - at, first, len(context) + end - start))
            first += len(context) + stop - start
        self._most = (max(part.own for part in self._parts), max(part.seen for part in self._parts))
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, how: _How) -> Tensor:
        key_heads = key.shape[1]
        query = query.unflatten(1, (key_heads, -1)).transpose(2, 3)  # (1, key heads, length, heads a key head, width)
        key, value = (x.index_select(2, self._keys) for x in (key, value))
        heads = query.shape[3]
        queries = query.flatten(2, 3).split([part.own * heads for part in self._parts], 2)
        mask = self._mask(heads, how.window, query)
        found = []
        for part, some in zip(self._parts, queries, strict=True):
            k, v = (x.narrow(2, part.first, part.seen) for x in (key, value))
            found.append(_attention(some, k, v, mask[-part.own * heads :, -part.seen :], how))
        return torch.cat(found, 2).unflatten(2, (-1, heads)).transpose(1, 2).flatten(2, 3)

    def _mask(self, heads: int, window: int | None, like: Tensor) -> Tensor:
        if (heads, window) not in self._masks:
            self._masks[heads, window] = _mask(*self._most, window, like).repeat_interleave(heads, 0)
        return self._masks[heads, window]


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, how: _How) -> Tensor:
    if how.softcap is None:
        return F.scaled_dot_product_attention(query, key, value, mask, scale=how.scale)
    scores = query @ key.transpose(2, 3) * how.scale
    scores = how.softcap * torch.tanh(scores / how.softcap) + mask
    return scores.float().softmax(-1).to(value.dtype) @ value


def _mask(own: int, seen: int, window: int | None, like: Tensor) -> Tensor:
    """(own, seen): 0 where a query sees a key, else -inf. The last query sees the last key and `window` keys in all."""
    distance = torch.arange(seen - own, seen, device=like.device)[:, None] - torch.arange(seen, device=like.device)
    hidden = (distance < 0) | (distance >= (window or seen))
    return like.new_zeros(own, seen).masked_fill(hidden, float("-inf"))


class Kernel:
    """One call of a variable-length kernel for all segments."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        owns = [stop - start for start, stop, _ in segments]
        seen = [own + len(context) for own, (_, _, context) in zip(owns, segments, strict=True)]
        self._keys = tensor_on(device, _keys(segments))
        own_ends, seen_ends = (tensor_on(device, [0, *accumulate(n)], torch.int32) for n in (owns, seen))
        self._ends = (own_ends, seen_ends)
        self._most = (max(owns), max(seen))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, how: _How) -> Tensor:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (length, heads, width)
        k, v = k[self._keys], v[self._keys]
        window = (how.window - 1 if how.window is not None else -1, 0)
        flash = flash_attention()
        settings: dict[str, Any]
        if flash is not None:
            settings = {"softmax_scale": how.scale, "causal": True, "window_size": window}
            settings |= {} if how.softcap is None else {"softcap": how.softcap}
            return flash(q, k, v, *self._ends, *self._most, **settings)[None]
        if how.softcap is not None:
            raise NotImplementedError("torch's variable-length attention has no soft-capping; flash-attn has")
        from torch.nn.attention.varlen import varlen_attn  # not in every torch that this project supports

        settings = {"scale": how.scale, "window_size": window, "enable_gqa": q.shape[1] != k.shape[1]}
        return cast(Tensor, varlen_attn(q, k, v, *self._ends, *self._most, **settings))[None]


def _keys(segments: Sequence[Segment]) -> list[int]:
    """Where in the batch the keys lie that the segments see, one segment's after the other's."""
    return list(chain.from_iterable((*context, *range(start, stop)) for start, stop, context in segments))


@cache
def flash_attention() -> Callable[..., Tensor] | None:
    """flash-attn's variable-length function, from its package or from the Hub's build where `kernels` is installed; else None."""
    try:
        functions, *_ = lazy_import_flash_attention("flash_attention_2")
        return functions[1]
    except Exception:  # neither is installed, or what is does not fit this torch: each fails in a way of its own
        return None
