"""A run in parts and the parts made into one result, through the commands: row by row what one run makes."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT
from datasets import Dataset
from hub_server import UPLOAD_WARNING, LocalHub
from test_scripts import complaint, report_text
from tgi_server import LocalTGI, reflect

from srt_hf.errors import ConfigError, DataError
from srt_hf.journal import Journal
from srt_hf.rows import with_ids
from srt_hf.shards import merge, take
from srt_hf.sources import load_rows

Here = Callable[..., tuple[int, str, str]]
# Every text but the last stands in two shards of three, so that occurrences and doubles are counted over the whole.
ROWS = [
    {"instruction": f"Write about number {n % 6}.", "input": "", "output": f"The number {n % 6} is far away."} for n in range(12)
]
ROWS += [{"instruction": "Name a fruit.", "input": "A red one.", "output": "An apple."}]
# What differs between runs by nature: times, and what equal texts of several shards cost twice.
PASSING = ("seconds", "teacher", "student", "shard", "provenance", "made", "plots")


class Runs(NamedTuple):
    """The output folders of a whole run and of the same run's shards; what makes such runs."""

    whole: Path
    shards: list[Path]
    arguments: Callable[..., list[str]]


def call(name: str, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", [f"scripts/{name}", *arguments])
        patch.setattr("warnings.showwarning", None)
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    assert stop.value.code == 0, arguments


both_modes = pytest.mark.parametrize("runs", ["selective", "exhaustive"], indirect=True)
one_mode = pytest.mark.parametrize("runs", ["selective"], indirect=True)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, student_folder: str) -> Any:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def answer(body: dict[str, Any]) -> tuple[str, str]:  # a row that fails has its place too
        return ("no tags at all", "stop") if "fruit" in str(body) else reflect(body)

    with LocalTGI(answer) as tgi:

        def arguments(name: str, *more: object) -> list[str]:
            return [
                *("--dataset", str(folder / "rows.jsonl"), "--teacher", tgi.url, "--student", student_folder, "--keep", "all"),
                *("--template", "vicuna", "--mode", request.param, "--price_in", "1", "--price_out", "2"),
                *("--journal", str(folder / f"{name}.sqlite"), "--output_dir", str(folder / name), *map(str, more)),
            ]

        call("recycle_and_push.py", *arguments("whole"))
        for n in range(3):
            call("recycle_and_push.py", *arguments(f"shard-{n}", "--num_shards", 3, "--shard_index", n))
        yield Runs(folder / "whole", [folder / f"shard-{n}" for n in range(3)], arguments)


def tables(folder: Path) -> dict[str, list[dict[str, Any]]]:
    names = sorted({path.parent.name for path in folder.glob("*/*.parquet")})
    return {name: load_rows(str(folder), name=name).to_list() for name in names}


def unlike(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two values of the same form differ, numbers by more than 1e-5."""
    if isinstance(one, dict) and one.keys() == getattr(other, "keys", set)():
        for name in one:
            yield from unlike(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for n, both in enumerate(zip(one, other, strict=True)):
            yield from unlike(*both, f"{where}[{n}]")
    elif one != (pytest.approx(other, rel=1e-5) if isinstance(one, float) else other):
        yield f"{where}: {one!r} is not {other!r}"


def merge_arguments(runs: Runs, folder: Path, *more: object) -> list[str]:
    shards = reversed(runs.shards)  # in any order
    return [
        "--shards",
        *map(str, shards),
        "--output_dir",
        str(folder / "merged"),
        "--journal",
        str(folder / "j"),
        *map(str, more),
    ]


@both_modes
def test_shards_merged_are_the_whole_run_row_by_row(run_script: Here, runs: Runs, tmp_path: Path) -> None:
    code, out, err = run_script("merge.py", *merge_arguments(runs, tmp_path))
    assert code == 0 and "No --repo was given" in out, err
    whole, merged = tables(runs.whole), tables(tmp_path / "merged")
    assert len(merged) == 3
    # Scores too, to the float noise of another batch: what runs together differs with the shard.
    assert list(unlike(merged, whole)) == []
    ids = [row["id"] for row in merged["candidates"]]
    assert len(set(ids)) == 13 and sum(id.endswith("-1") for id in ids) == 6
    assert sum("duplicate" in row["flags"] for row in merged["student0"]) == 6
    one, other = (json.loads(report_text(folder)) for folder in (runs.whole, tmp_path / "merged"))
    assert list(unlike(*({name: run[name] for name in run if name not in PASSING} for run in (one, other)))) == []
    assert one["student"].keys() == other["student"].keys() and other["shard"] == {} and other["cost"] > 0
    assert other["teacher"]["requests"] >= one["teacher"]["requests"] and other["seconds"].keys() == one["seconds"].keys()
    commands = other["provenance"]["command"].splitlines()
    assert "--num_shards 3 --shard_index 0" in commands[0] and commands[1].startswith("python scripts/merge.py --shards")
    files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (runs.whole, tmp_path / "merged")]
    assert files[0] == files[1]  # the card, the page and the pictures too


@one_mode
@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_the_whole_is_pushed_with_all_replies(run_script: Here, runs: Runs, tmp_path: Path, hub: LocalHub) -> None:
    journals = [runs.whole.parent / f"shard-{n}.sqlite" for n in range(3)]
    more = ("--journals", *journals, "--replies", "--repo", "tester/merged", "--private")
    code, out, err = run_script("merge.py", *merge_arguments(runs, tmp_path, *more))
    assert code == 0 and f"Pushed: {hub.url}/datasets/tester/merged" in out, err
    assert out.count("are new to") == 3 and hub.repos["dataset", "tester/merged"].private
    replies = (tmp_path / "merged" / "replies.jsonl").read_text().splitlines()
    whole = list(Journal(runs.whole.parent / "whole.sqlite").entries())
    assert len(replies) == len(whole) > 26
    # A run over all rows with this journal buys nothing.
    again = runs.arguments("again")
    again[again.index("--journal") + 1] = str(tmp_path / "j")
    code, out, _ = run_script("recycle_and_push.py", *again, "--output_dir", tmp_path / "again")
    assert code == 0 and re.search(r"this process +0 requests", out), out
    assert tables(tmp_path / "again") == tables(runs.whole)


@one_mode
def test_shards_of_another_student_need_no_teacher(run_script: Here, runs: Runs, tmp_path: Path, student_folder: str) -> None:
    """Candidates that exist are shared out by the same options."""
    options = ["--candidates", str(runs.whole), "--scores", str(runs.whole), "--student", student_folder, "--keep", "under_one"]
    for name, more in (("all", []), *((str(n), ["--num_shards", "2", "--shard_index", str(n)]) for n in range(2))):
        code, _, err = run_script("recycle_and_push.py", *options, "--output_dir", tmp_path / name, *more)
        assert code in (0, 3), err
    assert merge([tmp_path / "0", tmp_path / "1"]).scores.to_list() == tables(tmp_path / "all")["student0-scores"]


@one_mode
def test_a_shard_is_not_pushed_and_says_what_it_is(run_script: Here, runs: Runs, tmp_path: Path) -> None:
    arguments = runs.arguments("x", "--output_dir", tmp_path / "out", "--num_shards", "3", "--shard_index", "2")
    assert "Give --repo to scripts/merge.py" in complaint(run_script("recycle_and_push.py", *arguments, "--repo", "tester/x"), 2)
    shard = json.loads(report_text(runs.shards[2]))["shard"]
    assert (shard["index"], shard["of"], shard["rows"], shard["left_out"]) == (2, 3, 13, 0)
    assert shard["settings"]["temperature"] == 0.0 and len(shard["settings"]["prompts"]) == 16
    code, out, _ = run_script("recycle_and_push.py", *arguments, "--rule", "paper", "--keep", "reflected")
    assert code == 0 and "It is shard 2 of 3, counted from 0" in out  # whether it kept a row or not


@one_mode
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--num_shards", "3"), "--num_shards and --shard_index belong together"),
        (("--shard_index", "0"), "--num_shards and --shard_index belong together"),
        (("--num_shards", "0", "--shard_index", "0"), "--num_shards is 0"),
        (("--num_shards", "3", "--shard_index", "3"), "--shard_index is 3. Of 3 shards it is 0 to 2."),
        (("--num_shards", "3", "--shard_index", "-1"), "--shard_index is -1. Of 3 shards it is 0 to 2."),
        (("--num_shards", "14", "--shard_index", "0"), "13 rows are no 14 shards"),
    ],
)
def test_wrong_numbers(run_script: Here, runs: Runs, tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    arguments = runs.arguments("x", "--output_dir", tmp_path / "out")
    assert expected in complaint(run_script("recycle_and_push.py", *arguments, *options), 2)


def changed(folder: Path, target: Path, **fields: Any) -> Path:
    """A copy of a shard's folder whose report says something else; `a__b` is field b of field a."""
    shutil.copytree(folder, target)
    [path] = target.glob("reports/*/report.json")
    report = json.loads(path.read_text())
    for name, value in fields.items():
        *way, last = name.split("__")
        place = report
        for step in way:
            place = place[step]
        place[last] = value
    path.write_text(json.dumps(report))
    return target


@one_mode
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"student__student": "org/student0"}, "student is student0 in .*, org/student0 in "),
        ({"student__template": "alpaca"}, "the student's template is vicuna in .*, alpaca in "),
        ({"student__revision": "abc"}, "the student's revision is "),
        ({"rule": "random"}, "rule is paper in .*, random in "),
        ({"keep": "reflected"}, "keep is all in "),
        ({"mode": "candidates"}, "mode is "),
        ({"teacher__name": "org/other"}, "teacher is local/teacher@0123abcd in .*, org/other in "),
        ({"provenance__source": "other.jsonl"}, "source is rows.jsonl in .*, other.jsonl in "),
        ({"provenance__revision": "abc"}, "the revision of the source is None in .*, abc in "),
        ({"shard__of": 4}, "num_shards is 3 in .*, 4 in "),
        ({"shard__settings": {"temperature": 0.7}}, "--temperature is 0.0 in .*, 0.7 in "),
        ({"shard__digest": "abc"}, "the digest of all rows is "),
        ({"proxy": {"student": "small", "margin": 0.1, "rows": 1}}, "the proxy's student is None in .*, small in "),
    ],
)
def test_shards_of_different_runs_are_refused(runs: Runs, tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    other = changed(runs.shards[1], tmp_path / "other", **fields)
    with pytest.raises(DataError, match=f"not shards of one run: {expected}"):
        merge([runs.shards[0], other, runs.shards[2]])


@one_mode
def test_figures_of_all_shards_together(runs: Runs, tmp_path: Path) -> None:
    """What no folder's rows tell: rounding, a proxy, rows that were left out, and versions that differ."""
    rounding = {"dtype": "bfloat16", "pairs": 4, "nll": 0.002, "ifd": None, "not_measured": None}
    nothing = {**rounding, "pairs": 0, "nll": None, "not_measured": "the student decided no row"}
    proxy = {"student": "small", "margin": 0.1, "rows": 2, "passes_saved": 5, "sample": 2, "decisions_changed": 1}
    found = [rounding, {**rounding, "nll": 0.004, "ifd": 0.1}, nothing]
    folders = [
        changed(folder, tmp_path / str(n), rounding=found[n], proxy=proxy, shard__left_out=7, versions={"torch": str(n // 2)})
        for n, folder in enumerate(runs.shards)
    ]
    with pytest.warns(UserWarning, match="different versions of their packages; the report names the first one's"):
        report = merge(folders).report
    assert report.rounding == {**rounding, "pairs": 8, "nll": 0.004, "ifd": 0.1}
    assert report.proxy == {**proxy, "rows": 6, "passes_saved": 15, "sample": 6, "decisions_changed": 3}
    assert report.left_out == {"not one question and one answer": 7} and report.versions == {"torch": "0"}


@one_mode
def test_what_is_missing_there_twice_or_no_shard_is_refused(run_script: Here, runs: Runs, tmp_path: Path) -> None:
    zero, one, two = runs.shards
    with pytest.raises(DataError, match=r"Of 3 shards \(0 to 2\) these are missing: 0, 2\."):
        merge([one])
    with pytest.raises(DataError, match=f"Shard 1 is there twice: in {one} and in {one}"):
        merge([zero, one, two, one])
    with pytest.raises(DataError, match=r"holds a whole run and no shard of one\. A shard is made with --num_shards"):
        merge([runs.whole, one])
    with pytest.raises(DataError, match=r"There is no folder .*rows\.jsonl"):
        merge([zero, runs.whole.parent / "rows.jsonl"])
    both = tmp_path / "both"
    shutil.copytree(zero, both)
    shutil.copytree(next((both / "reports").iterdir()), both / "reports" / "another")
    with pytest.raises(DataError, match="Several students have selected in"):
        merge([both, one, two])
    swapped = tmp_path / "swapped"  # its table is another shard's
    shutil.copytree(one, swapped)
    for name in ("candidates", "student0-scores"):
        shutil.rmtree(swapped / name)
        shutil.copytree(two / name, swapped / name)
    with pytest.raises(DataError, match="The rows in these folders are not those that the run began with"):
        merge([zero, swapped, two])
    shutil.rmtree(swapped / "candidates")
    shutil.copytree(one / "candidates", swapped / "candidates")
    with pytest.raises(DataError, match="is not of its candidates: the ids are others"):
        merge([zero, swapped, two])
    assert "No shards are named." in complaint(run_script("merge.py"), 2)
    missing = ("merge.py", "--shards", one, "--output_dir", tmp_path / "out", "--journal", tmp_path / "j")
    assert "these are missing: 0, 2." in complaint(run_script(*missing))
    assert "/proc/no/j" in complaint(run_script(*missing[:-1], tmp_path / "j", "--journals", "/proc/no/j"))


def test_rows_are_shared_out_as_neighbours_with_the_ids_of_the_whole() -> None:
    rows = with_ids(Dataset.from_list(ROWS))
    parts = [take(rows, n, 5) for n in range(5)]
    assert [id for part, _ in parts for id in part["id"]] == rows["id"][:]
    assert [len(part) for part, _ in parts] == [3, 3, 3, 2, 2] and len({shard.digest for _, shard in parts}) == 1
    assert take(rows.select(range(12)), 0, 5)[1].digest != parts[0][1].digest
    with pytest.raises(ConfigError, match="13 rows are no 14 shards"):
        take(rows, 0, 14)
