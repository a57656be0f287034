"""The teacher over real sockets: errors, patience, journal, replay, and where the token goes."""

from __future__ import annotations

import asyncio
import json
import pickle
import sqlite3
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import SECRET
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled
from pyarrow import parquet
from tgi_server import LocalTGI

import srt_hf
from srt_hf import Teacher
from srt_hf.errors import ConfigError, RequestFailed, SrtError, TeacherAuthError, TeacherError, TeacherUnreachable
from srt_hf.journal import Journal, default_path
from srt_hf.network import httpx
from srt_hf.teacher.http import HttpBackend, is_hugging_face
from srt_hf.teacher.pacing import backoff
from srt_hf.teacher.protocol import Stumble, Weather
from srt_hf.teacher.replay import write_replies
from srt_hf.teacher.translation import translate

ASK = [{"role": "user", "content": "### Instruction\nSay hi.\n\n### Input\n(none)\n\n### Answer\nhi\n\nWork in two steps."}]


def ask(teacher: Teacher, *messages: str, **options):  # type: ignore[no-untyped-def]
    """Ask for each text at once, on one event loop; replies or the exceptions in order."""

    async def go():  # type: ignore[no-untyped-def]
        try:
            chats = [teacher.chat([{**ASK[0], "content": ASK[0]["content"] + text}], **options) for text in messages or [""]]
            return await asyncio.gather(*chats, return_exceptions=True)
        finally:
            await teacher.close()

    return asyncio.run(go())


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srt_hf.teacher.sending.backoff", lambda tries, retry_after=None: 0.01)
    monkeypatch.setattr("srt_hf.teacher.http._PROBE_PAUSES", (0.0,))


def test_a_reply_with_its_counts(teacher: Teacher) -> None:
    [reply] = ask(teacher)
    assert reply.text.startswith("A short analysis.") and reply.finish_reason == "stop"
    assert reply.prompt_tokens > 0 and reply.completion_tokens > 0
    assert str(teacher.identity()) == "local/teacher@0123abcd"


def test_what_is_sent_is_what_tgi_accepts(teacher: Teacher, tgi: LocalTGI) -> None:
    ask(teacher)
    body = tgi.chats[0]
    assert body["temperature"] == 0.0 and body["max_tokens"] == 2048
    assert "top_p" not in body and not body.get("stream")


def test_the_same_request_is_bought_once(teacher: Teacher, tgi: LocalTGI, tmp_path: Path) -> None:
    first, second = ask(teacher, "", "")  # at the same time
    again = ask(Teacher(tgi.url, journal=tmp_path / "journal.sqlite"))[0]  # and in a later run
    assert first == second == again
    assert len(tgi.chats) == 1


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"seed": 1}, {"max_tokens": 7}, {"extra_body": {"x": 1}}])
def test_another_request_is_another_key(tgi: LocalTGI, tmp_path: Path, change: dict) -> None:
    ask(Teacher(tgi.url, journal=tmp_path / "j"))
    ask(Teacher(tgi.url, journal=tmp_path / "j", **change))
    assert len(tgi.chats) == 2


def test_another_model_behind_the_same_url_is_another_key(tgi: LocalTGI, tmp_path: Path) -> None:
    ask(Teacher(tgi.url, journal=tmp_path / "j"))
    tgi.info["model_sha"] = "ffff"
    ask(Teacher(tgi.url, journal=tmp_path / "j"))
    assert len(tgi.chats) == 2


def test_a_full_server_is_weather_and_lowers_the_limit(tmp_path: Path) -> None:
    with LocalTGI(slots=4, delay=0.02) as tgi:
        tgi.info["max_concurrent_requests"] = 64  # it promises more than it has
        teacher = Teacher(tgi.url, journal=False)
        replies = ask(teacher, *map(str, range(60)))
        assert all(not isinstance(reply, Exception) for reply in replies)
        assert 429 in tgi.statuses and tgi.peak == 4
        assert teacher._fleet.limit < 64


def test_the_servers_own_limit_is_the_start_and_is_never_passed(tgi: LocalTGI) -> None:
    with LocalTGI(slots=8, delay=0.01) as tgi:
        ask(Teacher(tgi.url, journal=False), *map(str, range(50)))
        assert tgi.peak == 8 and 429 not in tgi.statuses


def test_more_than_a_hundred_at_once(tmp_path: Path) -> None:
    with LocalTGI(slots=300, delay=3) as tgi:
        replies = ask(Teacher(tgi.url, journal=False, timeout=30), *map(str, range(250)))
        assert all(not isinstance(reply, Exception) for reply in replies)
        assert tgi.peak == 250


def test_a_rejected_request_is_final_and_kept(tmp_path: Path) -> None:
    with LocalTGI() as tgi:
        teacher = Teacher(tgi.url, journal=tmp_path / "j", top_p=1.0)
        with pytest.warns(UserWarning, match="top_p"):
            [failure] = ask(teacher)
        assert isinstance(failure, RequestFailed) and failure.code == "rejected"
        [again] = ask(teacher)
        assert isinstance(again, RequestFailed) and again.code == "rejected" and len(tgi.chats) == 1


def test_a_request_that_does_not_fit_is_too_long(tmp_path: Path) -> None:
    with LocalTGI(max_total_tokens=100) as tgi:
        [failure] = ask(Teacher(tgi.url, journal=tmp_path / "j", max_tokens=90))
        assert isinstance(failure, RequestFailed) and failure.code == "too_long"


GARBAGE = [
    (500, b"{}"),
    (424, b"{}"),
    (200, b"<html>hello</html>"),
    (200, b'{"choices": [{"mess'),
    (200, b"\xff\xfe"),
    (200, b"{}"),
]


@pytest.mark.parametrize("answer", GARBAGE)
def test_a_stumble_is_tried_again(tmp_path: Path, answer: tuple[int, bytes]) -> None:
    with LocalTGI(fault=lambda n, body: answer if n == 1 else None) as tgi:
        [reply] = ask(Teacher(tgi.url, journal=tmp_path / "j"))
        assert reply.text and len(tgi.chats) == 2


@pytest.mark.parametrize("answer", GARBAGE)
def test_a_request_that_always_fails_gets_a_code_while_others_pass(tmp_path: Path, answer: tuple[int, bytes]) -> None:
    poison = lambda n, body: answer if "poison" in body["messages"][-1]["content"] else None  # noqa: E731
    with LocalTGI(fault=poison) as tgi:
        good, bad = ask(Teacher(tgi.url, journal=tmp_path / "j"), "fine", "poison")
        assert good.text and isinstance(bad, RequestFailed) and bad.code == "server_error"


@pytest.mark.parametrize(("status", "code"), [(504, "timeout"), (408, "timeout"), (502, "server_error"), (500, "server_error")])
def test_one_poisoned_request_gets_a_code_though_nothing_else_is_asked(tmp_path: Path, status: int, code: str) -> None:
    poison = lambda n, body: (status, b"{}") if "poison" in body["messages"][-1]["content"] else None  # noqa: E731
    with LocalTGI(fault=poison) as tgi:
        [failure] = ask(Teacher(tgi.url, journal=tmp_path / "j"), "poison")
        assert isinstance(failure, RequestFailed) and failure.code == code
        assert tgi.chats[-1]["messages"][0]["content"] == "Say yes."  # the teacher was asked whether it works at all


def test_a_request_that_always_times_out_gets_a_code(tmp_path: Path) -> None:
    with LocalTGI(delay=lambda body: 5.0 if "poison" in body["messages"][-1]["content"] else 0.0) as tgi:
        [failure] = ask(Teacher(tgi.url, journal=tmp_path / "j", timeout=0.3), "poison")
        assert isinstance(failure, RequestFailed) and failure.code == "timeout"


@pytest.mark.parametrize("status", [500, 503, 504, 404, 302])
def test_a_server_that_answers_nobody_is_an_outage_and_no_rows_failure(tmp_path: Path, status: int) -> None:
    with LocalTGI(fault=lambda n, body: (status, b"{}")) as tgi:
        failures = ask(Teacher(tgi.url, journal=tmp_path / "j", outage=0.3), *map(str, range(5)))
        assert all(isinstance(failure, TeacherError) and not isinstance(failure, RequestFailed) for failure in failures)
        assert not any("a 200" in str(failure) for failure in failures)  # the client does not tell which status it was
    assert list(Journal(tmp_path / "j").entries()) == []


def test_an_outage_stops_the_run_and_is_not_kept(tmp_path: Path) -> None:
    with LocalTGI(fault=lambda n, body: (503, b"{}")) as tgi:
        [failure] = ask(Teacher(tgi.url, journal=tmp_path / "j", outage=0.2))
        assert isinstance(failure, TeacherUnreachable) and "journal" in failure.hint
    assert list(Journal(tmp_path / "j").entries()) == []


def test_nobody_at_the_address() -> None:
    with pytest.raises(TeacherUnreachable, match=r"No teacher answers at http://127.0.0.1:9 .*vllm serve"):
        Teacher("http://127.0.0.1:9", journal=False).identity()


def test_a_wrong_key(tmp_path: Path) -> None:
    with LocalTGI(key="right") as tgi:
        with pytest.raises(TeacherAuthError, match="SRT_HF_TEACHER_KEY"):
            Teacher(tgi.url, key="wrong", journal=False).identity()
        [reply] = ask(Teacher(tgi.url, key="right", journal=False))
        assert reply.text


def test_the_hub_token_goes_to_hugging_face_only(teacher: Teacher, tgi: LocalTGI) -> None:
    ask(teacher)
    sent = json.dumps([headers for _, headers, _ in tgi.requests])
    assert len(tgi.requests) >= 2 and SECRET not in sent
    assert HttpBackend("https://router.huggingface.co/v1", model="m", key=None, provider="auto", timeout=1).key == SECRET
    assert HttpBackend(None, model="org/model", key=None, provider="auto", timeout=1).key == SECRET
    for url in ("http://huggingface.co", "https://huggingface.co.evil.example", "https://evilhf.co", "http://localhost"):
        assert not is_hugging_face(url)
    for url in ("https://huggingface.co", "https://x.endpoints.huggingface.cloud", "https://api-inference.hf.co/v1"):
        assert is_hugging_face(url)


def test_the_key_is_never_in_the_journal(tmp_path: Path) -> None:
    with LocalTGI(key="sesame") as tgi:
        ask(Teacher(tgi.url, key="sesame", journal=tmp_path / "j"))
    assert all(b"sesame" not in file.read_bytes() for file in tmp_path.iterdir())


def _status(code: int, text: str = "", headers: dict[str, str] | None = None) -> HfHubHTTPError:
    response = httpx.Response(code, text=text, headers=headers or {}, request=httpx.Request("POST", "http://t"))
    return HfHubHTTPError("x", response=response)


def _timeout(cause: Exception) -> InferenceTimeoutError:
    error = InferenceTimeoutError("slow")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (_status(429), Weather),
        (_status(503), Weather),
        (_status(502), Stumble),
        (_status(504), Stumble),
        (_status(408), Stumble),
        (_status(302), TeacherError),
        (_status(400), RequestFailed),
        (_status(413), RequestFailed),
        (_status(422), RequestFailed),
        (_status(401), TeacherAuthError),
        (_status(403), TeacherAuthError),
        (_status(402), TeacherError),
        (_status(404), TeacherError),
        (_status(424), Stumble),
        (_status(500), Stumble),
        (_timeout(httpx.ReadTimeout("")), Stumble),
        (_timeout(httpx.ConnectTimeout("")), Weather),
        (_timeout(httpx.PoolTimeout("")), Weather),
        (httpx.ConnectError("refused"), Weather),
        (httpx.ReadError("reset"), Stumble),
        (httpx.RemoteProtocolError("gone"), Stumble),
        (json.JSONDecodeError("x", "", 0), Stumble),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), Stumble),
        (KeyError("choices"), Stumble),
        (TypeError("None"), Stumble),
        (ValueError("Model x is not supported by provider y."), TeacherError),
        (OfflineModeIsEnabled("offline"), TeacherError),
        (RuntimeError("anything else"), TeacherError),
    ],
)
def test_every_foreign_error_is_translated(foreign: Exception, ours: type) -> None:
    assert type(translate(foreign, "http://t")) is ours


def test_retry_after_is_honoured() -> None:
    weather = translate(_status(429, headers={"retry-after": "7"}), "http://t")
    assert isinstance(weather, Weather) and weather.retry_after == 7.0 and weather.overloaded
    assert backoff(1, retry_after=7.0) >= 7.0


def test_the_servers_words_are_bounded() -> None:
    assert len(str(translate(_status(422, text="x" * 10_000), "http://t"))) < 500


def test_a_server_without_words() -> None:
    assert "http://t answered 404. Check the address" in str(translate(_status(404), "http://t"))
    assert "http://t answered 404: No such model. Check" in str(translate(_status(404, text="No such model."), "http://t"))


def test_pickling_takes_configuration_and_who_answers(teacher: Teacher, tgi: LocalTGI) -> None:
    ask(teacher)
    assert pickle.dumps(teacher) == pickle.dumps(pickle.loads(pickle.dumps(teacher)))
    before = pickle.dumps(teacher)
    tgi.info["model_id"] = "another/teacher"
    assert pickle.dumps(teacher) != before
    # What was fingerprinted is what requests go by from then on.
    ask(teacher)
    assert len(tgi.chats) == 2 and str(teacher.identity()) == "another/teacher@0123abcd"


NO_TEACHERS = ["localhost:8080", "127.0.0.1:8080/v1", "gpt2", "ftp://host", "org/name/extra"]
NO_ADDRESSES = [
    "http://[x",
    "http://",
    "http://:80",
    "http://host:abc",
    "http://host:99999",
    "http://host:0",
    "http://a..b",
    "http://ho\tst",
]


@pytest.mark.parametrize("target", [*NO_TEACHERS, *NO_ADDRESSES])
def test_a_target_of_no_known_form(target: str) -> None:
    with pytest.raises(ConfigError, match=r"is no (teacher|address).*http://HOST:PORT") as caught:
        Teacher(f"{target}?api_key=sesame")
    assert "sesame" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_query_is_never_shown() -> None:
    with pytest.raises(TeacherUnreachable) as caught:
        Teacher("http://127.0.0.1:9/v1?api_key=sesame", journal=False).identity()
    assert "sesame" not in str(caught.value) and "http://127.0.0.1:9/v1" in str(caught.value)
    with LocalTGI(fault=lambda n, body: (503, b"{}")) as tgi:
        [failure] = ask(Teacher(f"{tgi.url}/v1?api_key=sesame", journal=False, outage=0.2))
    assert isinstance(failure, TeacherUnreachable)
    assert "sesame" not in str(failure) and f"No reply from {tgi.url}/v1 for" in str(failure)


def test_a_hub_model_is_looked_up_before_anything_is_asked() -> None:
    with pytest.raises(TeacherUnreachable, match="The Hub cannot be asked for org/model"):
        Teacher("org/model", journal=False).identity()


@pytest.mark.parametrize("scheme", ["http://", "ftp://", ""])
def test_no_secret_in_the_address(scheme: str) -> None:
    with pytest.raises(ConfigError, match="SRT_HF_TEACHER_KEY") as caught:
        Teacher(f"{scheme}someone:sesame@localhost:8080")
    assert "sesame" not in str(caught.value)


def test_the_tgi_like_server_follows_the_published_interface(shared: Path) -> None:
    published = json.loads((shared / "tgi" / "openapi.json").read_text())
    schemas = published["components"]["schemas"]

    def check(value: dict, name: str) -> None:
        assert set(schemas[name]["required"]) <= set(value), name
        assert set(value) <= set(schemas[name]["properties"]) | {"object"}, name

    with LocalTGI(slots=1, delay=0.2, max_total_tokens=3000) as tgi:
        check(httpx.get(f"{tgi.url}/info").json(), "Info")
        chat = {"messages": ASK, "max_tokens": 10}
        good = httpx.post(f"{tgi.url}/v1/chat/completions", json=chat)
        check(good.json(), "ChatCompletion")
        check(good.json()["choices"][0], "ChatCompletionComplete")
        check(good.json()["usage"], "Usage")
        answers = [
            httpx.post(f"{tgi.url}/v1/chat/completions", json={**chat, **bad}) for bad in ({"max_tokens": 9999}, {"top_p": 1.0})
        ]
        documented = published["paths"]["/v1/chat/completions"]["post"]["responses"]
        for answer in answers:
            assert answer.status_code == 422 and "422" in documented
            check(answer.json(), "ErrorResponse")

        async def two_at_once() -> list[int]:
            async with httpx.AsyncClient() as client:
                both = await asyncio.gather(*(client.post(f"{tgi.url}/v1/chat/completions", json=chat) for _ in range(2)))
            return sorted(response.status_code for response in both)

        assert asyncio.run(two_at_once()) == [200, 429] and "429" in documented
    # And what we send is what it documents.
    with LocalTGI() as tgi:
        ask(Teacher(tgi.url, journal=False, seed=1, temperature=0.5, top_p=0.9))
        assert set(tgi.chats[0]) <= set(schemas["ChatRequest"]["properties"])


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"temperature": -0.1}, {"top_p": 0.0}, {"timeout": 0.0}])
def test_a_number_that_no_teacher_takes(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(wrong))} is .*\. Give "):
        Teacher("http://127.0.0.1:9", journal=False, **wrong)


def test_an_empty_journal_is_the_default_one_and_false_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRT_HF_TEACHER", "http://127.0.0.1:9")
    monkeypatch.setenv("SRT_HF_JOURNAL", "")
    for teacher in (srt_hf.reflect.__self__.teacher, *(Teacher("org/model", journal=journal) for journal in ("", None, True))):
        assert teacher.journal is not None and teacher.journal.path == default_path()
    assert Teacher("org/model", journal=False).journal is None


def test_no_target() -> None:
    with pytest.raises(ConfigError, match="SRT_HF_TEACHER"):
        Teacher("")


def test_models_of_a_server_that_is_not_tgi(tmp_path: Path) -> None:
    models = {"data": [{"id": "only"}]}
    with LocalTGI() as tgi:
        tgi.info = {}  # no /info worth the name

        async def respond(path, headers, body, real=tgi._respond):  # type: ignore[no-untyped-def]
            return (200, json.dumps(models).encode()) if path == "/v1/models" else await real(path, headers, body)

        tgi._respond = respond  # type: ignore[method-assign]
        assert str(Teacher(tgi.url + "/v1", journal=False).identity()) == "only"
        models["data"].append({"id": "second"})
        with pytest.raises(TeacherError, match=r"2 models.*teacher_model: only, second"):
            Teacher(tgi.url, journal=False).identity()
        assert str(Teacher(tgi.url, model="second", journal=False).identity()) == "second"


def write_lines(path: Path, *entries: dict) -> str:
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n")
    return f"replay:{path}"


def test_replay_from_jsonl(tmp_path: Path) -> None:
    target = write_lines(
        tmp_path / "r.jsonl", {"id": "a", "step": "both", "attempt": 0, "reply": "text", "finish_reason": "length"}
    )
    teacher = Teacher(target)
    [reply] = ask(teacher, id="a", step="both")
    assert (reply.text, reply.finish_reason) == ("text", "length")
    [failure] = ask(teacher, id="b", step="both")
    assert isinstance(failure, RequestFailed) and failure.code == "not_attempted"
    assert teacher.journal is None


def test_replay_follows_the_files_content(tmp_path: Path) -> None:
    target = write_lines(tmp_path / "r.jsonl", {"id": "a", "step": "both", "reply": "one"})
    teacher = Teacher(target)
    before = pickle.dumps(teacher)
    assert ask(teacher, id="a", step="both")[0].text == "one"
    write_lines(tmp_path / "r.jsonl", {"id": "a", "step": "both", "reply": "two"})
    assert pickle.dumps(teacher) != before
    assert ask(teacher, id="a", step="both")[0].text == "two"


def test_replay_from_a_journal(teacher: Teacher, tmp_path: Path) -> None:
    [bought] = ask(teacher, id="a", step="response")
    [replayed] = ask(Teacher(f"replay:{tmp_path / 'journal.sqlite'}"), id="a", step="response")
    assert replayed == bought and replayed.teacher == "local/teacher@0123abcd"


def test_rows_of_the_same_text_replay_each_by_its_own_id(teacher: Teacher, tgi: LocalTGI, tmp_path: Path) -> None:
    for id in ("a", "b", "a"):
        [reply] = ask(teacher, id=id, step="response")
    assert len(tgi.chats) == 1 and teacher.journal is not None
    write_replies(teacher.journal, {"a", "b"}, {str(teacher.identity())}, tmp_path / "replies.jsonl")
    assert len((tmp_path / "replies.jsonl").read_text().splitlines()) == 2
    for source in (teacher.journal.path, tmp_path / "replies.jsonl"):
        again = Teacher(f"replay:{source}")
        before = again.identity()
        assert ask(again, id="a", step="response") == ask(again, id="b", step="response") == [reply]
        assert again.identity() == before == Teacher(f"replay:{source}").identity()  # reading changes nothing


def test_a_journals_replies_as_jsonl_replay_as_they_were(teacher: Teacher, tgi: LocalTGI, tmp_path: Path) -> None:
    refuse = {"now": False}
    tgi.fault = lambda n, body: (422, b'{"error": "no"}') if refuse["now"] else None
    [reply] = ask(teacher, id="a", step="response")
    refuse["now"] = True
    with pytest.warns(UserWarning, match="rejected"):
        ask(teacher, "2", id="b", step="response")
    ask(teacher, "3", id="c", step="response")
    assert teacher.journal is not None
    write_replies(teacher.journal, {"a", "b"}, {str(teacher.identity())}, tmp_path / "replies.jsonl")
    again = Teacher(f"replay:{tmp_path / 'replies.jsonl'}")
    assert ask(again, id="a", step="response") == [reply]
    with pytest.warns(UserWarning, match="rejected"):
        assert ask(again, id="b", step="response")[0].code == "rejected"
    assert ask(again, id="c", step="response")[0].code == "not_attempted"


def test_only_a_newline_ends_a_recorded_line(tmp_path: Path) -> None:
    entry = {"id": "a", "step": "both", "reply": "One\u2028two\u2029three\u0085four\x0b", "teacher": "org/writer"}
    (tmp_path / "r.jsonl").write_text(json.dumps(entry, ensure_ascii=False) + "\r\n\n", encoding="utf-8")
    [reply] = ask(Teacher(f"replay:{tmp_path / 'r.jsonl'}"), id="a", step="both")
    assert (reply.text, reply.teacher) == (entry["reply"], "org/writer")


NO_RECORDINGS = [
    (b"{", "Line 1"),
    (b'{"id": 1}', "step"),
    (b"", "holds no replies"),
    (b'\n{"id": 1, "step": "both", "reply": "\xff"}', "Line 2.*Unicode"),
    (b'{"id": 1, "step": "both", "reply": null}', "Line 1.*reply is None"),
    (b'{"id": 1, "step": "both", "reply": 7}', "Line 1.*reply is 7"),
    (b'{"id": 1, "step": ["both"], "reply": "a"}', "Line 1.*step is"),
    (b'{"id": 1, "step": "both", "reply": "a", "attempt": Infinity}', "Line 1.*attempt is inf"),
    (b'["a"]', "Line 1.*TypeError"),
]


@pytest.mark.parametrize(("content", "complaint"), NO_RECORDINGS)
def test_a_replay_file_that_is_none(tmp_path: Path, content: bytes, complaint: str) -> None:
    """Said when the teacher is asked who it is, which is before anything is paid for."""
    (tmp_path / "r.jsonl").write_bytes(content + b"\n")
    with pytest.raises(ConfigError, match=f"^[^\n]*{complaint}[^\n]* Give|^[^\n]*{complaint}[^\n]* Each line is"):
        Teacher(f"replay:{tmp_path / 'r.jsonl'}").identity()


@pytest.mark.parametrize("problem", ["no candidates column", "null candidates", "no table", "damaged", "unreadable"])
def test_a_replay_folder_that_is_none(tmp_path: Path, problem: str) -> None:
    file = tmp_path / "candidates" / "train-00000-of-00001.parquet"
    file.parent.mkdir()
    if problem == "no candidates column":
        parquet.write_table(pa.table({"id": ["a"]}), file)
    elif problem == "null candidates":
        parquet.write_table(pa.table({"id": ["a"], "candidates": [None]}), file)
    elif problem == "damaged":
        file.write_bytes(b"PAR1 and nothing more")
    elif problem == "unreadable":
        file.mkdir()
    with pytest.raises(ConfigError, match=r"^replay:.*(cannot be read \(|is neither a file).*Give JSONL"):
        Teacher(f"replay:{tmp_path}").identity()


def test_a_recording_that_is_a_foreign_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE replies (text TEXT)")
    other.close()
    with pytest.raises(SrtError, match="no such column"):
        Teacher(f"replay:{tmp_path / 'other.sqlite'}").identity()
