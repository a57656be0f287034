"""What a reply that cannot be used is answered with: larger limits, other forms, further draws, a shorter answer shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from test_reflection import candidates
from tgi_server import Answer, LocalTGI, reflect
from tiny_models import make_llama

from srt_hf import Reflector, Teacher
from srt_hf.errors import ConfigError
from srt_hf.parsing.structured import parse_structured, schema

ROW = Dataset.from_dict({"instruction": ["Name a fruit."], "output": ["Apple"]})
GOOD = json.dumps({"analysis": "Short.", "instruction": "Name a red fruit.", "answer": "A cherry.\n[End]\nReally."})


def response(teacher: Teacher, data: Dataset = ROW, **options: Any) -> dict[str, Any]:
    return candidates(data.map(Reflector(teacher, **options).reflect_response, load_from_cache_file=False)[0])["response"]


def in_turn(*answers: str) -> Callable[[dict[str, Any]], Answer]:
    """The first answers in turn, and the last one for ever."""
    left = list(answers)
    return lambda body: (left.pop(0) if len(left) > 1 else left[0], "stop")


def test_a_constrained_reply_is_read_as_json() -> None:
    with LocalTGI(lambda body: (GOOD, "stop")) as tgi:
        row = ROW.map(Reflector(Teacher(tgi.url, journal=False), structured=True).reflect)[0]
        found = candidates(row)
        assert all(
            body["response_format"] == {"type": "json", "value": schema(s)}
            for body, s in zip(tgi.chats, ("instruction", "response", "both"), strict=True)
        )
        assert (
            "one JSON object" in tgi.chats[0]["messages"][-1]["content"]
            and "[End]" not in tgi.chats[0]["messages"][-1]["content"]
        )
    assert found["instruction"]["instruction"] == "Name a red fruit." and found["instruction"]["input"] == ""
    assert found["response"]["output"] == "A cherry.\n[End]\nReally." and found["response"]["critique"] == "Short."


def test_a_server_that_cannot_constrain_is_asked_in_tags() -> None:
    refuse = lambda n, body: (422, b'{"error": "grammar is not supported"}') if "response_format" in body else None  # noqa: E731
    rejected = pytest.warns(UserWarning, match="rejected the request: grammar is not supported")
    with LocalTGI(fault=refuse) as tgi, rejected, pytest.warns(UserWarning, match="asked in tags instead"):
        reflector = Reflector(Teacher(tgi.url, journal=False), structured=True)
        for row in (ROW, ROW.map(lambda row: {"instruction": "Name a tree."})):
            assert candidates(row.map(reflector.reflect_response)[0])["response"]["error"] is None
        assert ["response_format" in body for body in tgi.chats] == [True, False, False]


def test_a_reply_that_is_no_json_is_read_in_tags_or_asked_for_in_tags() -> None:
    tagged = "Too short.\n[Better Answer]\nA banana.\n[End]"
    with LocalTGI(in_turn(tagged)) as tgi:  # response_format is ignored, and the model likes tags
        assert response(Teacher(tgi.url, journal=False), structured=True)["output"] == "A banana." and len(tgi.chats) == 1
    with LocalTGI(in_turn("A banana is better.", tagged)) as tgi:
        assert response(Teacher(tgi.url, journal=False), structured=True)["output"] == "A banana."
        assert ["response_format" in body for body in tgi.chats] == [True, False]
        assert "[Better Answer]" in tgi.chats[1]["messages"][-1]["content"] and len(tgi.chats[1]["messages"]) == 2


def test_an_openai_server_gets_a_schema_in_its_own_form() -> None:
    with LocalTGI(lambda body: (GOOD, "stop")) as tgi:
        tgi.info.pop("model_id")  # no TGI
        response(Teacher(tgi.url, model="any", journal=False), structured=True)
        sent = tgi.chats[0]["response_format"]
        assert sent == {"type": "json_object", "schema": schema("response")}  # the client would rewrite OpenAI's own form


@pytest.mark.parametrize(
    ("reply", "finish", "outcome"),
    [
        ("no", "stop", None),
        ("[1]", "stop", None),
        ('{"analysis": "x"}', "stop", None),
        ('{"answer": 3}', "stop", None),
        ("[" * 100_000, "stop", None),
        ('{"analysis": "x", "answer": "half of', "length", "truncated"),
        ('{"analysis": "x", "answer": " "}', "stop", "empty"),
        ('{"analysis": "x", "answer": "(the answer, and nothing else)"}', "stop", "placeholder"),
        ('{"analysis": "x", "answer": "I\'m sorry, but I can\'t help with that."}', "stop", "refused"),
        ('```json\n{"analysis": "x", "answer": "4"}\n```', "stop", "4"),
        ('<think>{"answer": "5"}</think>\n{"analysis": "x", "answer": "4"}', "stop", "4"),
        ('{"answer": "half an emoji \\ud83d"}', "stop", "half an emoji \ufffd"),
    ],
)
def test_what_a_constrained_reply_may_be(reply: str, finish: str, outcome: str | None) -> None:
    found = parse_structured(reply, "response", finish)
    assert (None if found is None else found.error or found.output) == outcome


@pytest.mark.parametrize(("window", "asked"), [(100_000, [100, 200]), (None, [100, 200]), (500, [100])])
def test_a_truncated_reply_is_asked_again_as_far_as_the_window_reaches(window: int | None, asked: list[int]) -> None:
    with LocalTGI(lambda body: ("[Better Answer]\nOnce upon", "length"), max_total_tokens=100_000) as tgi:
        if window is None:
            tgi.info.pop("model_id")  # no TGI, and nothing is known of its window
        else:
            tgi.info["max_total_tokens"] = window
        prompt = "Tell it in " + "many words " * 100
        data = Dataset.from_dict({"instruction": [prompt], "output": ["x"]})
        assert response(Teacher(tgi.url, model="any", max_tokens=100, journal=False), data)["error"] == "truncated"
        limits = [body["max_tokens"] for body in tgi.chats]
        assert limits[:1] == asked[:1] and (len(limits) == len(asked) or limits[1] < 200)


def test_codes_of_an_earlier_run_are_asked_again(tmp_path: Path) -> None:
    def run(answer: Callable[[dict[str, Any]], Answer], **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        with LocalTGI(answer) as tgi:
            return response(Teacher(tgi.url, journal=tmp_path / "j"), **options), tgi.chats

    bad, good = in_turn("no tags"), in_turn("Fine.\n[Better Answer]\nA pear.\n[End]")
    found, sent = run(bad)
    assert found["error"] == "unparsable" and len(sent) == 2
    for options in ({}, {"retry": ["timeout"]}):
        found, sent = run(good, **options)
        assert found["error"] == "unparsable" and not sent
    found, sent = run(bad, retry=["unparsable"])
    assert found["error"] == "unparsable" and len(sent) == 2 and sent[0]["temperature"] == 0.7
    found, sent = run(good, retry=["unparsable", "truncated"])
    assert found["output"] == "A pear." and found["sample"] == 2 and len(sent) == 1
    # Later runs have it, asked for or not.
    assert run(bad)[0]["output"] == run(bad, retry=["unparsable"])[0]["output"] == "A pear."
    found, sent = run(bad, retry=["unparsable"])
    assert not sent


def test_a_rejected_request_is_asked_again_when_it_is_named(tmp_path: Path) -> None:
    broken = {"is": True}
    with LocalTGI(fault=lambda n, body: (422, b'{"error": "no"}') if broken["is"] else None) as tgi:
        with pytest.warns(UserWarning, match="rejected the request"):
            assert response(Teacher(tgi.url, journal=tmp_path / "j"))["error"] == "rejected"
        broken["is"] = False
        assert response(Teacher(tgi.url, journal=tmp_path / "j"))["error"] == "rejected"
        assert response(Teacher(tgi.url, journal=tmp_path / "j"), retry=["rejected"])["error"] is None


def test_an_unknown_code() -> None:
    with pytest.raises(ConfigError, match="no error code borken to ask again for"):
        Reflector("http://127.0.0.1:9", retry=["borken"])


LONG = " ".join(f"word{n}" for n in range(2000))


def test_an_answer_that_does_not_fit_is_shown_without_its_middle(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "teacher")
    data = Dataset.from_dict({"instruction": ["Sum up."], "output": [LONG]})
    with LocalTGI(model_id=str(folder), max_total_tokens=3000) as tgi:
        found = response(Teacher(tgi.url, max_tokens=500, journal=False), data)
        shown = tgi.chats[0]["messages"][-1]["content"]
    assert found["error"] is None and len(tgi.chats) == 1
    assert "word0 word1" in shown and "word1999" in shown and "middle of this answer is left out" in shown
    assert 0 < found["answer_cut"] < len(LONG)


def test_an_answer_that_cannot_be_counted_is_cut_after_the_server_refused_it() -> None:
    data = Dataset.from_dict({"instruction": ["Sum up."], "output": [LONG]})
    with LocalTGI(max_total_tokens=2300) as tgi:
        found = response(Teacher(tgi.url, max_tokens=500, journal=False), data)
    assert found["error"] is None and 0 < found["answer_cut"] < len(LONG)
    assert tgi.statuses[-2:] == [422, 200]


def test_an_instruction_that_fills_the_window_is_too_long(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "teacher")
    data = Dataset.from_dict({"instruction": [LONG], "output": ["x"]})
    with LocalTGI(model_id=str(folder), max_total_tokens=1000) as tgi:
        assert response(Teacher(tgi.url, max_tokens=500, journal=False), data)["error"] == "too_long"
        assert not tgi.chats


def test_replies_that_fill_the_window_leave_no_room_to_ask() -> None:
    with LocalTGI(max_total_tokens=2048) as tgi, pytest.raises(ConfigError, match=r"max_tokens is 2,048, and .* takes 2,048"):
        Teacher(tgi.url, journal=False).identity()


def test_what_fits_is_shown_whole() -> None:
    with LocalTGI(reflect) as tgi:
        assert response(Teacher(tgi.url, journal=False))["answer_cut"] == 0


def test_what_a_reasoning_teacher_thinks_never_reaches_a_pair() -> None:
    """Set apart by the server (`reasoning_content`) or left in the text, and cut off while it still thought."""

    def completion(content: str | None, finish: str) -> bytes:
        message = {"role": "assistant", "content": content, "reasoning_content": "[Better Answer]\nA draft.\n[End]"}
        return json.dumps(
            {
                "id": "",
                "model": "m",
                "created": 0,
                "object": "o",
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            }
        ).encode()

    answers = [
        completion(None, "length"),
        completion("<think>[Better Answer]\nA draft.\n[End]</think>\nFine.\n[Better Answer]\nA pear.\n[End]", "stop"),
    ]
    with LocalTGI(fault=lambda n, body: (200, answers[n - 1])) as tgi:
        found = response(Teacher(tgi.url, journal=False))
        assert [body["max_tokens"] for body in tgi.chats] == [2048, 4096]
    assert found["output"] == "A pear." and "draft" not in str(found)
