"""Limits, slots and servers that come and go."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from test_teacher import ask
from tgi_server import LocalTGI

from srt_hf import Teacher
from srt_hf.errors import ConfigError, TeacherError, TeacherUnreachable
from srt_hf.teacher.fleet import Fleet
from srt_hf.teacher.pacing import AdaptiveLimit
from srt_hf.teacher.protocol import Backend, Identity, Reply, Request


class Named(Backend):
    """A server that takes `most` requests at once and answers nothing."""

    journaled = False

    def __init__(self, most: int) -> None:
        self.most = most

    def identity(self) -> Identity:
        return Identity("named", max_concurrent_requests=self.most)

    async def generate(self, request: Request, identity: Identity) -> Reply:
        raise AssertionError


def fleet_of(*most: int) -> Fleet:
    fleet = Fleet([Named(one) for one in most])
    fleet.identity()
    return fleet


def test_the_limit_halves_once_a_round_trip_and_returns_to_where_the_server_was_full() -> None:
    limit = AdaptiveLimit(64)
    sent = time.monotonic()
    for _ in range(10):
        limit.overloaded(sent, in_flight=50)
    assert limit.value == 32
    for _ in range(17):
        limit.succeeded()
    assert limit.value == 49
    for _ in range(29 * 49):
        limit.succeeded()
    assert limit.value == 49  # and stays for some round trips
    for _ in range(100_000):
        limit.succeeded()
    assert limit.value == 64


def test_a_server_that_became_smaller_is_approached_slowly() -> None:
    limit = AdaptiveLimit(64)
    limit.overloaded(time.monotonic(), in_flight=64)
    limit.overloaded(time.monotonic(), in_flight=60)  # what was under way before comes back yet
    assert limit.value == 32
    limit.overloaded(time.monotonic(), in_flight=32)  # at half of what it took before
    assert limit.value == 16
    for _ in range(16):
        limit.succeeded()
    assert 16.9 < limit.value < 17.1


def test_a_server_that_tells_nothing_is_tried_up_to_its_first_refusal() -> None:
    limit = AdaptiveLimit()
    for _ in range(60):
        limit.succeeded()
    assert limit.value == 16 + 60
    limit.overloaded(time.monotonic(), in_flight=65)
    assert limit.value == 38
    for _ in range(40):
        limit.succeeded()
    assert limit.value == 64


def test_the_limit_holds_on_several_loops_at_once() -> None:
    fleet, seen = fleet_of(2, 1), []

    async def work() -> None:
        endpoint = await fleet.take()
        seen.append(fleet.in_flight)
        await asyncio.sleep(0.001)
        fleet.give_back(endpoint, asyncio.get_running_loop())

    async def many() -> None:
        await asyncio.gather(*(work() for _ in range(30)))

    async def all_of_them() -> None:
        await asyncio.gather(*(asyncio.to_thread(asyncio.run, many()) for _ in range(3)))

    asyncio.run(all_of_them())
    assert len(seen) == 90 and max(seen) <= 3 and fleet.in_flight == 0


def test_work_goes_to_the_freest() -> None:
    async def go() -> list[int]:
        fleet = fleet_of(5, 2)
        return [(await fleet.take()).backend.most for _ in range(7)]

    taken = asyncio.run(go())
    assert taken[:3] == [5, 5, 5] and sorted(taken) == [2, 2, 5, 5, 5, 5, 5]


def test_a_turn_that_is_left_is_passed_on() -> None:
    async def go() -> None:
        fleet, loop = fleet_of(1), asyncio.get_running_loop()
        endpoint = await fleet.take()
        waiting, given = fleet.take(), fleet.take()
        fleet.leave(waiting, loop)
        fleet.give_back(endpoint, loop)
        await asyncio.sleep(0.01)
        assert given.done()
        fleet.leave(given, loop)  # has come already
        assert fleet.in_flight == 0 and await asyncio.wait_for(fleet.take(), 1)

    asyncio.run(go())


def test_the_slots_of_a_loop_that_was_left_standing_are_free_again() -> None:
    """As `Dataset.map` leaves it when a row raises: stopped in the middle, with slots held and turns handed out."""
    fleet = fleet_of(1)
    left = asyncio.new_event_loop()

    async def hold_and_wait() -> None:
        endpoint = await fleet.take()
        for _ in range(3):
            fleet.take()
        fleet.give_back(endpoint, left)  # hands a turn to a waiter that will never run

    left.run_until_complete(hold_and_wait())
    assert fleet.in_flight == 1

    async def next_map() -> None:
        await fleet.take()

    asyncio.run(asyncio.wait_for(next_map(), 2))
    left.close()


def test_two_servers_share_the_work_each_within_its_limit(tmp_path: Path) -> None:
    with LocalTGI(slots=6, delay=0.02) as one, LocalTGI(slots=2, delay=0.02) as other:
        teacher = Teacher(f"{one.url},{other.url}", journal=tmp_path / "j")
        replies = ask(teacher, *map(str, range(80)))
        assert all(not isinstance(reply, Exception) for reply in replies)
        assert (one.peak, other.peak) == (6, 2) and 429 not in one.statuses + other.statuses
        assert len(one.chats) + len(other.chats) == 80 and len(other.chats) >= 10


def test_servers_of_two_models_are_refused() -> None:
    differ = pytest.raises(ConfigError, match="different models: another/model@0123abcd, local/teacher@0123abcd")
    with LocalTGI() as one, LocalTGI(model_id="another/model") as other, differ:
        Teacher(f"{one.url}, {other.url}", journal=False).identity()


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srt_hf.teacher.fleet._LOOKS", (0.05,))
    monkeypatch.setattr("srt_hf.teacher.http._PROBE_PAUSES", (0.0,))
    monkeypatch.setattr("srt_hf.teacher.sending.backoff", lambda tries, retry_after=None: 0.01)


def test_a_dead_server_is_left_out_and_taken_back(tmp_path: Path, quick_looks: None) -> None:
    with LocalTGI(slots=2, delay=0.01) as one:
        other = LocalTGI(slots=20, delay=0.01)
        with other:
            pass  # it has an address now, and nobody there
        teacher = Teacher(f"{one.url},{other.url}", journal=tmp_path / "j")
        with pytest.warns(UserWarning, match=f"No teacher answers at {other.url}.* left out until it answers"):
            teacher.identity()
        assert teacher._fleet.limit == 2
        ask(teacher, *map(str, range(10)))
        assert len(one.chats) == 10
        with other.again():
            until = time.monotonic() + 5
            while teacher._fleet.limit < 22 and time.monotonic() < until:
                time.sleep(0.01)
            ask(teacher, *map(str, range(100, 160)))
            assert len(other.chats) > 30


def test_a_server_that_restarts_is_not_hammered(tmp_path: Path, quick_looks: None) -> None:
    tgi = LocalTGI(slots=8, delay=0.01)
    with tgi:
        teacher = Teacher(tgi.url, journal=tmp_path / "j")
        ask(teacher, "before")

    async def through_a_restart() -> list[object]:
        chats = [asyncio.create_task(teacher.chat([{"role": "user", "content": str(n)}])) for n in range(40)]
        await asyncio.sleep(0.5)
        with tgi.again():
            return await asyncio.gather(*chats)

    assert all(reply.text for reply in asyncio.run(through_a_restart()))  # type: ignore[attr-defined]
    # Those that found nobody, at most eight, are not counted, and nobody else tried.
    assert teacher.counts["requests"] == 41 == len(tgi.chats) and teacher.counts["retries"] == 0


def test_a_server_that_comes_back_as_another_stops_the_run(tmp_path: Path, quick_looks: None) -> None:
    tgi = LocalTGI()
    with tgi:
        teacher = Teacher(tgi.url, journal=tmp_path / "j")
        ask(teacher, "before")
    tgi.info["model_id"] = "another/model"

    async def ask_again() -> object:
        chat = asyncio.create_task(teacher.chat([{"role": "user", "content": "after"}]))
        await asyncio.sleep(0.1)
        with tgi.again():
            return await chat

    with pytest.raises(TeacherError, match="came back with another model: another/model@0123abcd"):
        asyncio.run(ask_again())


def test_nobody_comes_back(tmp_path: Path, quick_looks: None) -> None:
    tgi = LocalTGI()
    with tgi:
        teacher = Teacher(tgi.url, journal=tmp_path / "j", outage=0.3)
        teacher.identity()
    [failure] = ask(teacher, "after")
    assert isinstance(failure, TeacherUnreachable) and "No reply" in str(failure)
