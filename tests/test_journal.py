"""The journal: what it says is saved is saved, and what it cannot save it says."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from srt_hf.errors import JournalError
from srt_hf.journal import Journal, is_journal, request_key


def put(journal: Journal, *keys: str, more: str = "") -> None:
    async def go() -> None:
        await asyncio.gather(*(journal.put(key, {"text": f"reply {key}{more}"}, id=key, step="both") for key in keys))

    asyncio.run(go())


def test_what_is_put_is_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "folder" / "j.sqlite")
    assert journal.get("a") is None
    put(journal, "a", "b")
    assert journal.get("a") == {"text": "reply a"}
    journal.close()
    assert Journal(journal.path).get("b") == {"text": "reply b"}
    assert is_journal(journal.path) and not is_journal(tmp_path)
    assert [(id, step, attempt) for id, step, attempt, _ in Journal(journal.path).entries()] == [
        ("a", "both", 0),
        ("b", "both", 0),
    ]


def test_the_key_is_a_contract() -> None:
    # A change of this value makes every user's journal worthless.
    request = {"model": "m", "messages": [{"role": "user", "content": "é"}], "temperature": 0.0}
    assert request_key(request) == "8903962c5f3fe2b36427a97c2c7e6a25fb7a9c6eeef012e074dd53a6c8139eb7"


def test_a_reply_that_was_reported_as_saved_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    program = (
        "import asyncio, sys\nfrom srt_hf.journal import Journal\njournal = Journal(sys.argv[1])\n"
        "async def go():\n    n = 0\n    while True:\n"
        "        await journal.put(str(n), {'text': 'x' * 1000})\n        print(n, flush=True)\n        n += 1\nasyncio.run(go())"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    reported = [process.stdout.readline() for _ in range(200)]
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read()
    process.stdout.close()
    process.wait()
    last = int((reported + rest.split())[-1])
    journal = Journal(path)
    assert all(journal.get(str(n)) for n in range(last + 1))


def _write(path: str, name: str) -> None:
    put(Journal(path), *(f"{name}-{n}" for n in range(200)))


def test_two_processes_share_one_journal(tmp_path: Path) -> None:
    path = str(tmp_path / "j.sqlite")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        process.close()
    assert len(list(Journal(path).entries())) == 400


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"not a database, just some text that is long enough to be read as a header" * 10)
    with pytest.raises(JournalError, match="--journal"):
        Journal(tmp_path / "j").get("a")
    assert (tmp_path / "j").read_bytes().startswith(b"not a database")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(JournalError, match="cannot be used"):
        put(Journal(tmp_path / "file" / "j"), "a")


def test_a_write_that_fails_is_never_reported_as_saved(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    put(journal, "a")
    with sqlite3.connect(tmp_path / "j") as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON replies BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END")
    other.close()
    with pytest.raises(JournalError, match="disk is full"):
        put(journal, "b")
    assert journal.get("b") is None and journal.get("a")


@pytest.mark.parametrize("where", [0.4, 0.9])
def test_a_damaged_journal_is_set_aside_and_what_can_be_read_is_kept(tmp_path: Path, where: float) -> None:
    path = tmp_path / "j.sqlite"
    journal = Journal(path)
    put(journal, *map(str, range(400)), more="x" * 2000)
    journal.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(int(size * where) // 4096 * 4096)
        file.write(b"\xff" * 3 * 4096)
    with pytest.warns(UserWarning, match=r"was damaged: it is now .*damaged-1, and \d+ replies that could be read"):
        found = [n for n in range(400) if journal.get(str(n))]
    assert 100 < len(found) < 400 and (tmp_path / "j.sqlite.damaged-1").stat().st_size == size
    put(journal, "new")
    assert journal.get("new")


def test_a_journal_cut_short_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    journal = Journal(path)
    put(journal, *map(str, range(100)), more="x" * 2000)
    journal.close()
    os.truncate(path, 6 * 4096)
    with pytest.warns(UserWarning, match="was damaged"):
        assert Journal(path).get("no such key") is None
    assert list(tmp_path.glob("*.damaged-1"))


def test_another_journal_is_taken_over(tmp_path: Path) -> None:
    one, other = Journal(tmp_path / "one"), Journal(tmp_path / "other")
    put(one, "a", "b")
    put(other, "b", "c", more=" of the other")

    async def same_text() -> None:  # answered by a reply of another row's
        await other.put_also("c", id="row 4", step="both", attempt=0)
        await other.put("b", {"text": "reply b of the other"}, id="row 3", step="both")

    asyncio.run(same_text())
    before = (tmp_path / "other").read_bytes()
    assert one.take_over(other.path) == 1
    assert one.get("b") == {"text": "reply b"} and one.get("c") == {"text": "reply c of the other"}
    entries = {(id, record["text"]) for id, _, _, record in one.entries()}
    assert {("row 3", "reply b"), ("c", "reply c of the other"), ("row 4", "reply c of the other")} <= entries
    assert one.take_over(other.path) == 0 and one.take_over(one.path) == 0
    assert {(id, record["text"]) for id, _, _, record in one.entries()} == entries
    assert (tmp_path / "other").read_bytes() == before
    put(one, "d")  # and goes on


def test_a_journal_that_cannot_be_taken_over_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    put(journal, "a")
    (tmp_path / "text").write_text("no journal, but a text that is long enough " * 20)
    with sqlite3.connect(tmp_path / "table") as other:
        other.execute("CREATE TABLE something (x)")
    other.close()
    for name, expected in (("nothing", "unable to open"), ("text", "file is not a database"), ("table", "no such table")):
        with pytest.raises(JournalError, match=f"{name} cannot be used: {expected}"):
            journal.take_over(tmp_path / name)
    assert not (tmp_path / "nothing").exists() and len(list(journal.entries())) == 1


def test_half_of_a_journal_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage in the middle shows after the first replies were read."""
    monkeypatch.setattr("srt_hf.journal._AT_ONCE", 10)
    one, other = Journal(tmp_path / "one"), Journal(tmp_path / "other")
    put(other, *map(str, range(400)), more="x" * 2000)
    other.close()
    with (tmp_path / "other").open("r+b") as file:
        file.seek((tmp_path / "other").stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 3 * 4096)
    with pytest.raises(JournalError, match="other cannot be used"):
        one.take_over(other.path)
    assert list(one.entries()) == []
