"""Another student chooses from published candidates, and nobody asks a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hub_server import UPLOAD_WARNING, LocalHub, point_at
from test_pipeline import ROWS, decisions
from tgi_server import LocalTGI
from tiny_models import make_llama

from srt_hf import Selector, Student, Teacher, load_candidates, recycle, reselect
from srt_hf.errors import ConfigError, DataError
from srt_hf.published import candidates_made
from srt_hf.report import Provenance

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*originals have ifd > 1:UserWarning"),  # random students know no template
    pytest.mark.filterwarnings(UPLOAD_WARNING),
]
ALL = Selector(keep="all")


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Student]:
    folder = tmp_path_factory.mktemp("students")
    return {name: Student(str(make_llama(folder / name, seed)), template="vicuna") for name, seed in (("one", 0), ("two", 1))}


@pytest.fixture(scope="module")
def runs(students: dict[str, Student], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same exhaustive run for each student."""
    with LocalTGI() as tgi:
        teacher = Teacher(tgi.url, journal=tmp_path_factory.mktemp("j") / "j")
        return {
            name: recycle(ROWS, teacher=teacher, student=student, mode="exhaustive", selector=ALL)
            for name, student in students.items()
        }


def test_another_student_chooses_as_if_the_teacher_had_been_asked(
    runs: Any, students: dict[str, Student], tmp_path: Path
) -> None:
    runs["one"].save_to_disk(tmp_path / "out")
    chosen = reselect(load_candidates(str(tmp_path / "out")), student=students["two"], selector=ALL)
    assert decisions(chosen) == decisions(runs["two"]) != decisions(runs["one"])
    assert chosen.dataset.to_list() == runs["two"].dataset.to_list()
    assert "requests" not in chosen.report.table() and chosen.report.teacher["writers"] == ["local/teacher@0123abcd"]
    chosen.save_to_disk(tmp_path / "two")
    card = (tmp_path / "two" / "README.md").read_text()
    assert "selection from candidates that existed" in card and "local/teacher@0123abcd" in card


def test_a_second_student_joins_the_repo_and_touches_nothing_else(
    runs: Any, students: dict[str, Student], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalHub() as hub:
        point_at(monkeypatch, hub.url, tmp_path / "home")
        runs["one"].push_to_hub("tester/made")
        before = hub.repos["dataset", "tester/made"].files()
        reselect(load_candidates("tester/made"), student=students["two"], selector=ALL).push_to_hub("tester/made")
        after = hub.repos["dataset", "tester/made"].files()
        changed = {name for name in after if before.get(name) != after[name]}
        kept = {name for name in changed if name.endswith(".parquet")}
        assert {name.partition("/")[0] for name in kept} == {"two", "two-scores"} and before.keys() <= after.keys()
        reports = {name for name in changed if name.startswith("reports/two/")}
        assert len(reports) == 6 and changed - kept - reports == {"README.md"}
        card = after["README.md"].decode()
        assert "recycled for 2 students" in card and card.index("Selected for `one`") < card.index("Selected for `two`")
        assert "(reports/one/scores.png)" in card and "(reports/two/scores.png)" in card


def test_what_holds_no_candidates(tmp_path: Path, students: dict[str, Student]) -> None:
    with pytest.raises(DataError, match=r"There is no file or folder .* which has a config `candidates`"):
        load_candidates(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="lack the column id, candidates"):
        reselect(Dataset.from_list([{"instruction": "a", "input": "", "output": "b"}]), student=students["one"])


SPLITS = ("origin", "reflect_instruction", "reflect_response", "reflect_both")


@pytest.mark.parametrize("lacking", [None, "reflect_response"])  # WizardLM V2 has no responses
@pytest.mark.filterwarnings("ignore:1 of 8 rows have no original:UserWarning")
def test_what_the_papers_authors_published(tmp_path: Path, students: dict[str, Student], lacking: str | None) -> None:
    (tmp_path / "theirs" / "data").mkdir(parents=True)
    for split in SPLITS:
        if split != lacking:
            rows = [{"instruction": f"Say {n}.", "input": "" if n % 2 else "x", "output": f"{split} {n}"} for n in range(8)]
            rows[3] = None if split == "reflect_both" else rows[3]
            rows[5] = None  # in all splits
            table = Dataset.from_dict({"data": rows})
            table.to_parquet(tmp_path / "theirs" / "data" / f"{split}-00000-of-00001.parquet")
    found = load_candidates(str(tmp_path / "theirs"))
    assert len(found) == 7 and found[0]["output"] == "origin 0" and len(set(found["id"])) == 7
    by_origin = {candidate["origin"]: candidate for candidate in found[0]["candidates"]}
    assert list(by_origin) == [o for o in ("original", "instruction", "response", "both") if o != "response" or not lacking]
    assert by_origin["original"]["input"] == "x" and by_origin["both"]["input"] == ""
    assert by_origin["both"]["output"] == "reflect_both 0"
    assert [c["error"] for c in found[3]["candidates"]][-1] == "not_attempted"
    assert found[4]["candidates"][1]["output"] == "reflect_instruction 4" and found[5]["output"] == "origin 6"
    chosen = reselect(found, student=students["one"], selector=ALL)
    assert chosen.report.rows == 7 and chosen.report.kept == 7


def write_splits(folder: Path, rows: dict[str, list[Any]]) -> str:
    (folder / "data").mkdir(parents=True)
    for split, values in rows.items():
        Dataset.from_dict({"data": values}).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)


def losses(ins: float, out: float, ins_cond: float, out_cond: float) -> dict[str, list[float]]:
    return {"loss": [ins, out, ins_cond, out_cond], "ppl": [0.0] * 4}  # the losses alone are read


@pytest.mark.filterwarnings("ignore:1 of 5 rows have no original:UserWarning")
def test_the_authors_ready_scores(tmp_path: Path) -> None:
    """The published choice without any model; null rows and the 0 of a failure are no scores."""
    pairs = [{"instruction": f"Say {n}.", "input": "", "output": f"Said {n}."} for n in range(5)]
    pairs[4] = None  # type: ignore[call-overload]
    rows = write_splits(
        tmp_path / "rows", {split: [{**p, "output": f"{split} {p['output']}"} if p else None for p in pairs] for split in SPLITS}
    )
    low, middle, high = losses(2, 2, 1.0, 1.0), losses(2, 2, 1.5, 1.5), losses(2, 2, 1.8, 1.8)
    failed = losses(0, 0, 0, 0)
    measured = write_splits(
        tmp_path / "measured",
        {
            "origin": [middle, middle, middle, None, low],
            "reflect_instruction": [high, low, failed, high, low],  # a higher ifd wins
            "reflect_response": [low, low, low, low, low],  # a lower r_ifd wins
            "reflect_both": [low, high, low, high, low],
        },
    )
    with pytest.warns(UserWarning, match="1 of 5 rows have no original"):
        table = load_candidates(rows, scores=measured, student="meta-llama/Llama-2-7b-hf")
    assert len(table) == 4 and table[0]["scores"][0]["ifd"] == pytest.approx(0.6065, abs=1e-4)
    assert table[2]["scores"][1]["missing"] == "not_recorded" and table[2]["scores"][1]["ifd"] is None
    chosen = reselect(table)
    # 0: instruction, then both; 1: original, then response; 2: the failure loses, then response; 3: only the instruction has an
    # ifd, and its response is no better.
    assert chosen.rows["origin"][:] == ["both", "response", "response", "instruction"]
    assert chosen.rows["kept"][:] == [True, True, True, False]
    assert chosen.report.student["student"] == "meta-llama/Llama-2-7b-hf" and chosen.report.student["passes"] == 0
    chosen.save_to_disk(tmp_path / "out")
    assert "`meta-llama/Llama-2-7b-hf`" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(DataError, match="Llama-scores"):
        load_candidates(rows, scores=str(tmp_path / "out"), student="Llama")
    with pytest.raises(ConfigError, match="need the name of the student"):
        load_candidates(rows, scores=measured)
    with pytest.raises(DataError, match="hold no losses"):
        load_candidates(rows, scores=rows, student="Llama")
    with pytest.raises(DataError, match=r"lack the column scores, scored_by\. .*name a student"):
        reselect(load_candidates(rows))


def test_the_scores_of_an_earlier_run_serve_another_rule(runs: Any, students: dict[str, Student], tmp_path: Path) -> None:
    runs["one"].save_to_disk(tmp_path / "out")
    table = load_candidates(str(tmp_path / "out"), scores=str(tmp_path / "out"), student=students["one"].model)
    again = reselect(table, selector=ALL)
    assert decisions(again) == decisions(runs["one"])
    assert again.report.student == {**runs["one"].report.student, "passes": 0}
    assert decisions(reselect(table, selector=Selector(rule="all", keep="all"))) != decisions(again)
    runs["two"].save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match="The scores of --student absent would be its config absent-scores"):
        load_candidates(str(tmp_path / "two"), scores=str(tmp_path / "two"), student="absent")
    few = load_candidates(str(tmp_path / "out"), scores=str(tmp_path / "out"), student=students["one"].model, limit=4)
    assert few["id"][:] == table["id"][:4] and few["scores"][:] == table["scores"][:4]


def test_where_candidates_come_from_goes_with_them(runs: Any, students: dict[str, Student], tmp_path: Path) -> None:
    made = Provenance("org/rows", True, "python first.py", license="mit")
    runs["one"].save_to_disk(tmp_path / "out", provenance=made)
    again = candidates_made(str(tmp_path / "out"), command="python second.py")
    assert (again.source, again.license, again.candidates, again.command) == ("org/rows", "mit", "out", "python second.py")
    reselect(load_candidates(str(tmp_path / "out")), student=students["two"], selector=ALL).save_to_disk(
        tmp_path / "two", provenance=again
    )
    card = (tmp_path / "two" / "README.md").read_text()
    assert "`org/rows`" in card and "| candidates from | `out` |" in card and "paid for once" in card
    assert "select again from `candidates`" in card and "license: mit" in card


def test_selective_candidates_lack_what_nobody_asked_for(students: dict[str, Student], tmp_path: Path) -> None:
    with LocalTGI() as tgi:
        one = recycle(ROWS, teacher=Teacher(tgi.url, journal=False), student=students["one"], selector=ALL)
    assert not one.report.exhaustive
    one.save_to_disk(tmp_path / "out")
    assert "may miss some of its own" in (tmp_path / "out" / "README.md").read_text()
    two = reselect(load_candidates(str(tmp_path / "out")), student=students["two"])
    assert two.report.reasons["not_asked"] > 0 and "teacher_failed" not in two.report.reasons


def test_splits_that_are_not_aligned(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, length in (("origin", 3), ("reflect_both", 2)):
        rows = [{"instruction": "a", "input": "", "output": "b"}] * length
        Dataset.from_dict({"data": rows}).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(DataError, match="not of one length: origin 3, reflect_both 2"):
        load_candidates(str(tmp_path))
