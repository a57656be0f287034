"""Whatever ends a run: nothing more is sent, and every reply that is under way is saved."""

from __future__ import annotations

import asyncio
import gc
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from test_teacher import ask
from tgi_server import LocalTGI

import srt_hf
from srt_hf import Reflector, Teacher
from srt_hf.errors import ConfigError, SrtError, TeacherError, TeacherUnreachable
from srt_hf.journal import Journal
from srt_hf.network import DROPPED_QUIETLY

# A shell starts what runs in its background with SIGINT ignored, and children inherit that.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def rows(count: int, text: str = "Say {n}.") -> Dataset:
    return Dataset.from_list([{"instruction": text.format(n=n), "output": "x"} for n in range(count)])


def saved(path: Path) -> int:
    return len(list(Journal(path).entries()))


def test_after_a_stop_nothing_more_is_sent(tmp_path: Path) -> None:
    """The rows that had their reply go on to their next step, whose reply nobody would wait for."""
    wrong_key = lambda n, body: (401, b"{}") if "Say 3." in body["messages"][-1]["content"] else None  # noqa: E731
    with LocalTGI(slots=8, delay=0.05, fault=wrong_key) as tgi:
        with pytest.raises(SrtError, match="401"):
            rows(10).map(Reflector(Teacher(tgi.url, journal=tmp_path / "j")).reflect)
        time.sleep(0.2)
        assert saved(tmp_path / "j") == tgi.statuses.count(200) - 1  # but for /info


@pytest.mark.parametrize("text", ["Say {n}.", "Say it."])
def test_ctrl_c_saves_the_replies_under_way(tmp_path: Path, text: str) -> None:
    """Also where rows of the same text wait for one of them."""
    work = INTERRUPTIBLE + (
        "import sys, datasets, srt_hf\n"
        "rows = [{'instruction': sys.argv[3].format(n=n % 20), 'output': str(n % 20)} for n in range(80)]\n"
        "reflector = srt_hf.Reflector(srt_hf.Teacher(sys.argv[1], journal=sys.argv[2]))\n"
        "datasets.Dataset.from_list(rows).map(reflector.reflect)\n"
    )
    with LocalTGI(slots=8, delay=1.0) as tgi:
        run = subprocess.Popen([sys.executable, "-c", work, tgi.url, tmp_path / "j", text], stderr=subprocess.PIPE, text=True)
        while len(tgi.chats) < 12 and run.poll() is None:
            time.sleep(0.05)
        time.sleep(0.4)  # until it waits: an interrupt in the middle of Python code ends the loop at once
        run.send_signal(signal.SIGINT)
        _, told = run.communicate(timeout=60)
        assert "KeyboardInterrupt" in told and re.search(r"Waiting for the last \d+ replies", told), told
        assert saved(tmp_path / "j") == len(tgi.chats) < 120


@pytest.mark.parametrize("bad", [0, 7])
def test_a_row_that_cannot_be_read_loses_no_reply_of_those_before_it(tmp_path: Path, bad: int) -> None:
    turns = [[{"role": "user", "content": f"Say {n}."}] * (2 if n == bad else 1) for n in range(8)]
    data = Dataset.from_list([{"messages": [*asked, {"role": "assistant", "content": "x"}]} for asked in turns])
    with LocalTGI(delay=0.3) as tgi:
        with pytest.raises(SrtError, match="not one question and one answer"):
            data.map(Reflector(Teacher(tgi.url, journal=tmp_path / "j")).reflect)
        assert saved(tmp_path / "j") == len(tgi.chats)


# huggingface_hub 0.36's requests do not like to be thrown away.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_left_standing_starves_no_other(tmp_path: Path) -> None:
    stream = IterableDataset.from_generator(lambda: iter([{"instruction": f"Say {n}.", "output": "x"} for n in range(50)]))
    with LocalTGI(slots=2, delay=0.02) as tgi:
        teacher = Teacher(tgi.url, journal=tmp_path / "j", outage=20)
        reflected = stream.map(Reflector(teacher).reflect_response)
        next(iter(reflected))
        began = time.monotonic()
        rows(24, "Name {n}.").map(Reflector(teacher).reflect_response)
        assert time.monotonic() - began < 5
    del reflected, teacher
    gc.collect()  # here, where their warnings belong


def test_an_interrupted_batch_stops(tmp_path: Path) -> None:
    work = INTERRUPTIBLE + (
        "import sys, srt_hf\n"
        "reflector = srt_hf.Reflector(srt_hf.Teacher(sys.argv[1], journal=sys.argv[2]))\n"
        "batch = {'instruction': [f'Say {n}.' for n in range(40)], 'output': ['x'] * 40}\n"
        "reflector.reflect_batch(batch)\n"
    )
    with LocalTGI(slots=4, delay=0.5) as tgi:
        run = subprocess.Popen([sys.executable, "-c", work, tgi.url, tmp_path / "j"], stderr=subprocess.PIPE, text=True)
        while len(tgi.chats) < 6 and run.poll() is None:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, told = run.communicate(timeout=30)
        assert "KeyboardInterrupt" in told and saved(tmp_path / "j") == len(tgi.chats) < 20


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srt_hf.teacher.fleet._LOOKS", (0.05,))
    monkeypatch.setattr("srt_hf.teacher.http._PROBE_PAUSES", (0.0,))


def test_a_server_that_fails_at_everything_draws_no_work(tmp_path: Path, quick: None) -> None:
    """It is always the freest, since it fails at once; and another server's replies do not make it a row's fault."""
    with LocalTGI(slots=4, delay=0.05) as good, LocalTGI(slots=64, fault=lambda n, body: (500, b"{}")) as sick:
        teacher = Teacher(f"{good.url},{sick.url}", journal=tmp_path / "j")
        replies = ask(teacher, *map(str, range(100)))
        assert all(not isinstance(reply, Exception) for reply in replies)
        assert len(sick.chats) < 150


@pytest.mark.parametrize("status", [429, 503, 500])
def test_a_server_that_refuses_everything_is_not_hammered(tmp_path: Path, quick: None, status: int) -> None:
    with LocalTGI(slots=64, fault=lambda n, body: (status, b"{}")) as tgi:
        failures = ask(Teacher(tgi.url, journal=tmp_path / "j", outage=3.0), *map(str, range(300)))
        assert all(isinstance(failure, TeacherUnreachable) for failure in failures)
        assert len(tgi.chats) < 2 * 64 + 60  # halved once a round trip, and then one at a time with growing pauses


def test_retry_after_is_the_servers_and_not_one_rows(tmp_path: Path) -> None:
    began = time.monotonic()
    busy = lambda n, body: (429, b"{}") if time.monotonic() - began < 1 else None  # noqa: E731
    with LocalTGI(slots=16, fault=busy) as tgi:
        tgi.retry_after = 1
        replies = ask(Teacher(tgi.url, journal=tmp_path / "j"), *map(str, range(200)))
        assert all(not isinstance(reply, Exception) for reply in replies)
        assert tgi.statuses.count(429) <= 32


def test_a_server_that_cannot_say_who_it_is_is_away(tmp_path: Path, quick: None) -> None:
    tgi = LocalTGI(slots=4)
    with tgi:
        teacher = Teacher(tgi.url, journal=tmp_path / "j")
        ask(teacher, "before")
    named = tgi.info.pop("model_id")

    async def through_a_restart() -> Any:
        chat = asyncio.create_task(teacher.chat([{"role": "user", "content": "after"}]))
        await asyncio.sleep(0.1)
        with tgi.again():
            await asyncio.sleep(0.4)
            tgi.info["model_id"] = named
            return await chat

    assert asyncio.run(through_a_restart()).text


def test_one_budget_for_all_teachers_of_a_process_at_one_server(tmp_path: Path) -> None:
    with LocalTGI(slots=4, delay=0.05) as tgi:
        teachers = [Teacher(tgi.url, journal=tmp_path / f"j{n}") for n in range(3)]

        async def all_at_once() -> None:
            await asyncio.gather(*(asyncio.to_thread(ask, teacher, *map(str, range(10))) for teacher in teachers))

        asyncio.run(all_at_once())
        assert tgi.peak == 4 and 429 not in tgi.statuses and len(tgi.chats) == 30


@pytest.mark.parametrize("key", ["sesame\u2026", "two\nlines", "a\x00b"])
def test_a_key_that_no_header_takes_is_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="holds characters that no header takes") as told:
        Teacher("http://127.0.0.1:9", key=key, journal=False)
    assert key not in str(told.value)


def test_a_proxy_setting_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(TeacherError, match=r"cannot be asked|No teacher answers"):
        Teacher("http://127.0.0.1:9", journal=False).identity()


def test_a_text_that_the_journal_cannot_hold_stops_nobody_else(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")

    async def put() -> None:
        with pytest.raises(SrtError, match="cannot be used"):
            await journal.put("a", {}, id="\ud800")
        await asyncio.wait_for(journal.put("b", {}), 5)

    asyncio.run(put())
    assert journal.get("b") == {} and srt_hf.journal.is_journal(journal.path)


def test_the_same_retry_given_again_asks_again(tmp_path: Path) -> None:
    rows(1).to_parquet(tmp_path / "rows.parquet")
    data = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    with LocalTGI(lambda body: ("no tags", "stop")) as tgi:
        for sent, retry in ((2, ()), (4, ["unparsable"]), (6, ["unparsable"])):
            data.map(Reflector(Teacher(tgi.url, journal=tmp_path / "j"), retry=retry).reflect_response)
            assert len(tgi.chats) == sent


def test_connections_do_not_add_up_over_maps(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists() or not DROPPED_QUIETLY:
        pytest.skip("only Linux tells, and before huggingface_hub 1 clients stay")
    with LocalTGI(slots=16, delay=0.01) as tgi:
        reflector = Reflector(Teacher(tgi.url, journal=tmp_path / "j"))
        held = []
        for n in range(4):
            rows(40, f"Say {n} {{n}}.").map(reflector.reflect_response)
            gc.collect()
            held.append(len(list(Path("/proc/self/fd").iterdir())))
        assert held[-1] - held[1] < 20, held  # those of the map before are closed when the next one begins
