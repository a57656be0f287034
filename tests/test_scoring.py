"""A proxy decides what is clear and the student the rest; a run in 16 bits tells how far it is from float32."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from test_pipeline import ROWS, decisions
from tgi_server import LocalTGI
from tiny_models import make_llama

from srt_hf import Recycled, Selector, Student, Teacher, recycle
from srt_hf.errors import ConfigError

MODES = ("selective", "exhaustive")
pytestmark = pytest.mark.filterwarnings("ignore:.*originals have ifd > 1:UserWarning")  # random students know no template


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: str(make_llama(tmp_path_factory.mktemp("models") / name, seed)) for name, seed in (("big", 0), ("small", 1))}


@pytest.fixture(scope="module")
def run(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """recycle(ROWS) by mode, student and further arguments; the replies are always the same."""
    journal = tmp_path_factory.mktemp("journal") / "journal.sqlite"

    def recycled(mode: str, student: str, dtype: str = "float32", **more: Any) -> Recycled:
        with LocalTGI() as tgi:
            chosen = Student(folders[student], template="vicuna", dtype=dtype)
            return recycle(ROWS, teacher=Teacher(tgi.url, journal=journal), student=chosen, mode=mode, **more)

    return recycled


def scores(result: Recycled) -> list[Any]:
    return [row["scores"] for row in result.rows]


@pytest.mark.parametrize("mode", MODES)
def test_a_margin_that_nothing_passes_leaves_all_to_the_student(run: Any, folders: dict[str, str], mode: str) -> None:
    alone, cascade = run(mode, "big"), run(mode, "big", proxy=folders["small"], margin=math.inf)
    # But for rows whose response reflection followed the proxy's choice of instruction.
    theirs = [n for n, by in enumerate(cascade.rows["scored_by"]) if by["student"] == "big"]
    assert len(theirs) == (len(ROWS) if mode == "exhaustive" else len(theirs)) and theirs
    for n in theirs:
        for one, other in zip(scores(alone)[n], scores(cascade)[n], strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    assert [decisions(alone)[n] for n in theirs] == [decisions(cascade)[n] for n in theirs]
    assert cascade.report.proxy["rows"] == len(ROWS) - len(theirs)


@pytest.mark.parametrize("mode", MODES)
def test_a_margin_of_nothing_leaves_all_to_the_proxy(run: Any, folders: dict[str, str], mode: str) -> None:
    alone, cascade = run(mode, "small"), run(mode, "big", proxy=folders["small"], margin=0.0)
    assert decisions(cascade) == decisions(alone) and scores(cascade) == scores(alone)
    proxy = cascade.report.proxy
    assert proxy["student"] == "small" and proxy["rows"] == proxy["sample"] == len(ROWS)
    assert cascade.report.student["student"] == "big" and cascade.report.student["passes"] == 0
    assert 0.9 * alone.report.student["passes"] < proxy["passes_saved"] <= alone.report.student["passes"]
    # The sample is every row here, so it tells exactly what the student would have chosen otherwise.
    if mode == "exhaustive":
        kept, others = ([(row["choice"], row["kept"]) for row in result.rows] for result in (run(mode, "big"), cascade))
        assert proxy["decisions_changed"] == sum(a != b for a, b in zip(kept, others, strict=True)) > 0
    assert f"{len(ROWS)} rows, {proxy['passes_saved']} student passes saved" in cascade.report.table()


@pytest.mark.parametrize("mode", MODES)
def test_between_them_each_row_belongs_to_one(run: Any, folders: dict[str, str], mode: str, tmp_path: Path) -> None:
    """Every number of a row is its scorer's, and every decision follows from the row's own numbers."""
    cascade = run(mode, "big", proxy=folders["small"], margin=0.02)
    by = {name: run(mode, name) for name in folders}
    owners = [row["scored_by"]["student"] for row in cascade.rows]
    assert set(owners) == {"big", "small"} and cascade.report.proxy["rows"] == owners.count("small")
    for n, (row, owner) in enumerate(zip(cascade.rows, owners, strict=True)):
        for one, other, candidate in zip(row["scores"], by[owner].rows[n]["scores"], row["candidates"], strict=True):
            if candidate in by[owner].rows[n]["candidates"]:
                both = {name for name in one if one[name] is not None and other[name] is not None}
                assert {name: one[name] for name in both} == pytest.approx({name: other[name] for name in both}, abs=1e-5)
        assert Selector()(row)["choice"] == row["choice"]
        assert row["reason"] != "teacher_failed"
    assert 0 < cascade.report.proxy["passes_saved"] < by["big"].report.student["passes"]
    cascade.save_to_disk(tmp_path / "out")
    assert f"scored and decided {owners.count('small')} rows" in (tmp_path / "out" / "README.md").read_text()


def test_a_proxy_takes_the_students_configuration(folders: dict[str, str]) -> None:
    student = Student(folders["big"], template="alpaca", max_length=99, revision="v1")
    proxy = student.like(folders["small"])
    assert (proxy.model, proxy.template, proxy.max_length, proxy.revision) == (folders["small"], "alpaca", 99, None)


@pytest.mark.parametrize("margin", [-0.1, math.nan])
def test_a_margin_is_a_distance(folders: dict[str, str], margin: float) -> None:
    rows = Dataset.from_list([{"instruction": "a", "output": "b"}])
    with pytest.raises(ConfigError, match="not a distance"):
        recycle(rows, teacher="http://127.0.0.1:9", student=folders["big"], proxy=folders["small"], margin=margin)


def test_a_run_in_16_bits_tells_how_far_it_is_from_float32(run: Any) -> None:
    exact = run("exhaustive", "big")
    assert exact.report.rounding == {} and "against float32" not in exact.report.table()
    rounded = run("exhaustive", "big", dtype="bfloat16")
    found = rounded.report.rounding
    assert found["pairs"] == len(ROWS) and found["dtype"] == "bfloat16" and found["not_measured"] is None
    both = [
        (row["scores"][row["choice"]]["nll_y"], other["scores"][row["choice"]]["nll_y"])
        for row, other in zip(rounded.rows, exact.rows, strict=True)
    ]
    largest = max(abs(one - other) for one, other in both)
    assert 0 < largest <= found["nll"] + 1e-5 and found["nll"] < 0.1 and 0 < found["ifd"] < 0.1
    assert "losses differ by at most" in rounded.report.table()


@pytest.mark.parametrize(
    ("replaced", "with_", "why"),
    [
        ("srt_hf.student.scorer.free_memory", lambda device: 1000.0, "GiB in float32 do not fit into 0.0"),
        ("srt_hf.student.Student.in_float32", lambda self: "its weights are quantised", "its weights are quantised"),
        ("srt_hf.scoring._ROUNDED_SAMPLE", 0, "the student decided no row"),
    ],
)
def test_a_distance_that_cannot_be_measured_says_why(
    run: Any, monkeypatch: pytest.MonkeyPatch, replaced: str, with_: Any, why: str
) -> None:
    monkeypatch.setattr(replaced, with_)
    report = run("exhaustive", "big", dtype="bfloat16").report
    assert report.rounding["nll"] is None and "not measured: " in report.table() and why in report.table()


def test_a_student_that_cannot_be_loaded_again_costs_nothing_and_names_no_folder(
    run: Any, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(self: Student) -> Student:
        return Student(folders["big"] + "/nothing")

    monkeypatch.setattr(Student, "in_float32", broken)
    result = run("exhaustive", "big", dtype="bfloat16", selector=Selector(keep="all"))
    result.save_to_disk(tmp_path / "out")
    for path in (tmp_path / "out" / "README.md", *(tmp_path / "out").glob("reports/*/report.*")):
        text = path.read_text()
        assert "it could not be run in float32" in text and folders["big"] not in text


def test_the_card_tells_the_distance(run: Any, tmp_path: Path) -> None:
    run("exhaustive", "big", dtype="bfloat16", selector=Selector(keep="all")).save_to_disk(tmp_path / "out")
    assert "| its scores against float32's | `on " in (tmp_path / "out" / "README.md").read_text()
