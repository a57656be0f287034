"""Batches: what is packed is every pass, whole and in its place; attention over them is the plain one's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from srt_hf.student import attention
from srt_hf.student.attention import Kernel, attend, over
from srt_hf.student.batches import Batch, pack, packing_order, pad, padding_order
from srt_hf.student.plan import Pass

# Few different tokens after one of few beginnings, so that much is shared, up to whole passes within others.
_BEGINNINGS = [(7,) * 20, (7,) * 20 + (8,) * 20, (9,) * 17, (1,)]
_PASSES = st.lists(
    st.tuples(st.sampled_from(_BEGINNINGS), st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 60)).map(
        lambda parts: Pass((*parts[0], *parts[1]), min(parts[2], len(parts[0]) + len(parts[1]) - 1))
    ),
    min_size=1,
    max_size=12,
    unique=True,
)


def cut(passes: list[Pass], packed: bool, budget: int) -> list[Batch]:
    rest, batches = (packing_order if packed else padding_order)(passes), []
    while rest:
        batches.append((pack if packed else pad)(passes, rest, budget))
        rest = rest[len(batches[-1].members) :]
    return batches


@given(passes=_PASSES, budget=st.integers(1, 200), packed=st.booleans())
def test_every_pass_is_run_once_with_its_targets(passes: list[Pass], budget: int, packed: bool) -> None:
    batches = cut(passes, packed, budget)
    assert sorted(i for batch in batches for i in batch.members) == list(range(len(passes)))
    for batch in batches:
        assert batch.size <= budget or len(batch.members) == 1
        flat = [token for sequence in batch.inputs for token in sequence]
        before = _seen_by_each(batch) if packed else _seen_in_order(batch)
        for i, own in zip(batch.members, batch.losses, strict=True):
            ids, start = passes[i]
            assert [batch.targets[loss] for loss in own] == list(ids[start:])
            for at, loss in enumerate(own, start=start):
                assert [flat[n] for n in before[batch.rows[loss]]] == list(ids[:at])
                assert not packed or batch.positions[batch.rows[loss]] == at - 1
        assert len(set(zip(batch.rows, batch.targets, strict=True))) == len(batch.rows)


def _seen_by_each(batch: Batch) -> dict[int, list[int]]:
    """Position of a packed batch -> the positions that it sees, itself last."""
    seen = {}
    for start, stop, context in batch.segments:
        for n in range(start, stop):
            seen[n] = [*context, *range(start, n + 1)]
    return seen


def _seen_in_order(batch: Batch) -> dict[int, list[int]]:
    width = len(batch.inputs[0])
    return {n: list(range(n - n % width, n + 1)) for n in range(batch.size)}


def test_a_common_beginning_is_run_once() -> None:
    beginning = tuple(range(100, 130))
    passes = [Pass((*beginning, *own), 31) for own in ((1, 2, 3), (1, 2, 4, 5), (6, 7))]
    [batch] = cut(passes, True, 1000)
    # The second shares (1, 2) too; the last token of a pass is no input.
    assert batch.inputs == [[*beginning, 1, 2, 4, 6]]
    assert [(start, stop, len(context)) for start, stop, context in batch.segments] == [(0, 32, 0), (32, 33, 32), (33, 34, 30)]
    short = [Pass((1, 2, 3, own, 0), 1) for own in (4, 5)]
    [batch] = cut(short, True, 1000)
    assert batch.inputs == [[1, 2, 3, 4, 1, 2, 3, 5]]  # too short to be worth it


def plain(query: Any, key: Any, value: Any, batch: Batch, window: int | None, softcap: float | None) -> Any:
    """Attention by its definition, one query at a time."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1)[0] for x in (key, value))  # (heads, length, width)
    rows = []
    for n, seen in sorted(_seen_by_each(batch).items()):
        seen = seen[-window:] if window else seen
        scores = torch.einsum("hw,hkw->hk", query[0, :, n], key[:, seen]) * 0.3
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        rows.append(torch.einsum("hk,hkw->hw", scores.softmax(-1), value[:, seen]))
    return torch.stack(rows)[None]


def varlen(q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, most_q: int, most_k: int, **how: Any) -> Any:
    """What flash-attn's function of this signature does, on a CPU: causal from the lower right."""
    assert how["causal"] and (most_q, most_k) == (max(ends_q.diff()), max(ends_k.diff())) and how.get("softcap") is None
    left = how["window_size"][0]
    outputs = []
    for n in range(len(ends_q) - 1):
        own, keys, values = q[ends_q[n] : ends_q[n + 1]], *(x[ends_k[n] : ends_k[n + 1]] for x in (k, v))
        at = torch.arange(len(keys) - len(own), len(keys))[:, None] - torch.arange(len(keys))
        mask = (at >= 0) & (at <= left if left >= 0 else True)
        one = F.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in (own, keys, values)), mask, scale=how["softmax_scale"], enable_gqa=True
        )
        outputs.append(one[0].transpose(0, 1))
    return torch.cat(outputs)


def torch_varlen(q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, most_q: int, most_k: int, **how: Any) -> Any:
    """torch's own function, in the same terms: (left, 0) is causal from the lower right."""
    assert how["window_size"][1] == 0 and how["enable_gqa"]
    return varlen(
        q, k, v, ends_q, ends_k, most_q, most_k, causal=True, softmax_scale=how["scale"], window_size=how["window_size"]
    )


@pytest.mark.parametrize("window", [None, 5, 40, 1000])
@pytest.mark.parametrize("way", ["loop", "loop-softcap", "flash-attn", "torch"])
def test_packed_attention_is_the_plain_one(way: str, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = [Pass((*_BEGINNINGS[n % 4], *range(10 + 3 * n)), 1) for n in range(9)]
    [batch] = cut(passes, True, 10_000)
    assert sum(bool(context) for _, _, context in batch.segments) >= 4
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, batch.size, 8, generator=generator) for heads in (4, 2, 2))
    softcap = 2.0 if way == "loop-softcap" else None
    monkeypatch.setattr(attention, "flash_attention", lambda: varlen if way == "flash-attn" else None)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", torch_varlen)
    if way in ("flash-attn", "torch"):
        monkeypatch.setattr(attention, "Loop", Kernel)
    windows: set[int | None] = set()
    with over(batch.segments, torch.device("cpu"), windows):
        found, _ = attend(None, query, key, value, None, scaling=0.3, sliding_window=window, softcap=softcap)
    torch.testing.assert_close(found, plain(query, key, value, batch, window, softcap), atol=1e-5, rtol=1e-5)
    assert windows == {window}


def test_attention_of_another_kind_is_refused() -> None:
    one = torch.zeros(1, 1, 1, 4)
    with pytest.raises(NotImplementedError, match="a mask"):
        attend(None, one, one, one, torch.zeros(1))
    for kind in ("s_aux", "position_bias", "block_indices"):
        with pytest.raises(NotImplementedError, match=kind):
            attend(None, one, one, one, None, **{kind: torch.zeros(1)})
    with pytest.raises(NotImplementedError, match="is_causal"):
        attend(None, one, one, one, None, is_causal=False)


def test_contexts_are_not_copied_without_bound() -> None:
    passes = [Pass((*range(100, 250), n, n + 1), 150) for n in range(200)]
    [*batches] = cut(passes, True, 400)
    assert sum(len(batch.members) for batch in batches) == 200
    seen = [sum(stop - start + len(context) for start, stop, context in batch.segments) for batch in batches]
    assert len(batches) > 1 and max(seen) <= 4 * 400
