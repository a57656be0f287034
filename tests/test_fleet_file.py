"""A teacher whose servers stand in a file that changes while it works."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from datasets import Dataset
from test_teacher import ask
from tgi_server import LocalTGI

from srt_hf import Reflector, Teacher
from srt_hf.cli import publishable
from srt_hf.errors import ConfigError
from srt_hf.teacher.fleet import _fleets


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srt_hf.teacher.fleet._ROSTER_LOOKS", 0.02)
    monkeypatch.setattr("srt_hf.teacher.fleet._LOOKS", (0.05,))
    monkeypatch.setattr("srt_hf.teacher.http._PROBE_PAUSES", (0.0,))


@pytest.fixture
def two() -> Iterator[tuple[LocalTGI, LocalTGI]]:
    with LocalTGI(slots=4, delay=0.01) as one, LocalTGI(slots=16, delay=0.01) as other:
        yield one, other


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "teachers.txt"


def until(holds: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    assert holds()


def names(*numbers: int) -> list[str]:
    return [str(n) for n in range(*numbers)]


def test_a_server_joins_in_the_middle_and_gets_work(two: tuple[LocalTGI, LocalTGI], file: Path, tmp_path: Path) -> None:
    one, other = two
    file.write_text(f"# the first\n{one.url}  # four slots\n\n")
    teacher = Teacher(f"@{file}", journal=tmp_path / "j")

    async def work() -> list[object]:
        chats = [asyncio.create_task(teacher.chat([{"role": "user", "content": name}])) for name in names(200)]
        await asyncio.to_thread(until, lambda: one.chats)
        assert not other.chats
        file.write_text(f"{one.url}\n{other.url}\n{one.url}\n")  # one of them twice
        return await asyncio.gather(*chats)

    assert len(asyncio.run(work())) == 200
    assert len(one.chats) + len(other.chats) == 200 and len(other.chats) > len(one.chats) / 2
    assert teacher.load == (0, 20)


def test_a_server_leaves_and_finishes_what_it_has(two: tuple[LocalTGI, LocalTGI], file: Path, tmp_path: Path) -> None:
    one, other = two
    other.delay = 0.3
    file.write_text(f"{one.url}\n{other.url}")
    teacher = Teacher(f"@{file}", journal=tmp_path / "j")

    async def work() -> list[object]:
        chats = [asyncio.create_task(teacher.chat([{"role": "user", "content": name}])) for name in names(80)]
        await asyncio.to_thread(until, lambda: other.busy == 16)
        file.write_text(one.url)
        await asyncio.to_thread(until, lambda: teacher.load[1] == 4)
        return await asyncio.gather(*chats)

    assert len(asyncio.run(work())) == 80
    assert len(other.chats) == 16 and len(one.chats) == 64 and teacher.counts["retries"] == 0
    assert len(teacher._fleet.backends) == 1  # forgotten with its last reply
    file.write_text(f"{one.url}\n{other.url}")
    until(lambda: teacher.load == (0, 20))  # and taken back


def test_another_model_or_a_smaller_window_is_refused_with_one_warning(file: Path, tmp_path: Path) -> None:
    with LocalTGI() as one, LocalTGI(model_id="another/model") as other, LocalTGI(max_total_tokens=5_000) as small:
        file.write_text(one.url)
        teacher = Teacher(f"@{file}", journal=tmp_path / "j")
        teacher.identity()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            file.write_text(f"{one.url}\n{other.url}\n{small.url}")
            until(lambda: "window is smaller" in str([warning.message for warning in said]))
            time.sleep(0.2)
            ask(teacher, *names(20))
        words = [text for warning in said if "does not join" in (text := str(warning.message))]
        assert words == [
            f"{other.url} does not join: it serves another/model@0123abcd, and the run has local/teacher@0123abcd.",
            f"{small.url} does not join: its window is smaller than that of the run's other servers.",
        ]
        assert len(one.chats) == 20 and not other.chats and not small.chats


def test_a_server_that_is_not_up_yet_joins_when_it_is(file: Path, tmp_path: Path) -> None:
    with LocalTGI(slots=4) as one:
        other = LocalTGI(slots=16)
        with other:
            pass  # it has an address now, and nobody there
        file.write_text(one.url)
        teacher = Teacher(f"@{file}", journal=tmp_path / "j")
        teacher.identity()
        with pytest.warns(UserWarning, match=f"No teacher answers at {other.url}.* left out until it answers"):
            file.write_text(f"{one.url}\n{other.url}")
            until(lambda: len(teacher._fleet.backends) == 2)
        assert teacher.load[1] == 4
        with other.again():
            until(lambda: teacher.load[1] == 20)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "names no server"),
        (b"# nobody\n\n", "names no server"),
        (b"http://127.0.0.1:1\nlocalhost:8080", "Line 2 of .* is no address: 'localhost:8080'"),
        (b"\xff\xfe\x00", "Line 1 of .* is no address"),
        (b"http://:80", "is no address"),
        (b"http://me:pw@host:80", "holds a user name or password"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_broken_file_changes_nothing_and_warns_once(
    content: bytes | None, expected: str, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalTGI() as tgi:
        file.write_text(tgi.url)
        teacher = Teacher(f"@{file}", journal=tmp_path / "j")
        teacher.identity()
        with pytest.warns(UserWarning, match=f"{expected}.* The run goes on with the servers that it has.") as said:
            file.unlink() if content is None else file.write_bytes(content)
            until(lambda: said.list)
            time.sleep(0.2)
        assert len(said) == 1
        assert len(ask(teacher, *names(5))) == 5 and len(tgi.chats) == 5
        with caplog.at_level(logging.WARNING):
            file.write_text(tgi.url + "\n")  # mended
            until(lambda: "The teacher's servers are now 1: 0 joined, 0 left." in caplog.text)


def test_nobody_of_this_model_would_be_left(file: Path, tmp_path: Path) -> None:
    with LocalTGI() as one, LocalTGI(model_id="another/model") as other:
        file.write_text(one.url)
        teacher = Teacher(f"@{file}", journal=tmp_path / "j")
        teacher.identity()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            file.write_text(other.url)
            until(lambda: "No server of this model would be left" in str([warning.message for warning in said]))
        assert "does not join" in str([warning.message for warning in said])
        ask(teacher, "still")
        assert len(one.chats) == 1 and not other.chats


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file"),
        ("", "names no server"),
        ("org/model", "Line 1 of .* is no address: 'org/model'. Write one server's URL on each line"),
        ("http://a?key=sesame b", r"is no address: 'http://a'\."),
    ],
)
def test_a_file_that_is_unusable_at_the_start(content: str | None, expected: str, file: Path) -> None:
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        Teacher(f"@{file}", journal=False)


def test_which_servers_answer_is_no_matter_of_journal_and_cache(
    two: tuple[LocalTGI, LocalTGI], file: Path, tmp_path: Path
) -> None:
    """A later run with other servers of the same model buys nothing, and `map` finds its cache."""
    one, other = two
    rows = Dataset.from_dict({"instruction": ["Name a fruit.", "Name a tree."], "output": ["An apple.", "An oak."]})
    states = []
    for addresses in ([one.url], [one.url, other.url], [other.url]):
        file.write_text("\n".join(addresses))
        teacher = Teacher(f"@{file}", journal=tmp_path / "j")
        _fleets.clear()  # each a run of its own
        made = rows.map(Reflector(teacher).reflect_response)
        states.append((pickle.dumps(teacher), made._fingerprint, teacher.counts["requests"]))
    assert [requests for *_, requests in states] == [2, 0, 0]
    assert len({state[:2] for state in states}) == 1
    assert len(one.chats) == 2 and not other.chats


def test_nobody_is_told_where_the_file_lies() -> None:
    told = publishable("python scripts/recycle_and_push.py --teacher @/home/me/teachers.txt")
    assert told == "python scripts/recycle_and_push.py --teacher @teachers.txt"
