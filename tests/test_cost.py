"""What a run is expected to cost, and the line that tells what it costs meanwhile."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from datasets import Dataset
from tgi_server import LocalTGI

from srt_hf import Prompts, Reflector, Student, Teacher, recycle
from srt_hf.estimate import Fleet, count_student, estimate
from srt_hf.live import Live
from srt_hf.report import Prices
from srt_hf.schema import TRIPLE

ROWS = Dataset.from_dict({"instruction": ["Name a fruit."] * 3000, "input": [""] * 3000, "output": ["An apple."] * 3000})


def numbers(table: str) -> dict[str, int]:
    found = re.findall(r"^(\w[\w ]*?)  +(?:about )?([\d,]+)", table, re.M)
    return {name: int(number.replace(",", "")) for name, number in found}


def test_an_estimate_from_a_sample() -> None:
    fleet = Fleet(teacher_rate=1000.0)
    selective = estimate(ROWS, mode="selective", prompts=Prompts(), fleet=fleet, prices=Prices(1.0, 10.0))
    found = numbers(selective)
    assert found["rows"] == 3000 and found["teacher calls"] == 6000
    system, user = (len(turn["content"]) for turn in Prompts().reflection("instruction", "Name a fruit.", "", "An apple."))
    assert 3000 * (system + user) / 4 < found["prompt tokens"] < 9000 * (system + user) / 4
    assert 3000 * 2 * 346 < found["completion tokens"] < 3000 * 2 * 1000
    expected = (found["prompt tokens"] + 10 * found["completion tokens"]) / 1e6
    assert found["cost of tokens"] == pytest.approx(expected, rel=0.1) and " min, 1 server at 1,000" in selective
    assert numbers(estimate(ROWS, mode="exhaustive", prompts=Prompts()))["teacher calls"] == 9000
    assert "give --teacher_rate" in estimate(ROWS.select([]), mode="selective", prompts=Prompts())


def row(n: int) -> tuple[str, str, str]:
    return f"Ask about {n}.", "", f"It is {n} again."


def test_student_passes_are_those_of_a_run(student_folder: str, tmp_path: Path) -> None:
    """Planned for texts that do not exist yet; the issue's figures on 3,111 real rows, some of which fail: 12.7 and 8.4 a row."""
    rows = [row(n) for n in range(30)]
    expected = {mode: count_student(rows, mode).passes / 30 for mode in ("exhaustive", "selective")}
    assert expected["exhaustive"] == 14 and 8 < expected["selective"] < 10
    data = Dataset.from_list([dict(zip(TRIPLE, one, strict=True)) for one in rows])
    passes = {}
    with LocalTGI() as tgi:
        for mode in expected:
            teacher = Teacher(tgi.url, journal=tmp_path / "j")
            report = recycle(data, teacher=teacher, student=Student(student_folder, template="vicuna"), mode=mode).report
            passes[mode] = report.student["passes"] / 30
    assert 13 < passes["exhaustive"] <= 14  # where two of its answers are the same text
    # From 7 where every original stays to 11 where nothing of it does, as nearly here; about half of it is taken for a guess.
    assert 7 < expected["selective"] < passes["selective"] <= 11


def test_equal_texts_and_common_beginnings_are_run_once() -> None:
    one, many = count_student([row(0)], "exhaustive"), count_student([row(0)] * 10, "exhaustive")
    # What teachers write differs; the original's own passes are one row's.
    assert one.passes == 14 and many.passes == 14 + 9 * 10
    assert many.tokens < 10 * one.tokens
    assert count_student([], "selective").passes == 0


def test_a_fleet_its_bottleneck_and_what_to_add() -> None:
    plain = estimate(ROWS, mode="exhaustive", prompts=Prompts())
    completion, tokens = (numbers(plain)[name] for name in ("completion tokens", "student tokens"))
    assert numbers(plain)["student passes"] == 3000 * 14 or "a row" in plain
    fleet = Fleet(completion / 3600 / 8, 2, tokens / 3600 / 3, 1, teacher_price=2.0, student_price=4.0)  # 4 h and 3 h
    table = estimate(ROWS, mode="exhaustive", prompts=Prompts(), fleet=fleet)
    lines = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in table.splitlines() if "  " in line}
    assert re.match(r"about (4 h 0|3 h 5\d|4 h \d) min, 2 servers at", lines["teacher"]), table
    assert re.match(r"about (3 h 0|2 h 5\d|3 h \d) min, 1 device at", lines["student"])
    assert "one after the other" in lines["run"] and re.match(r"about (7 h|6 h 5\d)", lines["run"])
    assert lines["bottleneck"].startswith("the teacher, 5")
    # Half of the student's three hours go, and only a third of the teacher's four.
    assert lines["add next"].startswith("one more device: about 5 h") and "one more server: about 5 h" in table
    assert float(lines["cost of the fleet"].split()[1].rstrip(",")) == pytest.approx(7 * 8, rel=0.05)
    overlapped = estimate(ROWS, mode="exhaustive", prompts=Prompts(), fleet=fleet, overlap=True)
    assert "the slower of the two, which overlap" in overlapped
    assert re.search(r"add next +one more server: about (3 h 0|2 h 5\d|3 h \d) min, cost about", overlapped), overlapped
    assert "give --student_rate" in estimate(ROWS, mode="exhaustive", prompts=Prompts(), fleet=Fleet(teacher_rate=100))


def test_the_live_line() -> None:
    with LocalTGI(
        lambda body: ("no tags at all", "stop") if "poison" in str(body) else ("[Better Answer]\nA pear.\n[End]", "stop")
    ) as tgi:
        reflector = Reflector(Teacher(tgi.url, journal=False))
        live = Live(reflector, 4, Prices(1e6, 0.0))
        assert live.line().startswith("0 of 4 rows · 0 of 16 in flight")
        time.sleep(0.01)
        rows = Dataset.from_dict({"instruction": ["Name a fruit.", "poison", "Name a tree."], "output": ["x"] * 3})
        rows.map(reflector.reflect_response)
        line = live.line()
    sent = sum(len(turn["content"].split()) for body in tgi.chats for turn in body["messages"])
    assert line.startswith("3 of 4 rows · 0 of 128 in flight · ") and f"cost {sent:,.2f}" in line
    assert "1 asked again · 1 unparsable · " in line and " left" in line and "tokens/s in" in line


def test_no_line_where_progress_bars_are_off(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srt_hf.live._EVERY_LOG", 0.01)
    reflector = Reflector("replay:" + __file__)
    monkeypatch.setattr(Live, "line", lambda self: "the line")
    with Live(reflector, 1):
        time.sleep(0.1)
    assert "the line\nthe line\n" in capsys.readouterr().err
    monkeypatch.setattr("datasets.are_progress_bars_disabled", lambda: True)
    with Live(reflector, 1):
        time.sleep(0.05)
    assert "the line" not in capsys.readouterr().err
