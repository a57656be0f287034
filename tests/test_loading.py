"""Which device, dtype, memory and attention a student gets, as far as a machine without a GPU can tell."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make
from transformers import AutoModelForCausalLM

from srt_hf import Student
from srt_hf.student import engine, head, loading, probe


@pytest.mark.parametrize(("seconds", "found"), [((2.0, 1.0), "bfloat16"), ((1.0, 1.0), "float32"), ((1.0, 2.0), "float32")])
def test_the_fastest_dtype_is_bfloat16_only_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], found: str
) -> None:
    took = dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))
    probe.fastest_dtype.cache_clear()
    monkeypatch.setattr(probe, "product_seconds", lambda *shape, device: took[shape[-1]])
    try:
        assert loading.resolve_dtype("fastest", "cpu") == found
    finally:
        probe.fastest_dtype.cache_clear()


def test_a_student_in_the_fastest_dtype_names_it(tmp_path: Path) -> None:
    student = Student(str(make("llama", tmp_path)), dtype="fastest")
    assert student.scored_by()["dtype"] == loading.resolve_dtype("fastest", "cpu") == student.__getstate__()["dtype"]


def test_each_rank_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.pick_device(None, None) == ("cuda:0" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [loading.pick_device(None, rank) for rank in (None, 0, 3, 5)] == ["cuda:0", "cuda:0", "cuda:3", "cuda:1"]
    assert loading.pick_device("cpu", 3) == "cpu"


@pytest.mark.parametrize(("native", "found"), [(True, "bfloat16"), (False, "float16")])
def test_auto_on_a_gpu_is_what_it_can(monkeypatch: pytest.MonkeyPatch, native: bool, found: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert loading.resolve_dtype("auto", "cuda:1") == found and loading.resolve_dtype("auto", "cpu") == "float32"


class OnCuda:
    """What the engine asks of a model before it runs it."""

    device = torch.device("cuda:0")

    def __init__(self, dtype: torch.dtype = torch.bfloat16, vocabulary: int = 32_000) -> None:
        self.dtype = dtype
        text = types.SimpleNamespace(vocab_size=vocabulary, layer_types=None)
        self.config = types.SimpleNamespace(get_text_config=lambda: text)

    _supports_attention_backend = _supports_flash_attn = True


@pytest.mark.parametrize(("free", "tokens"), [(100 << 30, 16_384), (1 << 30, (1 << 28) // (4 * 32_000)), (0, 1)])
def test_a_gpus_token_budget_follows_its_free_memory(monkeypatch: pytest.MonkeyPatch, free: int, tokens: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 100 << 30))
    assert engine._default_budget(OnCuda()) == tokens


def test_a_gpu_packs_16_bits_only() -> None:
    assert engine._may_pack(OnCuda(torch.bfloat16)) and not engine._may_pack(OnCuda(torch.float32))


@pytest.mark.parametrize("bias", [True, False])
def test_a_gpus_head_multiplies_16_bits_into_float32(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    linear = torch.nn.Linear(8, 5, bias=bias).to(torch.bfloat16)
    wrapped = head.TargetHead(linear)
    wrapped.mixed, wrapped.head, wrapped.rows = True, linear, torch.tensor([0, 3])
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype))  # only CUDA has it
    hidden = torch.randn(1, 4, 8)
    found = wrapped(hidden)
    expected = hidden[0, [0, 3]].bfloat16().float() @ linear.weight.float().T + (linear.bias.float() if bias else 0)
    assert found.dtype == torch.float32 and torch.allclose(found[0], expected, atol=1e-6)


def test_soft_capping_of_the_scores_is_in_the_losses(tmp_path: Path) -> None:
    """Where it bites; before transformers 5 the default attention of Gemma 2 leaves it out."""
    more: dict[str, Any] = {"attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 8, "initializer_range": 0.6}
    folder = str(make("gemma2", tmp_path, **more))
    student = Student(folder, template="vicuna")
    [losses] = student.nlls([("Name a fruit.", "", "An apple is a fruit, and so is a pear.")], which=["nll_y"])
    ids = torch.tensor(
        [[0, *student.load().texts.tokenizer.encode("An apple is a fruit, and so is a pear.", add_special_tokens=False)]]
    )
    ids[0, 0] = student.load().texts.start
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = exact(ids, use_cache=False).logits[0, :-1]
    assert losses["nll_y"] == pytest.approx(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item(), abs=1e-4)
