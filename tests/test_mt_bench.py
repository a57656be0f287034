"""MT-Bench with a served model and a served judge: FastChat's files field by field, and by its own loaders where it is installed,
temperatures, grades that cannot be read, runs that go on, and every complaint."""

from __future__ import annotations

import importlib
import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SECRET
from tgi_server import Answer, LocalTGI

from srt_hf.evaluation import fastchat, mtbench
from srt_hf.evaluation.results import Results

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write about the sea.", "Now in one line."]},
    {"question_id": 101, "category": "reasoning", "turns": ["Who is second?", "And who is last?"]},
    {"question_id": 111, "category": "math", "turns": ["What is 1 + 1?", "And doubled?"]},
    {"question_id": 141, "category": "stem", "turns": ["What is an atom?", "And what is in it? {answer_1}"]},
]
REFERENCES = [
    {"question_id": id, "answer_id": "x", "model_id": "gpt-4", "choices": [{"index": 0, "turns": turns}], "tstamp": 1.0}
    for id, turns in ((101, ["You are.", "Uncertain."]), (111, [2, 4]))  # bare numbers occur in published ones
]
Run = Callable[..., tuple[int, str, str]]


def answer(body: dict[str, Any]) -> Answer:
    asked = [message["content"] for message in body["messages"] if message["role"] == "user"]
    return f"Answer {len(asked)} to: {asked[-1]}", "stop"


def judged(body: dict[str, Any]) -> Answer:
    """Grades that follow from what is asked: 8 for a first turn, 6.5 for a second one."""
    return ("It drifts. Grade: [[6.5]]" if "second answer" in body["messages"][1]["content"] else "Fine. Grade: [[8]]"), "stop"


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, run_script: Run, tmp_path: Path) -> Run:
    """Run the subcommand in this process, in an empty folder -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    write(Path("question.jsonl"), QUESTIONS)
    write(Path("references.jsonl"), REFERENCES)

    def run(model: str, judge: str, *more: str) -> tuple[int, str, str]:
        given = ("--questions", "question.jsonl", "--reference_answers", "references.jsonl", "--model", model, "--judge", judge)
        return run_script("evaluate.py", "mt-bench", *given, "--journal", "journal.sqlite", *more)

    return run


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


ANSWERS, GRADES = "mt_bench/model_answer/org_model.jsonl", "mt_bench/model_judgment/org_judge_single.jsonl"


def test_answers_and_grades_are_fastchats_files_and_the_averages_follow(evaluate: Run) -> None:
    with LocalTGI(answer, model_id="org/model") as model, LocalTGI(judged, model_id="org/judge") as judge:
        code, out, err = evaluate(model.url, judge.url)
    assert (code, err) == (0, "")
    rows = read(ANSWERS)
    assert [row["question_id"] for row in rows] == [81, 101, 111, 141]
    assert [list(row) for row in rows] == [["question_id", "answer_id", "model_id", "choices", "tstamp"]] * 4
    assert rows[0]["choices"] == [{"index": 0, "turns": ["Answer 1 to: Write about the sea.", "Answer 2 to: Now in one line."]}]
    assert {row["model_id"] for row in rows} == {"org_model"} and len({row["answer_id"] for row in rows}) == 4

    second = next(chat for chat in model.chats if chat["messages"][-1]["content"] == "Now in one line.")
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    heat = {chat["messages"][0]["content"]: chat.get("temperature") for chat in model.chats}
    assert heat == {"Write about the sea.": 0.7, "What is an atom?": 0.1, "Who is second?": 0.0, "What is 1 + 1?": 0.0}

    grades = read(GRADES)
    fields = ["question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"]
    assert [list(row) for row in grades] == [fields] * 8
    assert {(row["turn"], row["score"]) for row in grades} == {(1, 8), (2, 6.5)}
    names = {(row["question_id"], row["turn"]): row["judge"] for row in grades}
    assert names[81, 1] == ["org/judge", "srt_hf-single-v1"]
    assert names[111, 2] == ["org/judge", "srt_hf-single-math-v1-multi-turn"]
    prompts = {(row["question_id"], row["turn"]): row["user_prompt"] for row in grades}
    assert "Answer 1 to: What is 1 + 1?" in prompts[111, 1] and "reference answer\n2\n" in prompts[111, 1]
    assert "reference answer\n4\n" in prompts[111, 2] and "reference" not in prompts[81, 2]
    assert "And what is in it? {answer_1}\n" in prompts[141, 2]  # a slot in a text is text

    results = Results.load("mt-bench.json")
    assert {metric.name: metric.value for metric in results.metrics} == {
        "average": 7.25,
        "first turn": 8.0,
        "second turn": 6.5,
        "words of an answer": pytest.approx(sum(len(t.split()) for r in rows for t in r["choices"][0]["turns"]) / 8),
    }
    assert results.metrics[0].interval is None  # all questions are graded alike, which is not certainty
    assert re.search(r"^95 % +– +– +–$", out, re.M) and results.details["missing"] == {"no answer": {}, "no grade": {}}
    assert re.search(r"^math +7\.25 +8\.00 +6\.50$", out, re.M) and re.search(r"^all +7\.25 +8\.00 +6\.50$", out, re.M)
    assert SECRET not in Path("mt-bench.json").read_text()


@pytest.mark.filterwarnings("ignore")
def test_fastchats_own_loaders_read_the_files(evaluate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    common = pytest.importorskip("fastchat.llm_judge.common", reason="fschat 0.2.36 is not installed", exc_type=ImportError)
    with LocalTGI(answer, model_id="org/model") as model, LocalTGI(judged, model_id="org/judge") as judge:
        assert evaluate(model.url, judge.url)[0] == 0
    questions = common.load_questions("question.jsonl", None, None)
    answers = common.load_model_answers("mt_bench/model_answer")
    models = common.get_model_list("mt_bench/model_answer")
    common.check_data(questions, answers, {}, models, {})
    assert models == ["org_model"] and answers["org_model"][111]["choices"][0]["turns"][1] == "Answer 2 to: And doubled?"
    grades = common.load_single_model_judgments(GRADES)
    assert set(grades) == {("org/judge", f"srt_hf-{name}") for name in fastchat._NAMES.values()}
    assert grades["org/judge", "srt_hf-single-math-v1"][111, "org_model"]["score"] == 8

    show = importlib.import_module("fastchat.llm_judge.show_result")
    lines = [json.loads(line) for line in Path(GRADES).read_text().splitlines()]
    for line in lines:
        line["score"] = -1 if line["question_id"] == 111 else line["score"] + line["question_id"] % 2
    write(Path("regraded.jsonl"), lines)
    capsys.readouterr()
    show.display_result_single(Namespace(input_file="regraded.jsonl", bench_name="mt_bench", model_list=None))
    theirs = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if line.startswith("org_model")]
    rows = [{1: 8 + id % 2, 2: 6.5 + id % 2} for id in (81, 101, 141)]
    average, first, second = (metric.value for metric in mtbench._averages([*rows, {}]))
    assert [round(value or 0, 4) for value in (first, second, average)] == [round(value, 4) for value in theirs]
    for text in ("Rating: [[8]]", "[[7.5]] or [3]", "see [4]", "[[6.]]"):
        found = common.one_score_pattern.search(text) or common.one_score_pattern_backup.search(text)
        assert fastchat.rating(text) == float(found[1])


def test_a_reply_without_a_grade_is_asked_about_once_more_and_never_averaged(evaluate: Run) -> None:
    def fickle(body: dict[str, Any]) -> Answer:
        again, prompt = len(body["messages"]) > 2, body["messages"][1]["content"]
        if "the sea" in prompt:
            return ("Grade: [[3]]" if again else "A fine answer about the sea."), "stop"
        if "1 + 1" in prompt:
            return "It is worth eight points, or [[80]] of them.", "stop"
        return judged(body)

    with LocalTGI(answer, model_id="org/model") as model, LocalTGI(fickle, model_id="org/judge") as judge:
        code, out, err = evaluate(model.url, judge.url)
    assert (code, err) == (0, "")
    again = [chat["messages"] for chat in judge.chats if len(chat["messages"]) > 2]
    assert len(again) == 4 and all(messages[-1]["content"] == fastchat.REMINDER for messages in again)
    grades = {(row["question_id"], row["turn"]): row for row in read(GRADES)}
    assert grades[81, 1]["score"] == 3 and grades[81, 1]["judgment"] == "A fine answer about the sea.\n\nGrade: [[3]]"
    assert grades[111, 1]["score"] == grades[111, 2]["score"] == -1
    results = Results.load("mt-bench.json")
    assert results.metrics[1].value == pytest.approx((3 + 8 + 8) / 3)
    assert results.details["missing"]["no grade"] == {"unparsable": 2}
    assert results.details["categories"]["math"]["average"] is None
    assert "There is no grade for 2 turns (2 unparsable), which no average counts." in out


@pytest.mark.filterwarnings("ignore:.* rejected the request")
def test_what_cannot_be_answered_is_named_and_not_graded(evaluate: Run) -> None:
    def fault(n: int, body: dict[str, Any]) -> tuple[int, bytes] | None:
        rejected = "doubled" in body["messages"][-1]["content"] or body["messages"][-1]["content"] == "Who is second?"
        return (422, b'{"error": "Input validation error: no", "error_type": "validation"}') if rejected else None

    with LocalTGI(answer, model_id="org/model", fault=fault) as model, LocalTGI(judged, model_id="org/judge") as judge:
        code, out, _ = evaluate(model.url, judge.url)
    assert code == 0 and "There is no answer for 3 turns (2 rejected, 1 not_attempted)" in out
    turns = {row["question_id"]: row["choices"][0]["turns"] for row in read(ANSWERS)}
    assert turns[101] == ["$ERROR$", "$ERROR$"] and turns[111] == ["Answer 1 to: What is 1 + 1?", "$ERROR$"]
    assert [(row["question_id"], row["turn"]) for row in read(GRADES)] == [(81, 1), (81, 2), (111, 1), (141, 1), (141, 2)]


def test_a_stopped_run_goes_on_and_other_models_grades_stay(evaluate: Run) -> None:
    foreign = json.dumps({"question_id": 81, "model": "other", "judge": ["org/judge", "x"], "score": 5, "turn": 1}) + "  "
    Path(GRADES).parent.mkdir(parents=True)
    Path(GRADES).write_text(foreign + "\n")
    with LocalTGI(answer, model_id="org/model") as model:
        dead = LocalTGI(judged, model_id="org/judge", fault=lambda n, body: (401, b"{}") if n > 3 else None)
        with dead as judge:
            code, _, err = evaluate(model.url, judge.url)
            assert code == 1 and err.startswith("error: ") and "SRT_HF_JUDGE_KEY" in err and err.count("\n") == 1
            asked = len(model.chats)
            judge.fault = None
            Path(ANSWERS).with_name("kept.jsonl").write_text(Path(ANSWERS).read_text())
            assert evaluate(model.url, judge.url)[0] == 0
            assert len(model.chats) == asked == 8
            paid = len(judge.chats)
            Path("journal.sqlite").rename("journal.old")  # the file of answers alone is enough
            assert evaluate(model.url, judge.url)[0] == 0 and len(model.chats) == asked
            assert len(judge.chats) == paid + 8
    lines = Path(GRADES).read_text().split("\n")
    assert lines[0] == foreign and len(lines) == 10


def test_answers_of_another_model_are_not_overwritten_and_can_be_graded(evaluate: Run) -> None:
    with LocalTGI(answer, model_id="org/model") as model, LocalTGI(judged, model_id="org/judge") as judge:
        assert evaluate(model.url, judge.url)[0] == 0
        before = Path(ANSWERS).read_bytes()
        code, _, err = evaluate(model.url, judge.url, "--max_tokens", "7")
        assert code == 1 and "did not give to these questions in this way. Give the new ones another --model_id" in err
        assert evaluate(model.url, judge.url, "--max_tokens", "7", "--model_id", "short")[0] == 0
        assert Path(ANSWERS).read_bytes() == before and read("mt_bench/model_answer/short.jsonl")
        asked = len(model.chats)
        code, _, _ = evaluate(ANSWERS, judge.url, "--output", "recorded.json")
        assert code == 0 and len(model.chats) == asked
    recorded = Results.load("recorded.json")
    assert recorded.model["name"] == "org_model" and recorded.metrics[0].value == 7.25


def test_fastchats_own_wording(evaluate: Run) -> None:
    rows = [
        {"name": name, "system_prompt": f"System of {name}", "prompt_template": "Q {question_2} A {answer_2} R {ref_answer_2}"}
        for name in ("single-math-v1-multi-turn",)
    ]
    for name, template in (
        ("single-v1", "Q {question} A {answer}"),
        ("single-math-v1", "Q {question} A {answer} R {ref_answer_1}"),
        ("single-v1-multi-turn", "Q {question_1} {question_2} A {answer_1} {answer_2}"),
    ):
        rows.append({"name": name, "system_prompt": f"System of {name}", "prompt_template": template})
    write(Path("prompts.jsonl"), rows)
    with LocalTGI(answer, model_id="org/model") as model, LocalTGI(judged, model_id="org/judge") as judge:
        assert evaluate(model.url, judge.url, "--judge_prompts", "prompts.jsonl")[0] == 0
        systems = {chat["messages"][0]["content"] for chat in judge.chats}
        assert systems == {f"System of {row['name']}" for row in rows}
        found = {(row["question_id"], row["turn"]): (row["judge"][1], row["user_prompt"]) for row in read(GRADES)}
        assert found[111, 1] == ("single-math-v1", "Q What is 1 + 1? A Answer 1 to: What is 1 + 1? R 2")
        assert found[111, 2] == ("single-math-v1-multi-turn", "Q And doubled? A Answer 2 to: And doubled? R 4")
        # Other wording, other grades.
        code, _, err = evaluate(model.url, judge.url, "--compare", "mt-bench.json")
        assert code == 1 and "cannot be compared, they differ in wording" in err


def test_a_model_in_this_process(evaluate: Run, student_folder: str) -> None:
    with LocalTGI(judged, model_id="org/judge") as judge:
        given = (student_folder, judge.url, "--template", "vicuna", "--max_tokens", "4", "--dtype", "float32")
        code, _, err = evaluate(*given, "--model_id", "tiny")
        assert code == 0, err
        first = Path("mt_bench/model_answer/tiny.jsonl").read_text()
        assert evaluate(*given, "--model_id", "tiny")[0] == 0
    assert Path("mt_bench/model_answer/tiny.jsonl").read_text() == first
    assert len(read(GRADES)) == 8 and Results.load("mt-bench.json").model["temperature"] == "by category"


def test_without_reference_answers_it_says_so(evaluate: Run) -> None:
    with LocalTGI(answer, model_id="org/model") as model, LocalTGI(judged, model_id="org/judge") as judge:
        code, out, _ = evaluate(model.url, judge.url, "--reference_answers", "")
    assert code == 0 and "graded without reference answers, unlike published grades" in out
    assert {row["judge"][1] for row in read(GRADES)} == {"srt_hf-single-v1", "srt_hf-single-v1-multi-turn"}


BAD = [
    ("question.jsonl", [{"question_id": 1, "category": "math", "turns": ["One."]}], "Row 1 of question.jsonl is no question"),
    ("question.jsonl", [*QUESTIONS, QUESTIONS[0]], "question.jsonl holds one question_id twice."),
    ("references.jsonl", REFERENCES[:1], "lacks the reference answers to 1 of the questions, the first is 111"),
    ("references.jsonl", [{"question_id": 101, "text": "You."}], "Row 1 of references.jsonl is no answer in FastChat's format"),
    ("prompts.jsonl", [{"name": "single-v1"}], "prompts.jsonl has no single-v1 with system_prompt and prompt_template"),
    ("answers.jsonl", REFERENCES, "answers.jsonl has no two answers to 2 of the questions, the first is 81"),
    (GRADES, [{"question_id": 81}], "is no file of FastChat's judgments. Move it away"),
]


@pytest.mark.parametrize(("file", "rows", "complaint"), BAD)
def test_a_bad_file_is_one_line_before_anybody_is_asked(
    evaluate: Run, file: str, rows: list[dict[str, Any]], complaint: str
) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write(Path(file), rows)
    more = ["--judge_prompts", file] if file == "prompts.jsonl" else []
    with LocalTGI(answer, model_id="org/model") as model, LocalTGI(judged, model_id="org/judge") as judge:
        code, _, err = evaluate(file if file == "answers.jsonl" else model.url, judge.url, *more)
        assert code in (1, 2) and complaint in err and err.count("\n") == 1, err
        assert not model.chats and not judge.chats


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--temperature", "0.7"], "MT-Bench has a temperature for each category. Leave --temperature out."),
        (["--model_id", "../x"], "cannot name a file"),
        (["--questions", ""], "No questions are named."),
    ],
)
def test_a_wrong_option_is_one_line(evaluate: Run, options: list[str], complaint: str) -> None:
    code, _, err = evaluate("http://127.0.0.1:9", "http://127.0.0.1:9", *options)
    assert code == 2 and complaint in err and err.count("\n") == 1


def test_help(evaluate: Run) -> None:
    code, out, _ = evaluate("", "", "--help")
    assert code == 0 and "MT-Bench: a model answers 80 questions" in out and "--bench_dir" in out


def test_no_grade_takes_the_place_of_a_grade(tmp_path: Path) -> None:
    file = tmp_path / "judge_single.jsonl"
    row = {"question_id": 1, "turn": 1, "model": "m", "judge": ["j", "srt_hf-single-v1"], "score": 8}
    fastchat.write_judgments(file, [row])
    fastchat.write_judgments(file, [{**row, "score": fastchat.NO_GRADE}])
    assert [found["score"] for _, found in fastchat.read_judgments(file)] == [8]
    fastchat.write_judgments(file, [{**row, "score": 7}])
    assert [found["score"] for _, found in fastchat.read_judgments(file)] == [7]
