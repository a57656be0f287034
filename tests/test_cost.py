"""What a run is expected to cost, and the line that tells what it costs meanwhile."""

from __future__ import annotations

import re
import time

import pytest
from datasets import Dataset
from tgi_server import LocalTGI

from srt_hf import Prompts, Reflector, Teacher
from srt_hf.estimate import estimate
from srt_hf.live import Live
from srt_hf.report import Prices

ROWS = Dataset.from_dict({"instruction": ["Name a fruit."] * 3000, "input": [""] * 3000, "output": ["An apple."] * 3000})


def numbers(table: str) -> dict[str, int]:
    found = re.findall(r"^(\w[\w ]*?)  +(?:about )?([\d,]+)", table, re.M)
    return {name: int(number.replace(",", "")) for name, number in found}


def test_an_estimate_from_a_sample() -> None:
    selective = estimate(ROWS, mode="selective", prompts=Prompts(), rate=1000.0, prices=Prices(1.0, 10.0))
    found = numbers(selective)
    assert found["rows"] == 3000 and found["teacher calls"] == 6000
    system, user = (len(turn["content"]) for turn in Prompts().reflection("instruction", "Name a fruit.", "", "An apple."))
    assert 3000 * (system + user) / 4 < found["prompt tokens"] < 9000 * (system + user) / 4
    assert 3000 * 2 * 346 < found["completion tokens"] < 3000 * 2 * 1000
    expected = (found["prompt tokens"] + 10 * found["completion tokens"]) / 1e6
    assert found["cost"] == pytest.approx(expected, rel=0.1) and " min at 1,000" in selective
    assert numbers(estimate(ROWS, mode="exhaustive", prompts=Prompts()))["teacher calls"] == 9000
    assert "give --rate" in estimate(ROWS.select([]), mode="selective", prompts=Prompts())


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
