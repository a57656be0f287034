"""Rows in any usual layout, ids, flat rows, and rows as TRL documents them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

import srt_hf
from srt_hf.errors import ConfigError, DataError
from srt_hf.prompts import TEMPLATES, guess_instruction
from srt_hf.rows import flatten, row_id, to_messages, to_prompt_completion, top, triple, with_ids
from srt_hf.schema import FLAT_COLUMNS, features
from srt_hf.sources import load_rows, prepare

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_layouts() -> None:
    assert triple({"instruction": "a", "input": None, "output": None}) == ("a", "", "")
    assert triple({"instruction": "a", "output": "c", "messages": []}) == ("a", "", "c")
    sharegpt = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert triple({"conversations": sharegpt}) == ("Be kind.\n\nHi", "", "Hello")
    with pytest.raises(DataError, match="one question and one answer"):
        triple({"messages": TURNS * 2})
    with pytest.raises(DataError, match=r"no columns `instruction` and `output`; it has `prompt`, `text`\. Rename yours"):
        triple({"prompt": "a", "text": "b"})
    with pytest.raises(DataError, match="`output` holds int"):
        triple({"instruction": "a", "output": 3})


def test_ids_are_distinct_and_depend_on_the_text_alone() -> None:
    data = Dataset.from_dict({"instruction": ["a", "b", "a", "a"], "output": ["x", "y", "x", "z"]})
    ids = with_ids(data)["id"][:]
    assert len(set(ids)) == 4
    assert ids[0] == row_id(("a", "", "x")) and ids[2] == row_id(("a", "", "x"), 1)
    assert with_ids(data.select([1, 0, 3, 2]))["id"][:] == [ids[1], ids[0], ids[3], ids[2]]
    # No separator between the parts can be forged by their text.
    assert row_id(("a", "b", "c")) != row_id(("a", "", "bc"))


def test_ids_of_the_dataset() -> None:
    data = Dataset.from_dict({"instruction": ["a", "b"], "output": ["x", "y"], "n": [7, 8], "same": [1, 1]})
    assert with_ids(data, "n")["id"][:] == ["7", "8"]
    assert with_ids(data.rename_column("n", "id"))["id"][:] == ["7", "8"]
    with pytest.raises(DataError, match="The id column `same` holds '1' more than once"):
        with_ids(data, "same")
    with pytest.raises(DataError, match=r"The id column `gaps` is null in row 1 \(the first is 0\)"):
        with_ids(data.add_column("gaps", ["None", None]), "gaps")
    with pytest.raises(DataError, match="no id column `nr`; the dataset has instruction, output, n, same"):
        with_ids(data, "nr")


def test_flatten_has_the_flat_columns() -> None:
    candidates = [
        {"origin": "original", "instruction": "a", "input": "i", "output": "b"},
        {"origin": "response", "instruction": "a", "input": "i", "output": "c"},
    ]
    scores = [{"ifd": 0.9, "r_ifd": 0.8}, {"ifd": 0.7, "r_ifd": None}]
    row = {"id": "1", "candidates": candidates, "scores": scores, "choice": 1, "origin": "response", "reason": "response_chosen"}
    flat = flatten(row)
    assert tuple(flat) == FLAT_COLUMNS
    assert flat["output"] == "c" and flat["original_output"] == "b" and flat["original_ifd"] == 0.9 and flat["r_ifd"] is None
    assert Dataset.from_list([row]).map(flatten, remove_columns=["candidates", "scores", "choice"]).features == features(
        sorted(FLAT_COLUMNS, key=["id", "origin", "reason", *FLAT_COLUMNS].index)
    )


def test_prompt_completion() -> None:
    row = {"instruction": "Add {x}.", "input": "1 {input}", "output": "3"}
    vicuna = to_prompt_completion(row)
    assert vicuna["prompt"].endswith("USER: Add {x}.\nInput:\n1 {input} ASSISTANT:")
    assert to_prompt_completion({**row, "input": ""}, "alpaca")["prompt"].endswith("### Instruction:\nAdd {x}.\n\n### Response:")
    chat = to_prompt_completion(row, "chat")
    assert chat["prompt"] == [{"role": "user", "content": "Add {x}.\n1 {input}"}]
    assert chat["prompt"] + chat["completion"] == to_messages(row)["messages"]
    with pytest.raises(ConfigError, match=r"no template 'llama'.*vicuna"):
        to_prompt_completion(row, "llama")


def test_fault_11_vicuna_trains_with_the_space_that_the_scorer_does_not_have() -> None:
    assert to_prompt_completion({"instruction": "a", "output": "b"})["completion"] == " b"
    assert TEMPLATES["vicuna"].prompt("a").endswith("ASSISTANT:")


def test_the_templates_are_the_published_bytes(shared: Path) -> None:
    formats = json.loads((shared / "oracle" / "formats.json").read_text())
    for name in ("alpaca", "vicuna", "wizardlm"):
        assert TEMPLATES[name].no_input == formats[name]["no_input"] and TEMPLATES[name].input == formats[name]["input"]
    assert guess_instruction("{output}") == formats["guess_instruction"]


def test_top() -> None:
    data = Dataset.from_dict({"id": ["d", "c", "b", "a"], "ifd": [0.5, None, 0.7, 0.5]})
    assert top(data, k=2)["id"][:] == ["b", "a"]  # the tie goes by id
    assert top(data, fraction=0.75)["id"][:] == ["d", "b", "a"]
    assert top(data, fraction=0.01)["id"][:] == ["b"]
    for wrong in ({}, {"k": 1, "fraction": 0.5}, {"k": 0}, {"fraction": 1.5}):
        with pytest.raises(ConfigError):
            top(data, **wrong)
    with pytest.raises(DataError, match="no column r_ifd"):
        top(data, by="r_ifd", k=1)


ROWS = [{"instruction": "a", "input": "i", "output": "NA"}, {"instruction": "b", "input": "", "output": "None"}]


def test_load_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(ROWS))
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "d.csv").write_text("instruction,input,output\na,i,NA\nb,,None\n")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "dict")
    for name in ("d.json", "d.jsonl", "d.csv", "d.parquet", "saved", "dict"):
        assert load_rows(str(tmp_path / name)).to_list() == ROWS, name
    with pytest.raises(DataError, match="no split 'test', only train"):
        load_rows(str(tmp_path / "dict"), split="test")


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("d.txt", "a", "suffix '.txt'"),
        ("d.json", "{", "cannot be read"),
        ("d.jsonl", "", "cannot be|empty"),
        ("d.parquet", "x", "cannot be"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=complaint) as caught:
        load_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_damaged_saved_dataset_and_no_name_at_all(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        load_rows(str(tmp_path))
    with pytest.raises(DataError, match="No dataset is named"):
        load_rows("")


def test_suffixes_may_be_capitals(tmp_path: Path) -> None:
    (tmp_path / "D.JSONL").write_text(json.dumps(ROWS[0]))
    assert len(load_rows(str(tmp_path / "D.JSONL"))) == 1


def test_columns_of_the_users_own_stay() -> None:
    """`origin` and `reason` are common names; only beside candidates or scores are they an earlier run's."""
    mine = Dataset.from_list([{**ROWS[0], "origin": "book", "reason": "nice"}])
    assert prepare(mine, id_column="origin")["id"][:] == ["book"] and "reason" in prepare(mine).column_names
    assert "reason" not in prepare(mine.add_column("scores", [[]])).column_names


@pytest.mark.parametrize("source", ["nope.jsonl", "data/nope.csv", "./nope", "../nope", "/nope/nope", "~/nope"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(DataError, match=f"There is no file or folder {source}"):
        load_rows(source)


def test_a_folder_with_a_card_is_read_as_it_is_now(tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files: default/*.parquet\n---\n"
    for parent, count in (("a", 1), ("b", 2), ("b", 3)):  # another folder of the same name, then the same with other rows
        folder = tmp_path / parent / "recycled"
        (folder / "default").mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(card)
        pq.write_table(pa.Table.from_pylist(ROWS[:1] * count), folder / "default" / "train-00000-of-00001.parquet")
        assert len(load_rows(str(folder))) == count


@pytest.mark.parametrize(("name", "text"), [("d.csv", "instruction,output\n"), ("d.json", "[]"), ("d.jsonl", "\n")])
def test_a_file_without_rows(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name} has no rows in its split 'train'"):
        load_rows(str(tmp_path / name))


def test_a_parquet_file_without_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"instruction": pa.array([], pa.string())}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet has no rows in its split 'train'"):
        load_rows(str(tmp_path / "d.parquet"))


def test_prepare() -> None:
    wizard = Dataset.from_dict({"idx": ["x"], "instruction": ["a"], "output": ["b"]})
    prepared = prepare(wizard, id_column="idx")
    assert prepared[0] == {"idx": "x", "instruction": "a", "output": "b", "input": "", "id": "x"}
    named = Dataset.from_dict({"question": ["a"], "answer": ["b"]})
    assert prepare(named, columns={"instruction": "question", "output": "answer", "input": ""})[0]["instruction"] == "a"
    with pytest.raises(DataError, match="no column questions; it has question, answer"):
        prepare(named, columns={"instruction": "questions"})
    with pytest.raises(DataError, match="of its own"):
        prepare(wizard, columns={"instruction": "idx"})
    with pytest.raises(DataError, match=r"no column `output`; it has `instruction`, `text`\. Name yours with columns= \(--ins"):
        prepare(Dataset.from_dict({"instruction": ["a"], "text": ["b"]}))
    with pytest.raises(DataError, match="The dataset is empty"):
        prepare(Dataset.from_dict({"instruction": [], "output": []}))
    with pytest.raises(DataError, match=r"`output` holds .*int64.*, not text"):
        prepare(Dataset.from_dict({"instruction": ["a"], "output": [1]}))
    with pytest.raises(DataError, match=r"`output` holds .*, not text"):
        prepare(Dataset.from_dict({"instruction": ["a"], "output": [["b"]]}))


def test_prepare_leaves_multi_turn_rows_out_and_says_so() -> None:
    chats = Dataset.from_dict({"messages": [TURNS, TURNS * 2]})
    with pytest.warns(UserWarning, match="1 of 2 rows left out"):
        assert prepare(chats)[0] | {"id": ""} == {
            "messages": TURNS,
            "instruction": "Hi",
            "input": "",
            "output": "Hello",
            "id": "",
        }
    with pytest.raises(DataError, match="single question and answer"):
        prepare(chats.select([1]))


def test_prepare_takes_a_dataset_only() -> None:
    rows = Dataset.from_list(ROWS)
    for other in (DatasetDict({"train": rows}), rows.to_iterable_dataset()):
        with pytest.raises(DataError, match=f"A Dataset is needed, and this is of type {type(other).__name__}. Choose a split"):
            prepare(other)
    for other in ("rows.jsonl", ROWS):
        with pytest.raises(DataError, match=r"of type (str|list). Load it with `srt_hf.load_rows`, .* `Dataset.from_list`"):
            prepare(other)


def test_prepare_drops_what_an_earlier_run_added() -> None:
    again = Dataset.from_dict(
        {"instruction": ["a"], "output": ["b"], "ifd": [0.5], "scores": [[]], "choice": [1], "kept": [True]}
    )
    assert prepare(again).column_names == ["instruction", "output", "ifd", "input", "id"]


def test_a_named_column_may_have_a_name_that_the_method_uses() -> None:
    data = Dataset.from_dict({"instruction": ["a"], "reason": ["b"]})
    assert prepare(data, columns={"output": "reason"})[0]["output"] == "b"


def test_ids_from_the_text_in_any_case() -> None:
    data = Dataset.from_dict({"id": ["x", "x"], "instruction": ["a", "b"], "output": ["c", "d"]})
    with pytest.raises(DataError, match="id_column ''"):
        with_ids(data)
    made = with_ids(data, "")
    assert len(set(made["id"][:])) == 2 and made["source_id"][:] == ["x", "x"]


def test_nan_is_never_at_the_top() -> None:
    data = Dataset.from_dict({"id": ["a", "b", "c"], "ifd": [float("nan"), 0.2, 0.9]})
    assert top(data, k=2)["id"][:] == ["b", "c"]


def test_public_names() -> None:
    names = "Provenance Recycled Reflector Selector Student Teacher evaluation flatten recycle reflect select top"
    for name in [*names.split(), "to_messages", "to_prompt_completion"]:
        assert getattr(srt_hf, name) is not None and name in dir(srt_hf)
