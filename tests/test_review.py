"""Review without a server: what reviewers are shown, what their answers make of a row, and where the result goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from hub_server import UPLOAD_WARNING, LocalHub
from test_pipeline import ROWS
from tgi_server import LocalTGI

from srt_hf import Recycled, Selector, Student, Teacher, recycle
from srt_hf.annotation import Answer, Answered, ArgillaArguments, escaped
from srt_hf.errors import ConfigError, DataError, HubError
from srt_hf.review import Picking, apply_answers
from srt_hf.review.decisions import apply, decide, edit_of
from srt_hf.review.records import compared, guidelines, margin, proposal, shown, suggestion
from srt_hf.schema import CANDIDATES_COLUMNS, REVIEWED_COLUMNS, SCORES_COLUMNS
from srt_hf.selection import select

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*originals have ifd > 1:UserWarning"),
    pytest.mark.filterwarnings(UPLOAD_WARNING),
]
REPO = "tester/made"
NOW = datetime(2026, 11, 21)
MISSING = {"ifd": None, "r_ifd": None, "nll_y_given_x": None, "missing": "too_long"}


def candidate(origin: str, instruction: str, output: str, **more: Any) -> dict[str, Any]:
    return {"origin": origin, "instruction": instruction, "input": "", "output": output, "error": None, "critique": "", **more}


ROW = {
    "id": "r",
    "candidates": [
        candidate("original", "Add.", "three"),
        candidate("instruction", "Add 1 and 2.", "three"),
        candidate("both", "Add 1 and 2.", "The sum is 3."),
    ],
    "scores": [{"ifd": ifd, "r_ifd": r_ifd, "missing": None} for ifd, r_ifd in ((0.5, 0.9), (0.7, 0.8), (0.6, 0.4))],
}
ROW |= select(ROW)
ACCEPT, KEEP, DROP = {"decision": "recycled"}, {"decision": "original"}, {"decision": "drop"}
PREFILLED = {"instruction": "Add 1 and 2.", "response": "The sum is 3.\n"}  # what the page sends with every answer


def say(*values: dict[str, Any]) -> list[Answer]:
    return [Answer(f"user-{n}", "submitted", given) for n, given in enumerate(values)]


def after(*values: dict[str, Any]) -> dict[str, Any]:
    return {**ROW, **apply(ROW, decide(ROW, say(*values)))}


def chosen(row: dict[str, Any]) -> tuple[str, str]:
    found = row["candidates"][row["choice"]]
    return found["instruction"], found["output"]


@pytest.mark.parametrize(
    ("answers", "status", "origin", "kept"),
    [
        ([ACCEPT], "accepted", "both", True),
        ([ACCEPT | PREFILLED], "accepted", "both", True),
        ([KEEP], "original", "original", True),
        ([KEEP | PREFILLED | {"response": "Better."}], "original", "original", True),
        ([DROP], "dropped", "both", False),
        ([ACCEPT, ACCEPT, DROP], "accepted", "both", True),
        ([ACCEPT, DROP], "tie", "original", True),
        ([ACCEPT, KEEP, DROP], "tie", "original", True),
        ([DROP, DROP, ACCEPT, KEEP], "dropped", "both", False),
    ],
)
def test_the_majority_decides_and_a_tie_keeps_the_original(answers: list[Any], status: str, origin: str, kept: bool) -> None:
    row = after(*answers)
    assert (row["review_status"], row["origin"], row["kept"]) == (status, origin, kept)
    assert row["reason"] == "reviewed" and row["reviewers"] == len(answers)
    assert row["origin"] == row["candidates"][row["choice"]]["origin"]
    assert len(row["scores"]) == len(row["candidates"])


def test_a_correction_becomes_a_candidate_of_a_person() -> None:
    row = after(
        ACCEPT | PREFILLED | {"response": "1 + 2 = 3.", "rating": 4}, ACCEPT | {"response": "1 + 2 = 3.", "rating": 5}, KEEP
    )
    assert (row["review_status"], row["origin"], row["kept"], row["rating"]) == ("edited", "human", True, 4.5)
    assert chosen(row) == ("Add 1 and 2.", "1 + 2 = 3.")
    human = row["candidates"][-1]
    assert human["teacher"] is None and human["error"] is None and row["candidates"][:3] == ROW["candidates"]
    assert row["scores"][-1]["missing"] == "unscored" and row["scores"][-1]["ifd"] is None
    # Another student may choose again from these rows; a rule never takes what a person wrote.
    assert select(row)["choice"] == ROW["choice"]


def test_people_who_correct_differently_are_divided() -> None:
    """None of them took the pair as it was shown, so that is not taken either."""
    row = after(ACCEPT | {"response": "3"}, ACCEPT | {"response": "three"}, DROP | {"instruction": "Add!"})
    assert row["review_status"] == "tie" and row["origin"] == "original" and row["kept"]
    assert [entry["output"] for entry in row["candidates"] if entry["origin"] == "human"] == ["3", "three", "The sum is 3."]
    assert [entry["sample"] for entry in row["candidates"] if entry["origin"] == "human"] == [0, 1, 2]
    assert row["corrections"][1] == {"instruction": "Add 1 and 2.", "output": "three"}


@pytest.mark.parametrize(
    ("corrections", "status", "pair"),
    [
        ([{"instruction": "Sum."}, {"response": "3"}], "edited", ("Sum.", "3")),
        ([{"response": "3"}, {"response": "3"}, {"response": "4"}], "edited", ("Add 1 and 2.", "3")),
        ([{"instruction": "Sum."}, {"response": "3"}, {"response": "3"}], "edited", ("Add 1 and 2.", "3")),
        ([{"response": "3"}, {"response": "4"}, {}], "tie", ("Add.", "three")),
        ([{"response": "3"}, {}, {}], "accepted", ("Add 1 and 2.", "The sum is 3.")),
    ],
)
def test_instruction_and_response_are_decided_each(corrections: list[Any], status: str, pair: tuple[str, str]) -> None:
    row = after(*(ACCEPT | one for one in corrections))
    assert (row["review_status"], chosen(row)) == (status, pair)


@pytest.mark.parametrize(("as_shown", "status"), [(0, "edited"), (1, "edited"), (2, "accepted")])
def test_a_correction_stands_unless_more_accept_the_pair_as_it_is(as_shown: int, status: str) -> None:
    assert after(ACCEPT | {"response": "3"}, *[ACCEPT] * as_shown)["review_status"] == status


@pytest.mark.parametrize("typed", ["The sum is 3.\n", " The sum\xa0is 3. ", "The sum is 3.  \r\n", "", None, "  \n"])
def test_what_a_browser_adds_is_no_correction(typed: str | None) -> None:
    assert edit_of(Answer("u", "submitted", {"response": typed}), ROW["candidates"][2]) is None


def test_a_correction_is_what_was_typed() -> None:
    code = {"instruction": "Add.", "output": "    def f(x):\n        return x  \n    # «\xa0a\xa0»"}
    typed = code["output"].replace("return x", "return -x") + "\n"
    assert edit_of(Answer("u", "submitted", {"response": typed}), code) == ("Add.", typed[:-1])
    there = {"instruction": "Add.", "output": "one two"}
    assert edit_of(Answer("u", "submitted", {"response": "one\xa0two\xa0three\r\n"}), there) == ("Add.", "one two three")


def test_a_row_that_nobody_decided_stays_as_it_was() -> None:
    assert decide(ROW, []) is None and decide(ROW, say({"comment": "hm"}, {"decision": "another"})) is None
    row = {**ROW, **apply(ROW, None)}
    assert {name: row[name] for name in ROW} == ROW and (row["review_status"], row["reviewers"]) == ("unreviewed", 0)


def test_what_stands_beside_the_original() -> None:
    assert proposal(ROW) == 2 and suggestion(ROW) == "recycled"
    lost = {**ROW, "choice": 0, "origin": "original", "kept": False}
    assert proposal(lost) == 2 and suggestion(lost) == suggestion({**ROW, "kept": False}) == "drop"
    assert suggestion({**lost, "kept": True}) == "original"
    broken = [{**entry, "error": None if entry["origin"] == "original" else "refused"} for entry in ROW["candidates"]]
    assert proposal({**lost, "candidates": broken}) is None
    assert shown(ROW, 2) == shown({**ROW, "choice": 0}, 2) != shown(ROW, 1)


def test_what_strangers_wrote_means_nothing_on_the_page() -> None:
    text = "<script>alert(1)</script>\n\n# <img src=x onerror=alert(1)> $x$ **b** `c`\r\n</table>"
    assert escaped(text) == (
        "&lt;script&gt;alert(1)&lt;/script&gt;<br><br># &lt;img src=x onerror=alert(1)&gt; $x$ **b** `c`<br>&lt;/table&gt;"
    )
    left, right = compared(text, text.replace("alert", "<b>"))
    for side in (left, right):
        assert "\n" not in side and "<script" not in side and "<img" not in side and "<b>" not in side and "</table" not in side
    assert "<del" in left and "<ins" not in left and "<ins" in right and "<del" not in right


def test_a_very_long_pair_is_bounded_and_unmarked() -> None:
    left, right = compared("word " * 50_000, "other " * 3_000)
    assert len(left) < 60_000 and "more]" in left and "<del" not in left and "<ins" not in right


@pytest.fixture(scope="module")
def recycled(student_folder: str) -> Recycled:
    student = Student(student_folder, template="vicuna")
    with LocalTGI() as tgi:
        return recycle(ROWS, teacher=Teacher(tgi.url, journal=False), student=student, selector=Selector(keep="all"))


@pytest.fixture(scope="module")
def folder(recycled: Recycled, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run") / "run"
    recycled.save_to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def loaded(folder: str) -> Recycled:
    return Recycled.load(folder)


def answered(recycled: Recycled, answers: dict[int, list[dict[str, Any]]], **more: Any) -> dict[str, Answered]:
    """Records as a server would return them: row's place -> what users said."""
    found = {}
    for n, values in answers.items():
        row = recycled.rows[n]
        metadata = {"shown": shown(row, proposal(row) or 0), **more}
        found[row["id"]] = Answered(row["id"], metadata, say(*values), True, "", NOW, NOW)
    return found


def test_a_run_is_loaded_as_it_was_saved(recycled: Recycled, loaded: Recycled, folder: str, tmp_path: Path) -> None:
    assert set(loaded.rows.column_names) == {*CANDIDATES_COLUMNS, *SCORES_COLUMNS}
    assert loaded.rows.to_list() == recycled.rows.select_columns(loaded.rows.column_names).to_list()
    assert loaded.report.reasons == recycled.report.reasons
    with pytest.raises(DataError, match=r"another/model has not selected in .* Name one of"):
        Recycled.load(folder, "another/model")
    with pytest.raises(DataError, match="no report of this tool"):
        Recycled.load(str(tmp_path))


def test_picking(loaded: Recycled) -> None:
    rows = loaded.rows
    everything = Picking().indices(loaded)
    assert everything == [n for n, row in enumerate(rows) if proposal(row) is not None]
    closest = Picking(closest=True, limit=5).indices(loaded)
    margins = [margin(rows[n], loaded.report) or 0.0 for n in closest]
    others = [margin(rows[n], loaded.report) for n in set(everything) - set(closest)]
    assert margins == sorted(margins) and max(margins) <= min(other for other in others if other is not None)
    broken = [
        {**row, "scores": [{**one, **MISSING} for one in row["scores"]]} if n == closest[0] else row for n, row in enumerate(rows)
    ]
    unscored = Recycled(Dataset.from_list(broken, features=rows.features), loaded.report)
    assert margin(broken[closest[0]], loaded.report) is None
    assert closest[0] not in Picking(closest=True, limit=5).indices(unscored)
    half, most = (set(Picking(share=share, seed=3).indices(loaded)) for share in (0.4, 0.8))
    assert half < most < set(everything) and half != set(Picking(share=0.4, seed=4).indices(loaded))
    reason = rows[0]["reason"]
    assert Picking(reason=reason).indices(loaded) == [n for n in everything if rows[n]["reason"] == reason]
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"limit": 0}, {"reason": "because"}):
        with pytest.raises(ConfigError):
            Picking(**wrong)  # type: ignore[arg-type]


def test_what_a_review_comes_to(loaded: Recycled) -> None:
    edited = ACCEPT | {"response": "Written by a person.", "rating": 5}
    records = answered(loaded, {0: [ACCEPT], 1: [KEEP, KEEP], 2: [DROP, ACCEPT], 3: [edited], 4: [DROP], 5: [{"comment": "?"}]})
    records |= answered(loaded, {6: [ACCEPT]}, shown="other words")
    late = loaded.rows[7]["id"]
    records[late] = Answered(late, {}, [Answer("a", "draft", ACCEPT), Answer("b", "discarded", {})], False, "", NOW, NOW)
    records["gone"] = Answered("gone", {}, say(ACCEPT), True, "", NOW, NOW)
    with (
        pytest.warns(UserWarning, match="1 rows were answered when they had other words"),
        pytest.warns(UserWarning, match="1 answered rows are not in this run"),
    ):
        reviewed = apply_answers(loaded, records, "d")
    found = reviewed.report.review
    counted = ("reviewed", "reviewers", "outdated", "gone", "undecided", "drafts", "discarded", "edits")
    counts = {name: found[name] for name in counted}
    expected = {"reviewed": 5, "reviewers": 2, "outdated": 1, "gone": 1, "undecided": 1, "drafts": 1, "discarded": 1, "edits": 1}
    assert counts == expected
    assert found["statuses"] == {
        "accepted": 1, "original": 1, "tie": 1, "edited": 1, "dropped": 1, "unreviewed": len(loaded.rows) - 5
    }  # fmt: skip
    assert (found["answered_by_several"], found["all_alike"], found["rating"]) == (2, 1, 5.0)
    before, now = loaded.rows.to_list(), reviewed.rows.select_columns(loaded.rows.column_names).to_list()
    assert before[5:] == now[5:] and all(one != other for one, other in zip(before[:5], now[:5], strict=True))
    flat = {row["id"]: row for row in reviewed.dataset}
    assert list(reviewed.dataset.column_names) == list(REVIEWED_COLUMNS) and len(flat) == found["kept"] == len(before) - 1
    person = flat[before[3]["id"]]
    assert (person["output"], person["origin"], person["reason"]) == ("Written by a person.", "human", "reviewed")
    assert person["ifd"] is None and person["review_status"] == "edited"
    assert person["corrections"] == [{"instruction": person["instruction"], "output": person["output"]}]
    current = {name: record for name, record in records.items() if record.metadata.get("shown") != "other words"}
    with pytest.warns(UserWarning, match="not in this run"):
        alone = apply_answers(loaded, current, "d", only_reviewed=True)
    assert set(alone.dataset["review_status"]) == {"accepted", "original", "tie", "edited"} and len(alone.dataset) == 4
    assert "decided by people" in alone.table() and json.dumps(alone.report.to_dict())
    assert {answer["id"] for answer in alone.answers} >= {"gone", late}


def test_in_the_run_s_own_folder(recycled: Recycled, tmp_path: Path) -> None:
    recycled.save_to_disk(tmp_path / "run")
    there = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    run = Recycled.load(str(tmp_path / "run"))
    apply_answers(run, answered(run, {0: [DROP], 1: [KEEP], 2: [KEEP]}), "first").save_to_disk(tmp_path / "run")
    again = apply_answers(run, answered(run, {0: [ACCEPT], 1: [ACCEPT]}), "second")
    with pytest.warns(UserWarning, match=r"decided 3 rows; this one, of 2, takes its place"):
        again.save_to_disk(tmp_path / "run")
    answers = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 5 and {answer["dataset"] for answer in answers} == {"first", "second"}  # nothing is lost
    assert {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()} == there | {"answers.jsonl"}
    assert load_dataset(str(tmp_path / "run"), "reviewed", split="train").to_list() == again.dataset.to_list()
    assert load_dataset(str(tmp_path / "run"), split="train").to_list() == recycled.dataset.to_list()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "### What people made of it" in card and f"{again.config}` (also `reviewed`)" in card and "whose report" not in card
    recycled.save_to_disk(tmp_path / "run")  # the same run once more
    assert load_dataset(str(tmp_path / "run"), "reviewed", split="train").to_list() == again.dataset.to_list()
    assert sorted((tmp_path / "run" / "README.md").read_text().splitlines()) == sorted(card.splitlines())
    assert not (tmp_path / "run.1").exists()
    Recycled.load(str(tmp_path / "run")).save_to_disk(tmp_path / "copy")
    assert "reviewed" not in (tmp_path / "copy" / "README.md").read_text()
    again.save_to_disk(tmp_path / "elsewhere")
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {again.config, "answers.jsonl"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="not a result of this tool"):
        again.save_to_disk(tmp_path / "mine")


def test_on_the_hub(hub: LocalHub, recycled: Recycled) -> None:
    recycled.push_to_hub(REPO)
    before = hub.repos["dataset", REPO].files()
    run = Recycled.load(REPO)
    records = answered(run, {0: [DROP], 1: [KEEP | {"comment": "my secret thought"}], 2: [ACCEPT, DROP]})
    reviewed = apply_answers(run, records, "d")
    reviewed.push_to_hub(REPO)
    now = hub.repos["dataset", REPO].files()
    added = set(now) - set(before)
    assert added == {f"{reviewed.config}/train-00000-of-00001.parquet"} and set(before) < set(now)
    changed = {name for name in before if before[name] != now[name]}
    assert {Path(name).name for name in changed} == {"README.md", "report.json"}
    for config in ("reviewed", reviewed.config):
        assert load_dataset(REPO, config, split="train").to_list() == reviewed.dataset.to_list()
    # The run is pushed anew, as an unchanged one: what people made of it stays.
    recycled.push_to_hub(REPO)
    assert load_dataset(REPO, "reviewed", split="train").to_list() == reviewed.dataset.to_list()
    again = hub.repos["dataset", REPO].files()
    assert again["README.md"] == now["README.md"] and Recycled.load(REPO).report.review == {}
    other = apply_answers(replaced(run, rows=7), {}, "d")
    with pytest.raises(HubError, match=r"does not hold the run of .* that was reviewed"):
        other.push_to_hub(REPO)
    with pytest.raises(HubError, match="does not hold the run"):
        reviewed.push_to_hub("tester/nothing")
    nothing = apply_answers(run, answered(run, {}), "d", only_reviewed=True)
    with pytest.raises(HubError, match="No row is kept"):
        nothing.push_to_hub(REPO)
    # A run of other rows takes its place.
    fewer = replaced(Recycled(recycled.rows.select(range(len(recycled.rows) - 1)), recycled.report), rows=len(recycled.rows) - 1)
    with pytest.warns(UserWarning, match="holds a review of other rows than these, which goes"):
        fewer.push_to_hub(REPO)
    gone = hub.repos["dataset", REPO].files()
    assert not any("reviewed" in name for name in gone) and b"-reviewed" not in gone["README.md"]


def replaced(run: Recycled, **values: Any) -> Recycled:
    return Recycled(run.rows, replace(run.report, **values))


def test_guidelines_are_words_for_a_person(loaded: Recycled) -> None:
    text = guidelines(loaded.report, 3)
    assert "3 people answer each record" in text and "{{" not in text and len(text) < 10_000
    hostile = replace(loaded.report, student={**loaded.report.student, "student": "<img src=x>"})
    assert "<img" not in guidelines(hostile, 1)


Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "A subcommand is missing: it is one of push, status, pull."),
        (("post",), "There is no subcommand post"),
        (("push", "--argilla_dataset", "d"), "No run is named. Give its repo or output folder with --source."),
        (("push", "--source", "x"), "No dataset in Argilla is named."),
        (("push", "--source", "x", "--argilla_dataset", "d", "--share", "2"), "share=2.0 is no share"),
        (("pull", "--source", "x", "--argilla_dataset", "d", "--create_pr"), "are about the repo"),
    ],
)
def test_wrong_options_are_one_line(run_script: Run, arguments: tuple[str, ...], complaint: str) -> None:
    code, _, err = run_script("review.py", *arguments)
    assert code == 2 and complaint in err and err.count("\n") == 1


def test_no_key_and_no_client(monkeypatch: pytest.MonkeyPatch, loaded: Recycled) -> None:
    place = ArgillaArguments("d").make()
    monkeypatch.delenv("ARGILLA_API_KEY", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "argilla", None)
    with pytest.raises(ConfigError, match=r"not installed. pip install 'srt_hf\[review\]'"):
        place.find()
    monkeypatch.delitem(__import__("sys").modules, "argilla")
    pytest.importorskip("argilla")
    with pytest.raises(ConfigError, match="There is no key for Argilla"):
        place.find()
