"""The whole method: both modes, the artefact on disk and on a local Hub, a real server, a real student."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from hub_server import UPLOAD_WARNING, LocalHub
from tgi_server import LocalTGI, reflect

import srt_hf
from srt_hf import Recycled, Selector, Student, Teacher, recycle
from srt_hf.card import config_names
from srt_hf.errors import ConfigError, HubError
from srt_hf.hub import UNFINISHED
from srt_hf.report import Provenance, Report, measure
from srt_hf.schema import CANDIDATES_COLUMNS, FLAT_COLUMNS, SCORES_COLUMNS

NOUNS = ["river", "clock", "garden", "engine", "letter", "island", "number", "window", "bridge", "planet"]
ROWS = Dataset.from_list(
    [
        {
            "instruction": f"Write about the {noun} and the {NOUNS[n // 3 - 5]}.",
            "input": f"It has {n} sides." if n % 3 == 0 else "",
            "output": f"The {noun} is old and the {NOUNS[n // 3 - 5]} is {'very ' * (n % 4)}far away.",
        }
        for n, noun in enumerate(NOUNS * 3)
    ]
)
MADE = Provenance("rows.jsonl")
DECISION = ("origin", "kept", "reason")
# Random students know no template.
pytestmark = pytest.mark.filterwarnings("ignore:.*originals have ifd > 1:UserWarning")


@pytest.fixture(scope="module")
def student(student_folder: str) -> Student:
    return Student(student_folder, template="vicuna")


@pytest.fixture(scope="module")
def recycled(student: Student) -> Recycled:
    with LocalTGI() as tgi:
        return recycle(ROWS, teacher=Teacher(tgi.url, journal=False), student=student, selector=Selector(keep="all"))


def decisions(result: Recycled) -> list[tuple[Any, ...]]:
    pairs = [row["candidates"][row["choice"]] for row in result.rows]
    chosen = [(pair["instruction"], pair["input"], pair["output"]) for pair in pairs]
    return [(*pair, *(row[name] for name in DECISION)) for pair, row in zip(chosen, result.rows, strict=True)]


@pytest.mark.parametrize("rule", ["paper", "r_ifd", "random", "perplexity"])
def test_both_modes_choose_the_same_pairs(teacher: Teacher, tgi: LocalTGI, student_folder: str, rule: str) -> None:
    selective, exhaustive = (
        recycle(ROWS, teacher=teacher, student=Student(student_folder), mode=mode, selector=Selector(rule=rule))
        for mode in ("selective", "exhaustive")
    )
    assert decisions(selective) == decisions(exhaustive)
    assert len({row["origin"] for row in selective.rows}) > 1
    assert {len(row["candidates"]) for row in selective.rows} == {3}
    assert {len(row["candidates"]) for row in exhaustive.rows} == {4}
    assert selective.report.student["passes"] < exhaustive.report.student["passes"]
    # Two calls a row, then a third for what selective mode did not need.
    assert selective.report.tokens["replies"] == 60 and exhaustive.report.tokens["replies"] == 90
    assert selective.report.reasons == exhaustive.report.reasons


def test_selective_scores_are_the_exhaustive_ones(teacher: Teacher, student_folder: str) -> None:
    selective, exhaustive = (
        recycle(ROWS, teacher=teacher, student=Student(student_folder), mode=mode) for mode in ("selective", "exhaustive")
    )
    for few, all_ in zip(selective.rows, exhaustive.rows, strict=True):
        full = {candidate["origin"]: score for candidate, score in zip(all_["candidates"], all_["scores"], strict=True)}
        for candidate, score in zip(few["candidates"], few["scores"], strict=True):
            for name, value in score.items():
                assert value is None or value == pytest.approx(full[candidate["origin"]][name], abs=1e-5)
        assert few["scores"][0]["r_ifd"] is not None  # the original's, for the report
        assert few["scores"][few["choice"]]["ifd"] is not None


def test_a_failed_instruction_means_the_originals_response(student_folder: str) -> None:
    no_instructions = lambda n, body: (422, b"{}") if "New Instruction" in body["messages"][-1]["content"] else None  # noqa: E731
    with LocalTGI(fault=no_instructions) as tgi, pytest.warns(UserWarning, match="rejected"):
        both = [
            recycle(ROWS, teacher=Teacher(tgi.url, journal=False), student=Student(student_folder), mode=mode)
            for mode in ("selective", "exhaustive")
        ]
    assert decisions(both[0]) == decisions(both[1])
    assert [c["error"] for c in both[0].rows[0]["candidates"]] == [None, "rejected", None]
    assert [c["error"] for c in both[1].rows[0]["candidates"]] == [None, "rejected", None, "not_attempted"]


def test_rows_that_are_no_single_turn_are_counted(teacher: Teacher, student: Student) -> None:
    turn = [{"role": "user", "content": "Write."}, {"role": "assistant", "content": "The river is far."}]
    with pytest.warns(UserWarning, match="1 of 2 rows left out"):
        result = recycle(Dataset.from_dict({"messages": [turn, turn * 2]}), teacher=teacher, student=student)
    assert result.report.left_out == {"not one question and one answer": 1} and result.report.rows == 1


def test_a_column_that_is_null_throughout_is_text_on_disk(teacher: Teacher, student: Student) -> None:
    data = Dataset.from_dict({"instruction": ["Write."], "input": [None], "output": ["The river is far."]})
    result = recycle(data, teacher=teacher, student=student)
    assert result.candidates.features["input"].dtype == "string"


def test_no_decision_is_null(recycled: Recycled) -> None:
    for row in recycled.rows:
        assert all(row[name] is not None for name in ("choice", *DECISION))
    assert recycled.report.kept == len(recycled.dataset) == sum(recycled.rows["kept"]) == 30


def test_empty_cells_go_through(tgi: LocalTGI, student: Student) -> None:
    data = Dataset.from_dict(
        {"instruction": ["", None, "Write.", "Tell."], "input": [None] * 4, "output": ["a", "b", None, "The river is far."]}
    )
    result = recycle(data, teacher=Teacher(tgi.url, journal=False), student=student, mode="exhaustive")
    assert result.rows["reason"][:2] == ["empty_pair", "empty_pair"]
    assert result.rows[2]["scores"][0]["missing"] == "empty_output"
    assert result.report.missing["empty_instruction"] == 2 and result.report.rows == 4


@pytest.mark.parametrize("layout", ["messages", "conversations", "no input"])
def test_other_layouts_work_as_they_are(teacher: Teacher, student: Student, layout: str) -> None:
    chats = {
        "messages": [[{"role": "user", "content": "Write."}, {"role": "assistant", "content": "The river is far."}]],
        "conversations": [[{"from": "human", "value": "Write."}, {"from": "gpt", "value": "The river is far."}]],
    }
    data = Dataset.from_dict(
        {layout: chats[layout]} if layout in chats else {"instruction": ["Write."], "output": ["The river is far."]}
    )
    result = recycle(data, teacher=teacher, student=student, selector=Selector(keep="all"))
    original = result.rows[0]["candidates"][0]
    assert (original["instruction"], original["input"], original["output"]) == ("Write.", "", "The river is far.")
    assert result.dataset["original_instruction"][:] == ["Write."] and result.report.kept == 1


def test_the_report_counts_what_happened(recycled: Recycled) -> None:
    report = recycled.report
    assert sum(report.reasons.values()) == report.rows == 30
    assert report.candidates["instruction"] == {"usable": 30}
    assert sum(report.candidates[origin]["usable"] for origin in ("response", "both")) == 30
    assert report.scores["ifd"]["original"]["n"] == 30 and report.scores["ifd"]["chosen"]["n"] == report.kept
    stages = {f"{does} {what}" for does in ("reflect", "score") for what in ("instructions", "responses")}
    assert set(report.seconds) == {*stages, "select", "look at texts"}
    assert report.teacher["requests"] == 60 and report.tokens["prompt"] > 0
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    for word in ("rows", "kept", "teacher tokens", "seconds: select", *report.reasons):
        assert word in report.table()


def test_what_was_not_measured_is_no_number() -> None:
    row = {
        "kept": False,
        "reason": "teacher_failed",
        "choice": 0,
        "candidates": [{"origin": "original", "output": None, "error": None}],
        "scores": [{"ifd": None, "r_ifd": None, "missing": "empty_output"}],
        "flags": [],
    }
    report = measure(Report("selective", "paper", "reflected"), [row])
    assert report.scores["ifd"] == {"original": None, "original_of_kept": None, "chosen": None}
    assert report.tokens == {"prompt": None, "completion": None, "replies": 0}
    assert "not reported" in report.table() and "– → –" in report.table()


def test_the_folder_is_the_repo(recycled: Recycled, tmp_path: Path) -> None:
    recycled.save_to_disk(tmp_path, repo_id="org/made", provenance=MADE)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    candidates, flat, scores = config_names(recycled.report.student["student"])
    shards = {f"{name}/train-00000-of-00001.parquet" for name in (candidates, flat, scores)}
    folder = f"reports/{flat}"
    pictures = {f"{folder}/{name}.png" for name in ("scores", "lengths", "decisions", "reasons")}
    assert files == {"README.md", f"{folder}/report.json", f"{folder}/report.html", *pictures, *shards}
    for name, columns in ((candidates, CANDIDATES_COLUMNS), (flat, FLAT_COLUMNS), (scores, SCORES_COLUMNS), (None, FLAT_COLUMNS)):
        assert tuple(load_dataset(str(tmp_path), name, split="train").column_names) == columns
    assert load_dataset(str(tmp_path), split="train").to_list() == recycled.dataset.to_list()
    assert "student" not in (tmp_path / candidates / "train-00000-of-00001.parquet").read_bytes().decode("latin1")


def test_the_folder_holds_exactly_the_last_run(recycled: Recycled, tgi: LocalTGI, student: Student, tmp_path: Path) -> None:
    """What an earlier run left there is not lost; the same run again leaves nothing behind."""
    recycled.save_to_disk(tmp_path / "out")
    (tmp_path / "out" / f"{UNFINISHED}killed").mkdir()
    recycled.save_to_disk(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").glob(f"{UNFINISHED}*"))
    before = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*"))
    with LocalTGI(lambda body: ("no tags", "stop")) as dumb:
        nothing = recycle(ROWS, teacher=Teacher(dumb.url, journal=False), student=student)
    with pytest.warns(UserWarning, match=r"The earlier result in .*out is now in .*out\.1"):
        nothing.save_to_disk(tmp_path / "out")
    assert not (tmp_path / "out" / config_names(recycled.report.student["student"])[1]).exists()
    assert sorted(path.relative_to(tmp_path / "out.1") for path in (tmp_path / "out.1").rglob("*")) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not a result of this tool"):
        recycled.save_to_disk(tmp_path / "mine")
    with pytest.raises(ConfigError, match="cannot be made"):
        recycled.save_to_disk(tmp_path / "mine" / "thesis.txt" / "deeper")


def test_large_tables_are_sharded(recycled: Recycled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from srt_hf import hub

    monkeypatch.setattr(hub, "_SHARD_BYTES", recycled.candidates.data.nbytes // 3 + 1)
    hub.write_table(recycled.candidates, tmp_path)
    assert len(list(tmp_path.glob("train-0000?-of-00003.parquet"))) == 3
    again = load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train")
    assert again.to_list() == recycled.candidates.to_list()


pushing = pytest.mark.filterwarnings(UPLOAD_WARNING)


@pushing
def test_push_and_load_back(hub: LocalHub, recycled: Recycled, tmp_path: Path) -> None:
    recycled.save_to_disk(tmp_path / "disk", repo_id="tester/made", provenance=MADE)
    before = len(hub.repos)
    url = recycled.push_to_hub("tester/made", provenance=MADE)
    assert url.startswith(hub.url) and len(hub.repos) == before + 1
    repo = hub.repos["dataset", "tester/made"]
    assert len(repo.commits) == 2  # the Hub's own first one, and ours
    pushed = repo.files("main")
    on_disk = {p.relative_to(tmp_path / "disk").as_posix(): p.read_bytes() for p in (tmp_path / "disk").rglob("*") if p.is_file()}
    assert {name: content for name, content in pushed.items() if name != ".gitattributes"} == on_disk
    candidates, flat, scores = config_names(recycled.report.student["student"])
    assert load_dataset("tester/made", split="train").to_list() == recycled.dataset.to_list()
    assert load_dataset("tester/made", candidates, split="train").to_list() == recycled.candidates.to_list()
    assert load_dataset("tester/made", scores, split="train").to_list() == recycled.scores.to_list()
    assert load_dataset("tester/made", flat, split="train").features == recycled.dataset.features


@pushing
def test_a_published_candidates_repo_is_a_teacher(hub: LocalHub, recycled: Recycled, student: Student) -> None:
    recycled.push_to_hub("tester/made")
    again = recycle(
        recycled.rows.select_columns(["id", "instruction", "input", "output"]),
        teacher="replay:tester/made",
        student=student,
        selector=Selector(keep="all"),
    )
    assert decisions(again) == decisions(recycled)


FAULTS = {
    "river": ("no tags", "stop"),
    "clock": ("I'm sorry, but I can't help with that.", "stop"),
    "garden": ("Too short.\n[Better Answer]\nThe first half", "length"),
    "engine": ("", "stop"),
    # Not a fault, but what a parser would shorten once more if it read it twice.
    "letter": ("Short.\n[Better Answer]\n[Start]\n[Start]\nFar away.\n[End]", "stop"),
}


def fallible(body: dict[str, Any]) -> tuple[str, str]:
    """A teacher that fails in every way in which a reply can."""
    asked = body["messages"][1]["content"]
    return next((reply for noun, reply in FAULTS.items() if f"about the {noun} " in asked), None) or reflect(body)


def no_instruction_for_islands(n: int, body: dict[str, Any]) -> tuple[int, bytes] | None:
    asked = body["messages"][1]["content"]
    return (422, b"{}") if "about the island" in asked and "[New Instruction]" in asked else None


@pushing
def test_a_second_student_selects_from_what_was_published(hub: LocalHub, tmp_path: Path) -> None:
    """Replayed, the candidates are the same to the byte: their writer, critique, tokens and failures too."""
    from tiny_models import make_llama

    students = [Student(str(make_llama(tmp_path / name, seed=seed))) for seed, name in enumerate(("first", "second"))]
    everything = {"mode": "exhaustive", "selector": Selector(keep="all")}
    with LocalTGI(fallible, fault=no_instruction_for_islands) as tgi, pytest.warns(UserWarning, match="rejected"):
        first = recycle(ROWS, teacher=Teacher(tgi.url, journal=False), student=students[0], **everything)
    codes = {candidate["error"] for row in first.rows for candidate in row["candidates"]}
    assert codes == {None, "unparsable", "refused", "truncated", "empty", "rejected", "not_attempted"}
    first.push_to_hub("tester/shared")
    before = hub.repos["dataset", "tester/shared"].files("main")
    published = load_dataset("tester/shared", "candidates", split="train")
    for rows in (ROWS, published):  # the first student's own source, or what it published
        second = recycle(rows, teacher="replay:tester/shared", student=students[1], **everything)
        assert second.candidates.to_list() == first.candidates.to_list()
        second.push_to_hub("tester/shared")
        after = hub.repos["dataset", "tester/shared"].files("main")
        changed = {name.rpartition("/")[0] or name for name in after if after[name] != before.get(name)}
        assert changed == {"README.md", "reports/second", "second", "second-scores"}
        assert load_dataset("tester/shared", "second", split="train").to_list() == second.dataset.to_list()
    assert load_dataset("tester/shared", "first", split="train").to_list() == first.dataset.to_list()


@pushing
def test_a_repo_without_candidates_is_no_teacher(hub: LocalHub) -> None:
    ROWS.push_to_hub("tester/plain")
    with pytest.raises(ConfigError, match=r"^replay:tester/plain holds no replies\..*`candidates` config"):
        Teacher("replay:tester/plain").identity()


@pushing
def test_pushing_again_replaces_and_a_pull_request_does_not(hub: LocalHub, recycled: Recycled) -> None:
    recycled.push_to_hub("tester/made")
    repo = hub.repos["dataset", "tester/made"]
    flat = config_names(recycled.report.student["student"])[1]
    before = repo.files("main")
    recycled.push_to_hub("tester/made", create_pr=True, provenance=MADE)
    assert "refs/pr/1" in repo.refs
    assert repo.files("main") == before
    # A shard that an earlier, larger run left in our folders goes with the next push; other files stay.
    from huggingface_hub import HfApi

    for name in (f"{flat}/train-00001-of-00002.parquet", "notes.txt"):
        HfApi().upload_file(path_or_fileobj=b"x", path_in_repo=name, repo_id="tester/made", repo_type="dataset")
    recycled.push_to_hub("tester/made")
    assert set(repo.files("main")) == {*before, "notes.txt"}


@pushing
def test_a_second_student_on_the_same_candidates_and_on_others(hub: LocalHub, recycled: Recycled, tmp_path: Path) -> None:
    """The first student's files stay as they are; other candidates, which its scores would not fit, are refused."""
    from tiny_models import make_llama

    with LocalTGI() as tgi:
        results = [
            recycle(
                rows, teacher=Teacher(tgi.url, journal=False), student=Student(folder), mode=mode, selector=Selector(keep="all")
            )
            for rows, mode, folder in (
                (ROWS, "exhaustive", str(make_llama(tmp_path / "first"))),
                (ROWS, "exhaustive", str(make_llama(tmp_path / "second", seed=1))),
                (ROWS.select(range(9)), "exhaustive", str(make_llama(tmp_path / "third", seed=2))),
            )
        ]
    results[0].push_to_hub("tester/shared")
    before = hub.repos["dataset", "tester/shared"].files("main")
    results[1].push_to_hub("tester/shared")
    after = hub.repos["dataset", "tester/shared"].files("main")
    changed = {name for name in after if after[name] != before.get(name)}
    assert {name.rpartition("/")[0] or name for name in changed} == {"README.md", "reports/second", "second", "second-scores"}
    assert load_dataset("tester/shared", "first", split="train").to_list() == results[0].dataset.to_list()
    assert load_dataset("tester/shared", split="train").to_list() == results[0].dataset.to_list()
    with pytest.raises(HubError, match=r"another student from other candidates.*--overwrite"):
        results[2].push_to_hub("tester/shared")
    assert hub.repos["dataset", "tester/shared"].files("main") == after
    results[2].push_to_hub("tester/shared", overwrite=True)
    left = hub.repos["dataset", "tester/shared"].files("main")
    folders = {name.rpartition("/")[0] for name in left if "/" in name}
    assert folders == {"candidates", "third", "third-scores", "reports/third"}


@pushing
def test_repos_that_may_not_be_written_to(hub: LocalHub, recycled: Recycled, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    HfApi().create_repo("tester/other", repo_type="dataset")
    HfApi().upload_file(path_or_fileobj=b"precious", path_in_repo="data.txt", repo_id="tester/other", repo_type="dataset")
    with pytest.raises(HubError, match=r"was not made by this tool.*--overwrite"):
        recycled.push_to_hub("tester/other")
    HfApi().create_repo("tester/card", repo_type="dataset")
    HfApi().upload_file(
        path_or_fileobj=b"---\nlicense: mit\n---\nMine", path_in_repo="README.md", repo_id="tester/card", repo_type="dataset"
    )
    with pytest.raises(HubError, match=r"was not made by this tool"):
        recycled.push_to_hub("tester/card")
    recycled.push_to_hub("tester/other", overwrite=True)
    assert hub.repos["dataset", "tester/other"].files("main")["data.txt"] == b"precious"
    with pytest.raises(HubError, match=r"exists and is public.*--private"):
        recycled.push_to_hub("tester/other", private=True)
    recycled.push_to_hub("tester/secret", private=True)
    assert hub.repos["dataset", "tester/secret"].private
    with pytest.raises(HubError, match="is no repo name"):
        recycled.push_to_hub("not a name!")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    hub.tokens.clear()
    with pytest.raises(HubError, match=r"token.*hf auth login"):
        recycled.push_to_hub("tester/made")


def test_nothing_kept_is_saved_and_not_pushed(tgi: LocalTGI, student: Student, tmp_path: Path) -> None:
    with LocalTGI(lambda body: ("no tags", "stop")) as dumb:
        result = recycle(ROWS, teacher=Teacher(dumb.url, journal=False), student=student)
    assert result.report.kept == 0 and set(result.rows["reason"]) == {"teacher_failed"}
    assert set(result.rows["origin"]) == {"original"}
    result.save_to_disk(tmp_path)
    assert len(list(tmp_path.rglob("*.parquet"))) == 2 and len(result.dataset) == 0
    assert tuple(result.dataset.column_names) == FLAT_COLUMNS
    assert len(load_dataset(str(tmp_path), "candidates", split="train")) == 30
    with pytest.raises(ValueError):  # no default config either, rather than one without files
        load_dataset(str(tmp_path), split="train")
    with pytest.raises(HubError, match=r"nothing to push.*teacher_failed \(30\)"):
        result.push_to_hub("tester/none")


def test_wrong_arguments(student: Student, teacher: Teacher) -> None:
    with pytest.raises(ConfigError, match=r"no mode 'fast'.*selective, exhaustive"):
        recycle(ROWS, teacher=teacher, student=student, mode="fast")
    with pytest.raises(srt_hf.SrtError, match="cannot be found"):
        recycle(ROWS, teacher=teacher, student="/no/such/model")


@pytest.fixture(scope="module")
def real_rows(shared: Path) -> Dataset:
    return srt_hf.load_rows(str(shared / "data" / "alpaca_cherry_5_percent.json"))


@pytest.mark.slow
def test_3111_real_rows_choose_the_same_in_both_modes(real_rows: Dataset, shared: Path, tmp_path: Path) -> None:
    import torch

    results = []
    torch.set_num_threads(os.cpu_count() or 1)  # conftest gives one, which suits tiny models
    with LocalTGI() as tgi:
        for mode in ("selective", "exhaustive"):
            student = Student(str(shared / "oracle" / "student"), template="vicuna", dtype="float32")
            teacher = Teacher(tgi.url, journal=tmp_path / "journal.sqlite")
            results.append(recycle(real_rows, teacher=teacher, student=student, mode=mode))
            print(results[-1].report.table())
        distinct = {json.dumps(body["messages"]) for body in tgi.chats}
        assert len(tgi.chats) == len(distinct)  # nothing was bought twice, across both runs
    assert decisions(results[0]) == decisions(results[1]) and results[0].report.rows == 3111
