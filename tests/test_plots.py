"""The pictures: which there are, what they say in words, and that they are PNG of a size that a phone shows."""

from __future__ import annotations

import struct
from typing import Any

from datasets import Dataset

from srt_hf.plots import draw
from srt_hf.schema import FLAT_COLUMNS, features

REASONS = {"both_chosen": 3, "original_preferred": 2}


def tables(numbers: list[tuple[float | None, float | None, bool]]) -> tuple[Dataset, Dataset]:
    """Flat table and scores table of rows with these ifd, r_ifd and kept."""
    scores = [{"scores": [{"ifd": i, "r_ifd": r}], "choice": 0, "kept": kept} for i, r, kept in numbers]
    flat = [
        {
            "ifd": i,
            "r_ifd": r,
            "original_ifd": 0.9,
            "original_r_ifd": None if r is None else r + 0.1,
            "original_output": "a b",
            "output": "a b c",
        }
        for i, r, kept in numbers
        if kept
    ]
    kept = Dataset.from_list(flat) if flat else Dataset.from_dict({n: [] for n in FLAT_COLUMNS}, features=features(FLAT_COLUMNS))
    return kept, Dataset.from_list(scores)


def pictures(numbers: list[tuple[float | None, float | None, bool]]) -> dict[str, Any]:
    return {plot.name: plot for plot in draw(*tables(numbers), REASONS)}


def test_all_pictures_of_a_run() -> None:
    found = pictures([(0.7, 0.5, True), (0.8, 0.6, True), (1.2, 0.9, False), (50.0, None, False)])
    assert list(found) == ["scores", "lengths", "decisions", "reasons"]
    assert "IFD from 0.90 to 0.75, r-IFD from 0.65 to 0.55" in found["scores"].words
    assert "median 2 words before, 3 after" in found["lengths"].words
    assert "their choice: 3, of which 2 are kept" in found["decisions"].words
    assert "both_chosen 3, original_preferred 2" in found["reasons"].words
    for plot in found.values():
        assert plot.png.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", plot.png[16:24])
        assert 900 <= width <= 1000 and 300 <= height <= 1300


def test_nothing_kept_or_nothing_scored() -> None:
    assert list(pictures([(0.7, 0.5, False)])) == ["decisions", "reasons"]
    assert list(pictures([(None, None, False)])) == ["reasons"]
    assert list(pictures([(0.7, None, True)])) == ["lengths", "reasons"]


def test_one_value_throughout() -> None:
    assert set(pictures([(1.0, 1.0, True)] * 3)) == {"scores", "lengths", "decisions", "reasons"}
