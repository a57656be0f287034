"""Test sets in the layouts that they are published in, and files of answers matched to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srt_hf.errors import ConfigError, DataError
from srt_hf.evaluation.answer_files import Recorded
from srt_hf.evaluation.sets import Question, load_set, load_sets


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PUBLISHED = {
    "vicuna": (80, lambda n: {"question_id": n, "text": f"Ask {n}", "category": "generic"}, "vicuna/1"),
    "koala": (180, lambda n: {"id": f"koala_{n}", "prompt": f"Ask {n}"}, "koala/koala_1"),
    "wizardlm": (218, lambda n: {"idx": n, "Skill": "Math", "Difficulty": 3, "Instruction": f"Ask {n}"}, "wizardlm/1"),
    "self-instruct": (
        252,
        lambda n: {
            "id": f"user_oriented_task_{n}",
            "motivation_app": "Gmail",
            "instruction": f"Ask {n}",
            "instances": [{"input": "", "output": "…"}],
        },
        "self-instruct/user_oriented_task_1",
    ),
    "lima": (300, lambda n: {"conversations": f"Ask {n}"}, "lima/1"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_five_published_layouts(name: str, tmp_path: Path) -> None:
    count, row, first = PUBLISHED[name]
    rows = [row(n) for n in range(1, count + 1)]
    found = load_set(write(tmp_path / "set.jsonl", rows))
    assert found.name == name and found.questions[0] == Question(first, "Ask 1")
    assert len({question.id for question in found.questions}) == count
    (tmp_path / "set.json").write_text(json.dumps(rows, indent=1))
    assert load_set(tmp_path / "set.json") == found
    half = load_set(write(tmp_path / "half.jsonl", rows[:50]))
    assert half.name == "half" and half.questions[0].instruction == "Ask 1"  # half of a set is not the set


def test_the_real_vicuna_set(shared: Path) -> None:
    found = load_set(shared / "data" / "vicuna_test_set.jsonl")
    assert (found.name, len(found.questions)) == ("vicuna", 80)
    assert found.questions[4] == Question("vicuna/5", "Can you explain the basics of quantum computing?")


def test_inputs_lima_lists_and_sets_of_your_own(tmp_path: Path) -> None:
    row = {"id": "a", "instruction": "Add.", "instances": [{"input": "1 and 2", "output": "3"}]}
    [question] = load_set(write(tmp_path / "a.jsonl", [row])).questions
    assert question.text == "Add.\n1 and 2" and question.messages == [{"role": "user", "content": "Add.\n1 and 2"}]
    [question] = load_set(write(tmp_path / "b.jsonl", [{"conversations": ["Hello?"], "source": "x"}])).questions
    assert question.instruction == "Hello?"
    own = load_set(write(tmp_path / "own.jsonl", [{"instruction": "Add.", "input": "1 and 2"}]))
    assert own.questions == [Question("own/1", "Add.", "1 and 2")]
    twice = load_set(write(tmp_path / "twice.jsonl", [{"id": 1, "prompt": "a"}, {"id": 1, "prompt": "b"}]))
    assert [question.id for question in twice.questions] == ["twice/1", "twice/2"]


def test_a_digest_is_of_what_is_asked(tmp_path: Path) -> None:
    a = load_set(write(tmp_path / "a.jsonl", [{"prompt": "x"}, {"prompt": "y"}]))
    b = load_set(write(tmp_path / "b.jsonl", [{"instruction": "x"}, {"instruction": "y"}]))
    assert a.digest == b.digest != load_set(write(tmp_path / "c.jsonl", [{"prompt": "y"}, {"prompt": "x"}])).digest


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"question": "a?"}\n', "unknown layout: its fields are 'question'. Known are those of Vicuna (text)"),
        ('{"text": "a"}\nno json\n', "Line 2 of"),
        ('{"text": "a"}\n{"text": ""}\n', "Row 2 of the test set"),
        ('{"text": "a"}\n{"prompt": "b"}\n', "Row 2 of the test set"),
        ('{"instruction": "a", "instances": []}\n', "has not one instance"),
        ('{"instruction": "a", "input": 3}\n', "has not one instance"),
        ('["a", "b"]', "holds no rows of named fields"),
        ("", "holds no rows of named fields"),
        ("[]", "holds no rows of named fields"),
    ],
)
def test_other_files_are_one_clear_line(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(content)
    with pytest.raises(DataError) as raised:
        load_sets(str(tmp_path / "set.jsonl"))
    assert complaint in str(raised.value) and "\n" not in str(raised.value) and "set.jsonl" in str(raised.value)


def test_sets_that_are_missing_or_given_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "x"}])
    with pytest.raises(ConfigError, match="No test set is named"):
        load_sets("")
    with pytest.raises(ConfigError, match="Two test sets are both a"):
        load_sets(f"{path}, {path}")
    with pytest.raises(DataError, match="cannot be read"):
        load_sets(str(tmp_path / "b.jsonl"))
    (tmp_path / "c.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        load_sets(str(tmp_path / "c.jsonl"))


QUESTIONS = [Question("vicuna/1", "One?"), Question("vicuna/2", "Two?"), Question("mine/1", "Add.", "1 and 2")]


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 1, "text": "One?", "category": "x", "response": "Yes."},  # the paper's authors
        {"text": "One?", "Answer1": "Yes.", "Answer2": "No."},
        {"instruction": "One?", "output": "Yes.", "generator": "who"},  # AlpacaEval
        {"instruction": "One?", "input": "", "output": "Yes."},
        {"id": "vicuna/1", "answer": "Yes."},
        {"question_id": "vicuna/1", "model_id": "who", "choices": [{"index": 0, "turns": ["Yes.", "More."]}]},  # FastChat
        {"question_id": "vicuna/1", "answer_id": "x", "text": "Yes."},
        {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Yes."}]},
        {"id": "vicuna/1", "instruction": "One?", "model_answer": "Yes.", "baseline_answer": "No."},
        {"prompt": "One?", "completion": "Yes."},
        {"conversations": ["One?"], "generated_text": "Yes."},
    ],
)
def test_layouts_of_answers(row: dict[str, Any], tmp_path: Path) -> None:
    answers = Recorded(write(tmp_path / "a.jsonl", [row]), "model").answer(QUESTIONS)
    assert {id: answer.text for id, answer in answers.items()} == {"vicuna/1": "Yes."}


def test_a_file_of_two_models_and_the_form_with_data(tmp_path: Path) -> None:
    path = tmp_path / "koala_wrap.json"
    path.write_text(
        json.dumps({"Meta_Info": {"dataset_name": "x"}, "data": [{"prompt": "Two?", "Answer1": "a", "Answer2": "b"}]})
    )
    assert Recorded(path, "model").answer(QUESTIONS)["vicuna/2"].text == "a"
    assert Recorded(path, "baseline").answer(QUESTIONS)["vicuna/2"].text == "b"
    assert Recorded(path, "model").about()["revision"] != Recorded(path, "baseline").about()["revision"]


def test_ids_inputs_and_texts_that_several_sets_share(tmp_path: Path) -> None:
    with_input = Recorded(write(tmp_path / "a.jsonl", [{"instruction": "Add.", "input": "1 and 2", "output": "3"}]), "model")
    assert list(with_input.answer(QUESTIONS)) == ["mine/1"]
    bare = write(tmp_path / "b.jsonl", [{"id": 1, "answer": "x"}])
    with pytest.raises(DataError, match="fits several questions: vicuna/1 and mine/1"):
        Recorded(bare, "model").answer(QUESTIONS)
    # An id of another set does not make another question of it.
    assert list(
        Recorded(write(tmp_path / "c.jsonl", [{"idx": 2, "prompt": "One?", "answer": "x"}]), "model").answer(QUESTIONS)
    ) == ["vicuna/1"]
    both = [Question("vicuna/1", "One?"), Question("lima/1", "One?")]
    once = Recorded(write(tmp_path / "d.jsonl", [{"prompt": "One?", "answer": "x"}]), "model")
    assert {id: answer.text for id, answer in once.answer(both).items()} == {"vicuna/1": "x", "lima/1": "x"}
    rows = [{"prompt": "One?", "answer": "x"}, {"prompt": "One?", "answer": "y"}]
    two = Recorded(write(tmp_path / "e.jsonl", rows), "model")
    assert [answer.text for answer in two.answer(both).values()] == ["x", "y"]
    with pytest.raises(DataError, match="two answers to the question vicuna/1"):
        two.answer(both[:1])


def test_files_without_answers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown layout: its fields are 'id'\. An answer is under one of response"):
        Recorded(write(tmp_path / "a.jsonl", [{"id": 1}]), "model")
    other = Recorded(write(tmp_path / "b.jsonl", [{"prompt": "Never asked", "answer": "x"}]), "model")
    with pytest.raises(DataError, match="None of the 1 answers"):
        other.answer(QUESTIONS)
    # A row without an answer among others is a missing answer.
    rows = [{"prompt": "One?", "response": "x"}, {"prompt": "Two?", "response": None}]
    assert list(Recorded(write(tmp_path / "c.jsonl", rows), "model").answer(QUESTIONS)) == ["vicuna/1"]


def test_answers_to_no_question_are_named(tmp_path: Path) -> None:
    """Ids that count from 0 fit the questions' ids, and every answer belongs to another question."""
    path = write(tmp_path / "a.jsonl", [{"id": n, "answer": f"to {n}"} for n in range(3)])
    with pytest.warns(UserWarning, match=r"1 of 3 answers in .* are to no question of the test sets \(0\)"):
        Recorded(path, "model").answer([Question(f"vicuna/{n}", f"Question {n}?") for n in (1, 2)])


def test_a_file_that_begins_with_an_answer_that_failed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"id": 1, "answer": None}, {"id": 2, "answer": "x"}])
    assert Recorded(path, "model").answer([Question("vicuna/2", "Two?")])["vicuna/2"].text == "x"
