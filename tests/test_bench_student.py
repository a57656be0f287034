"""scripts/bench_student.py as a user types it, on a tiny student; the yardsticks it uses, by hand-made numbers."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from tiny_models import make, make_gpt2
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from srt_hf.errors import ConfigError, DataError
from srt_hf.student import Student
from srt_hf.student.plan import make_plan
from srt_hf.student.text import Texts
from srt_hf.student.yardsticks import OtherWays, Recorder, by_key, spearman, stand_in

ROWS = [
    {
        "instruction": f"Write about number {n}.",
        "input": "in words" * (n % 2),
        "output": f"The number {n} is far away. " * (n + 1),
    }
    for n in range(4)
]
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
WAYS = ["published", "padded", "float32", "float32-selective", "bfloat16", "bfloat16-selective"]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "bench_student.py"))


def test_every_way_is_measured_in_one_run(tmp_path: Path) -> None:
    """Four rows without candidates; the student is its own proxy."""
    student_folder = str(make("llama", tmp_path / "student", max_position_embeddings=1024))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "bench_student.py")),
            *("--student", student_folder, "--data", str(tmp_path / "rows.json"), "--json", str(tmp_path / "out.json")),
            *("--baseline_limit", "2", "--repetitions", "2", "--dtype", "bfloat16", "--proxy", student_folder),
        ],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    ways = report["ways"]
    assert list(ways) == [*WAYS, "proxy", "proxy-selective"] and all(name in done.stdout for name in ways)
    assert (report["rows"], report["baseline_rows"]) == (4, 2) and report["torch"] == torch.__version__
    for name, way in ways.items():
        assert len(way["seconds"]) == 2 and way["rows_per_second"] > 0 and way["rows_ratio"] > 0 and way["tokens_ratio"] > 0
        assert 0 <= way["padding_share"] < 1 and way["memory_mib"] >= 0, name
        exact = "bfloat16" not in name
        assert way["largest_nll_difference"] < (1e-4 if exact else 1.0), name
    assert ways["published"]["rows_ratio"] == 1 and ways["published"]["duplicate_share"] == 0
    assert ways["published"]["passes"] == 2 * 16 and ways["float32"]["passes_asked"] == 4 * 16
    assert ways["float32"]["duplicate_share"] > 0 and ways["float32"]["matmul_share"] > 0
    assert ways["float32-selective"]["passes"] < ways["float32"]["passes"]
    assert ways["bfloat16"]["largest_nll_difference"] > 1e-6  # it really was another dtype
    assert report["stand_in"]["same_choice"] == 1
    assert all(report["stand_in"][f"spearman_{name}"] == pytest.approx(1) for name in ("ifd", "r_ifd"))


@pytest.mark.parametrize("as_list", [True, False])
def test_the_files_own_candidates_are_used(script: dict[str, Any], tmp_path: Path, as_list: bool) -> None:
    """As a list (a published candidates table) or by origin; a row that lacks one is left out, and none left is an error."""
    row = {name: {**ROWS[n], "error": None} for n, name in enumerate(("original", "instruction", "response", "both"))}
    lacking = {**row, "both": {**row["both"], "error": "refused"}}
    lines = [[{**c, "origin": name} for name, c in r.items()] if as_list else r for r in (lacking, row)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"candidates": line}) for line in lines))
    [found] = script["load_rows"](str(data), 5)
    assert [c["origin"] for c in found] == list(row) and [c["output"] for c in found] == [r["output"] for r in ROWS]
    with pytest.raises(DataError, match="no row with all four candidates"):
        script["load_rows"](str(data), 1)


def test_shapes_are_written_out(script: dict[str, Any], student_folder: str, tmp_path: Path) -> None:
    """The models' own sizes, by their known number of parameters; the tokenizer is the student's."""
    with torch.device("meta"):
        sizes = {name: LlamaForCausalLM(LlamaConfig(**shape)).num_parameters() for name, shape in script["SHAPES"].items()}
    assert sizes == {"smollm2-135m": 134_515_008, "llama-2-7b": 6_738_415_616}
    script["SHAPES"]["tiny"] = {**TINY, "vocab_size": 700}
    folder = script["shape_without_weights"]("tiny", student_folder, str(tmp_path))
    assert Student(folder).nlls([("a", "", "b")])[0]["missing"] is None
    with pytest.raises(ConfigError, match="smollm2-135m"):
        script["shape_without_weights"]("gpt-5", student_folder, str(tmp_path))


def test_other_ways_run_the_plans_passes(tmp_path: Path) -> None:
    """Tokenised one by one on a tokenizer without BOS, in a window too small for some targets: the passes of the plan, and equal
    losses both ways; the recorder sees each of their products."""
    folder = str(make_gpt2(tmp_path))
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = Texts(AutoTokenizer.from_pretrained(folder), "vicuna")
    rows: list[dict[str, Any]] = [{**row, "row": n, "origin": "original"} for n, row in enumerate(ROWS)]
    others = OtherWays(network, texts, max_length=90)
    names = ("nll_y", "nll_y_given_x", "nll_x", "nll_x_given_y")
    plan = make_plan([(r["instruction"], r["input"], r["output"]) for r in rows], [names] * len(rows), texts, 90)
    planned = [{name: plan.passes[at] for name, at in wanted.items() if isinstance(at, int)} for wanted in plan.wanted]
    assert others.passes(rows) == by_key(rows, planned)
    with Recorder(network) as recorder:
        padded = others.padded(rows)
    assert padded == pytest.approx(others.published(rows), abs=1e-5) and padded
    layers, batches = len(network.transformer.h), math.ceil(len(padded) / 8)
    assert recorder.products.total() == batches * (4 * layers + 1)
    assert recorder.positions >= sum(len(one.ids) - 1 for one in others.passes(rows).values())


def test_spearman_and_stand_in() -> None:
    assert spearman([1.0, 2.0, 2.0, 3.0], [5.0, 7.0, 7.0, 9.0]) == pytest.approx(1)
    assert spearman([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    assert spearman([1.0, 1.0], [1.0, 2.0]) is None and spearman([], []) is None
    rows = [[{"row": 0, "origin": origin} for origin in ("original", "instruction")]]
    large = {(0, c["origin"], name): 1.0 for c in rows[0] for name in ("nll_y", "nll_y_given_x", "nll_x", "nll_x_given_y")}
    small = {**large, (0, "instruction", "nll_y"): 2.0}
    found = stand_in(rows, small, large, lambda row: {"choice": int(row["scores"][1]["ifd"] < 1)})
    assert found == {"spearman_ifd": None, "spearman_r_ifd": None, "same_choice": 0.0}
