"""TGI through text-generation's own client, which `make test-tgi` installs; and what is said where it is not installed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SECRET
from tgi_server import RESET, Fault, LocalTGI

from srt_hf import Reflector, Teacher
from srt_hf.errors import ConfigError, RequestFailed, TeacherAuthError, TeacherError, TeacherUnreachable
from srt_hf.journal import Journal
from srt_hf.teacher.protocol import Reply, Request, Stumble, Weather

needs_client = pytest.mark.skipif(
    importlib.util.find_spec("text_generation") is None, reason="text-generation is not installed (`make test-tgi` does)"
)
ASK = [{"role": "user", "content": "### Instruction\nSay hi.\n\n### Input\n(none)\n\n### Answer\nhi\n\nWork in two steps."}]


def make(tgi: LocalTGI, **options: Any) -> Teacher:
    return Teacher(f"tgi+{tgi.url}", **{"journal": False, **options})


def ask(teacher: Teacher, times: int = 1, **options: Any) -> list[Any]:
    """Replies to that many different requests at once, or the exceptions."""

    async def go() -> list[Any]:
        chats = [teacher.chat([{**ASK[0], "content": f"{ASK[0]['content']}{n}"}], **options) for n in range(times)]
        return await asyncio.gather(*chats, return_exceptions=True)

    return asyncio.run(go())


def outcome(fault: Fault | None, **options: Any) -> Reply | Exception:
    """What the backend itself makes of the server's first answer."""
    with LocalTGI(fault=fault) as tgi:
        teacher = make(tgi, **options)
        identity = teacher.identity()
        [backend] = teacher._fleet.backends
        try:
            return asyncio.run(backend.generate(Request(ASK, 10, 0.0), identity))
        except Exception as error:
            return error


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srt_hf.teacher.sending.backoff", lambda tries, retry_after=None: 0.01)
    monkeypatch.setattr("srt_hf.teacher.http._PROBE_PAUSES", (0.0,))


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "text_generation", None)
    with pytest.raises(ConfigError, match=r"pip install srt_hf\[tgi\]"):
        Teacher("tgi+http://localhost:8080", journal=False)


@pytest.mark.parametrize("target", ["tgi+ftp://host", "tgi+http://", "tgi+host:80", "tgi+http://host:0"])
def test_a_target_of_no_known_form(target: str) -> None:
    with pytest.raises(ConfigError, match=r"is no (teacher|address).*http://HOST:PORT"):
        Teacher(target, journal=False)


def test_no_secret_in_the_address() -> None:
    with pytest.raises(ConfigError, match="SRT_HF_TEACHER_KEY") as caught:
        Teacher("tgi+http://someone:sesame@localhost:8080", journal=False)
    assert "sesame" not in str(caught.value)


@needs_client
def test_a_reply_with_its_counts_and_what_is_sent(tgi: LocalTGI) -> None:
    teacher = make(tgi, seed=1, temperature=0.5, top_p=0.9, max_tokens=77)
    [reply] = ask(teacher)
    assert reply.text.startswith("A short analysis.") and reply.finish_reason == "stop"
    assert reply.prompt_tokens > 0 and reply.completion_tokens > 0
    sent = {name: value for name, value in tgi.chats[0].items() if value is not None}
    [turn] = sent.pop("messages")
    assert (turn["role"], turn["content"]) == ("user", f"{ASK[0]['content']}0")
    assert sent == {"model": "tgi", "max_tokens": 77, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stream": False}


@needs_client
def test_what_is_sent_is_what_tgi_documents(tgi: LocalTGI, shared: Path) -> None:
    ask(make(tgi))
    schemas = json.loads((shared / "tgi" / "openapi.json").read_text())["components"]["schemas"]
    assert {name for name, value in tgi.chats[0].items() if value is not None} <= set(schemas["ChatRequest"]["properties"])


@needs_client
def test_who_answers_is_the_same_as_over_http(tgi: LocalTGI, tmp_path: Path) -> None:
    """And so a journal serves both ways."""
    teacher = make(tgi, journal=tmp_path / "j")
    assert (
        teacher.identity() == Teacher(tgi.url, journal=False).identity() and str(teacher.identity()) == "local/teacher@0123abcd"
    )
    [bought] = ask(teacher)
    [again] = ask(Teacher(tgi.url, journal=tmp_path / "j"))
    assert again == bought and len(tgi.chats) == 1


@needs_client
def test_a_path_before_the_messages_api_is_the_same_server(tgi: LocalTGI) -> None:
    [reply] = ask(Teacher(f"tgi+{tgi.url}/v1/", journal=False))
    assert reply.text


@needs_client
def test_several_servers(tgi: LocalTGI) -> None:
    with LocalTGI() as other:
        teacher = Teacher(f"tgi+{tgi.url}, tgi+{other.url}", journal=False)
        assert all(isinstance(reply, Reply) for reply in ask(teacher, 20))
        assert len(tgi.chats) + len(other.chats) == 20 and tgi.chats and other.chats


@needs_client
def test_a_full_server_is_weather() -> None:
    with LocalTGI(slots=2, delay=0.02) as tgi:
        tgi.info["max_concurrent_requests"] = 32  # it promises more than it has
        assert all(isinstance(reply, Reply) for reply in ask(make(tgi), 20))
        assert 429 in tgi.statuses and tgi.peak == 2


@needs_client
def test_a_rejected_request_is_final_and_kept(tgi: LocalTGI, tmp_path: Path) -> None:
    teacher = make(tgi, journal=tmp_path / "j", top_p=1.0)
    with pytest.warns(UserWarning, match="top_p"):
        [failure] = ask(teacher)
    assert isinstance(failure, RequestFailed) and failure.code == "rejected"
    assert len(list(Journal(tmp_path / "j").entries())) == 1


@needs_client
def test_a_request_that_does_not_fit_is_too_long() -> None:
    with LocalTGI(max_total_tokens=100) as tgi:
        [failure] = ask(make(tgi, max_tokens=90))
        assert isinstance(failure, RequestFailed) and failure.code == "too_long"


def _said(status: int, kind: str | None = None, words: str = "It failed.") -> Fault:
    body = {"error": words} if kind is None else {"error": words, "error_type": kind}
    return lambda n, _: (status, json.dumps(body).encode())


@needs_client
@pytest.mark.parametrize(
    ("fault", "ours"),
    [
        (None, Reply),
        (_said(429, "overloaded"), Weather),
        (_said(429), Weather),
        (_said(422, "validation"), RequestFailed),
        (_said(400), RequestFailed),
        (_said(404), TeacherError),
        (_said(424, "generation"), Stumble),
        (_said(500, "incomplete_generation"), Stumble),
        (_said(500), Stumble),
        (_said(504), Stumble),
        (_said(401), Stumble),  # whose status the client does not tell; `identity` has asked before, and knows
        (lambda n, body: (500, b"{}"), Stumble),
        (lambda n, body: (200, b"{}"), Stumble),
        (lambda n, body: (200, b"<html>hello</html>"), Stumble),
        (lambda n, body: (200, b'{"choices": [{"mess'), Stumble),
        (lambda n, body: (200, b"\xff\xfe"), Stumble),
        (lambda n, body: RESET, Stumble),
    ],
)
def test_every_answer_is_translated(fault: Fault | None, ours: type) -> None:
    assert type(outcome(fault)) is ours


@needs_client
def test_a_web_page_tells_its_status() -> None:
    """A proxy's, while the server behind it is away."""

    async def respond(status: int) -> Exception:
        async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>".encode())
            writer.close()

        server = await asyncio.start_server(page, "127.0.0.1", 0)
        teacher = Teacher(f"tgi+http://127.0.0.1:{server.sockets[0].getsockname()[1]}", journal=False)
        async with server:
            with pytest.raises(Exception, match=r"answered|no chat completion") as caught:
                await teacher._fleet.backends[0].generate(Request(ASK, 10, 0.0), None)  # type: ignore[arg-type]
        return caught.value

    assert [type(asyncio.run(respond(status))) for status in (503, 502, 401, 200)] == [
        Weather,
        Stumble,
        TeacherAuthError,
        Stumble,
    ]


@needs_client
def test_a_connection_that_breaks_and_bad_answers_are_tried_again() -> None:
    faults = [RESET, (500, b"{}"), (200, b"<html>"), None]
    with LocalTGI(fault=lambda n, body: faults[min(n - 1, 3)]) as tgi:
        teacher = make(tgi)
        assert isinstance(ask(teacher)[0], RequestFailed) and isinstance(ask(teacher)[0], Reply)


@needs_client
def test_no_answer_in_time() -> None:
    with LocalTGI(delay=lambda body: 5.0 if "hi" in body["messages"][-1]["content"] else 0.0) as tgi:
        [failure] = ask(make(tgi, timeout=0.3))
        assert isinstance(failure, RequestFailed) and failure.code == "timeout"


@needs_client
def test_longer_than_the_clients_own_ten_seconds() -> None:
    teacher = Teacher("tgi+http://127.0.0.1:9", journal=False)
    assert teacher._fleet.backends[0]._client.timeout.total == 600.0  # type: ignore[attr-defined]


@needs_client
def test_nobody_there(tgi: LocalTGI) -> None:
    with pytest.raises(TeacherUnreachable, match=r"No teacher answers at http://127.0.0.1:9 "):
        Teacher("tgi+http://127.0.0.1:9", journal=False).identity()
    [backend] = Teacher("tgi+http://127.0.0.1:9", journal=False)._fleet.backends
    with pytest.raises(Weather, match=r"no connection to http://127.0.0.1:9"):
        asyncio.run(backend.generate(Request(ASK, 10, 0.0), Teacher(tgi.url, journal=False).identity()))


@needs_client
def test_an_outage_is_no_rows_failure(tmp_path: Path) -> None:
    with LocalTGI(fault=lambda n, body: (500, b'{"error": "no"}')) as tgi:
        failures = ask(make(tgi, journal=tmp_path / "j", outage=0.3), 3)
        assert all(isinstance(failure, TeacherUnreachable) for failure in failures)
    assert list(Journal(tmp_path / "j").entries()) == []


@needs_client
def test_a_key_goes_to_the_server_and_the_hub_token_does_not(tgi: LocalTGI) -> None:
    ask(make(tgi))
    sent = [headers for _, headers, _ in tgi.requests]
    assert len(sent) >= 2 and SECRET not in json.dumps(sent) and not any("authorization" in headers for headers in sent)
    with LocalTGI(key="right") as guarded:
        with pytest.raises(TeacherAuthError, match="SRT_HF_TEACHER_KEY"):
            make(guarded, key="wrong").identity()
        assert isinstance(ask(make(guarded, key="right"))[0], Reply)


@needs_client
def test_a_server_that_is_no_tgi(tgi: LocalTGI) -> None:
    tgi.info = {}
    with pytest.raises(TeacherError, match=r"is no TGI\. .* without tgi\+"):
        make(tgi).identity()


@needs_client
def test_what_the_client_cannot_carry_is_refused(tgi: LocalTGI, tmp_path: Path) -> None:
    """Before anything is sent, and without an entry in the journal."""
    with pytest.raises(ConfigError, match=r"does not take a model's name\. .* without tgi\+"):
        make(tgi, model="org/model")
    with pytest.raises(ConfigError, match="a query in the address"):
        Teacher(f"tgi+{tgi.url}?api_key=sesame", journal=False)
    [failure] = ask(make(tgi, journal=tmp_path / "j", extra_body={"top_k": 1}))
    assert isinstance(failure, ConfigError) and "extra_body" in str(failure)
    [failure] = ask(make(tgi, journal=tmp_path / "j"), schema={"type": "object"})
    assert isinstance(failure, ConfigError) and "schema (structured)" in str(failure)
    assert tgi.chats == [] and list(Journal(tmp_path / "j").entries()) == []


@needs_client
def test_a_row_is_reflected_on(tgi: LocalTGI) -> None:
    from datasets import Dataset

    rows = Dataset.from_list([{"instruction": "Name a fruit.", "input": "", "output": "Apple."}])
    [row] = rows.map(Reflector(make(tgi)).reflect)
    assert row["candidates"][1]["error"] is None and row["candidates"][1]["teacher"] == "local/teacher@0123abcd"
