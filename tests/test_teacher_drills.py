"""What a run of hours meets: bad replies of every kind, servers that die, kills at any instant, a disk that fills up. No reply
that was reported as saved is lost, none is paid for twice, and every row ends with a candidate or a final error code."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from tgi_server import Faults, LocalTGI

from srt_hf import Reflector, Teacher
from srt_hf.journal import Journal
from srt_hf.schema import features
from srt_hf.teacher.http import HttpBackend
from srt_hf.teacher.protocol import Weather

# Reflects `rows` rows at `url` with the journal and writes them to `out`: what the tests below kill, starve and run twice.
PROGRAM = """
import os, resource, sys, datasets, srt_hf
from srt_hf.cli import run
url, journal, rows, out, largest_file, as_nobody = sys.argv[1:]
data = [{"instruction": f"Say {n}.", "input": "", "output": f"{n} " * 20} for n in range(int(rows))]
if int(largest_file):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file),) * 2)

def main():
    reflector = srt_hf.Reflector(srt_hf.Teacher(url, journal=journal))
    if as_nobody and os.geteuid() == 0:
        os.seteuid(65534)  # permissions do not bind root
    reflected = datasets.Dataset.from_list(data).map(reflector.reflect)
    if out:
        reflected.to_json(out)
    return 0

sys.exit(run(main))
"""


def program(
    tgi: LocalTGI, journal: Path, rows: int, out: Path | str = "", largest_file: int = 0, as_nobody: str = ""
) -> subprocess.Popen[str]:
    arguments = map(str, (tgi.url, journal, rows, out, largest_file, as_nobody))
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """-> exit code, last line of stderr."""
    _, told = process.communicate(timeout=120)
    return process.returncode, (told.strip().splitlines() or [""])[-1]


def undisturbed(rows: int, folder: Path) -> tuple[str, int]:
    """What the program writes when nothing happens to it, and how many requests that takes."""
    with LocalTGI(slots=64) as tgi:
        assert finish(program(tgi, folder / "undisturbed", rows, folder / "undisturbed.jsonl"))[0] == 0
        return (folder / "undisturbed.jsonl").read_text(), len(tgi.chats)


def saved(path: Path) -> int:
    if not path.exists():
        return 0
    journal = Journal(path)
    try:
        return len(list(journal.entries()))
    finally:
        journal.close()


@pytest.mark.parametrize("rows", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_row_ends_and_the_counts_are_the_servers(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 % of all replies are bad in nine ways, and the server dies and returns twice."""
    monkeypatch.setattr("srt_hf.teacher.fleet._LOOKS", (0.05,))
    monkeypatch.setattr("srt_hf.teacher.http._PROBE_PAUSES", (0.0,))
    for module in ("sending", "fleet"):
        monkeypatch.setattr(f"srt_hf.teacher.{module}.backoff", lambda tries, retry_after=None: 0.01)
    generate, found_nobody = HttpBackend.generate, []

    async def watched(*arguments: Any) -> Any:
        try:
            return await generate(*arguments)
        except Weather as weather:
            found_nobody.extend([weather] * (not weather.overloaded))
            raise

    monkeypatch.setattr(HttpBackend, "generate", watched)
    data = Dataset.from_list([{"instruction": f"Say {n}.", "input": "", "output": "x"} for n in range(rows)])
    faults = Faults(0.3)
    with LocalTGI(slots=16, delay=0.005, fault=faults) as tgi:
        teacher = Teacher(tgi.url, journal=tmp_path / "j", timeout=0.5)
        deaths = threading.Thread(target=lambda: [tgi.die_after(at, away=0.3) for at in (rows, 2 * rows)])
        deaths.start()
        reflected = data.map(Reflector(teacher).reflect)
        deaths.join()
    outcomes = Counter(candidate["error"] for row in reflected for candidate in row["candidates"][1:])
    assert outcomes.total() == 3 * rows and outcomes[None] > 2 * rows
    assert set(outcomes) <= {None, "truncated", "unparsable", "server_error", "timeout", "not_attempted"}
    assert len(faults.drawn) == 9 and found_nobody
    ours, servers = teacher.counts, tgi.counts()
    # What found nobody never reached the server, and is not counted.
    assert ours["requests"] == servers["requests"] and ours["retries"] == servers["retries"]
    assert ours["asked_again"] == servers["asked_again"] > 0
    # Every reply that the server got rid of is in the journal, once; but not those to "Say yes.", a look whether it works.
    others = sum(path != "/v1/chat/completions" for path, _, _ in tgi.requests)
    looks = sum(body["messages"][-1]["content"] == "Say yes." for body in tgi.chats)
    replies = servers["statuses"]["200"] - others - faults.drawn["half a JSON"] - faults.drawn["HTML"]
    records = [record for _, _, _, record in Journal(tmp_path / "j").entries()]
    assert replies - looks <= sum("text" in record for record in records) <= replies
    assert sum("error" in record for record in records) >= outcomes["server_error"] + outcomes["timeout"]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_goes_on(kills: int, tmp_path: Path) -> None:
    rows, slots, moments = 5 * kills, 8, random.Random(kills)
    whole, distinct = undisturbed(rows, tmp_path)
    with LocalTGI(slots=slots, delay=0.2) as tgi:
        lost = 0  # replies paid for that no journal has
        for _ in range(kills):
            process = program(tgi, tmp_path / "j", rows)
            until = len(tgi.chats) + moments.randrange(1, 2 * distinct // (3 * kills))
            while len(tgi.chats) < until and process.poll() is None:
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.2))
            assert process.poll() is None, "it had nothing left to do"
            process.kill()
            process.communicate()
            while tgi.busy:
                time.sleep(0.01)
            before, lost = lost, len(tgi.chats) - saved(tmp_path / "j")
            assert lost - before <= 2 * slots  # at the server, or on the way from it to the disk
        assert finish(program(tgi, tmp_path / "j", rows, tmp_path / "out.jsonl"))[0] == 0
        assert (tmp_path / "out.jsonl").read_text() == whole
        assert saved(tmp_path / "j") == distinct == len(tgi.chats) - lost


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it. What was bought and could not be saved is what was under way."""
    rows, slots = 60, 8
    whole, distinct = undisturbed(rows, tmp_path)
    with LocalTGI(slots=slots, delay=0.02) as tgi:
        code, told = finish(program(tgi, tmp_path / "j", rows, largest_file=100_000))
        assert code == 1 and told.startswith("error: The journal ") and "--journal" in told
        kept = saved(tmp_path / "j")
        assert 0 < kept < distinct and len(tgi.chats) - kept <= 2 * slots
        assert finish(program(tgi, tmp_path / "j", rows, tmp_path / "out.jsonl"))[0] == 0
        assert (tmp_path / "out.jsonl").read_text() == whole


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    """In a folder, or a file, without the right to write: said before anything is bought."""
    with tempfile.TemporaryDirectory() as name, LocalTGI() as tgi:  # tmp_path itself is closed to whom root becomes here
        folder = Path(name)
        folder.chmod(0o755)
        Journal(folder / "j").get("nothing")  # makes the file
        (folder / "j").chmod(0o444)
        folder.chmod(0o555)
        for path in (folder / "new", folder / "j"):
            code, told = finish(program(tgi, path, rows=3, as_nobody="yes"))
            assert code == 1 and told.startswith(f"error: The journal {path} cannot be used: ") and "--journal" in told
        folder.chmod(0o755)
        assert not tgi.chats


def test_a_clock_that_jumps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.time
    began = clock()
    monkeypatch.setattr(time, "time", lambda: began - 3600 * (clock() - began))  # an hour back every second
    rows = [{"instruction": f"Say {n}.", "input": "", "output": "x"} for n in range(40)]
    with LocalTGI(slots=4, delay=0.005, fault=Faults(0.1)) as tgi:
        reflector = Reflector(Teacher(tgi.url, journal=tmp_path / "j", timeout=1.0, outage=5.0))
        reflected = Dataset.from_list(rows).map(reflector.reflect)
        assert len(reflected) == 40 and saved(tmp_path / "j") > 100
        sent = len(tgi.chats)
        tgi.fault = None
        Dataset.from_list(rows).map(Reflector(Teacher(tgi.url, journal=tmp_path / "j")).reflect)
        assert len(tgi.chats) == sent


def test_two_runs_at_once_share_one_journal(tmp_path: Path) -> None:
    rows = 60
    whole, distinct = undisturbed(rows, tmp_path)
    with LocalTGI(slots=16, delay=0.02) as tgi:
        runs = [program(tgi, tmp_path / "j", rows, tmp_path / f"{n}.jsonl") for n in range(2)]
        assert [finish(one)[0] for one in runs] == [0, 0]
        assert all((tmp_path / f"{n}.jsonl").read_text() == whole for n in range(2))
        assert saved(tmp_path / "j") == distinct
        sent = len(tgi.chats)
        assert finish(program(tgi, tmp_path / "j", rows))[0] == 0
        assert len(tgi.chats) == sent and sent - tgi.statuses.count(429) <= 2 * distinct


@pytest.mark.slow
def test_memory_is_flat_over_a_stream(tmp_path: Path) -> None:
    rows, used = 4000, []
    stream = IterableDataset.from_generator(lambda: ({"instruction": f"Say {n}.", "output": "word " * 200} for n in range(rows)))
    with LocalTGI(slots=64, remember=False) as tgi:
        reflector = Reflector(Teacher(tgi.url, journal=tmp_path / "j"))
        reflected = stream.map(reflector.reflect, features=features(["instruction", "output", "id", "candidates"]))
        for n, _ in enumerate(reflected, 1):
            if n % (rows // 4) == 0:
                used.append(resident())
    assert len(used) == 4 and used[-1] - used[0] < 30, used


def resident() -> float:
    """MiB of memory that this process has now."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("only Linux tells")
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.slow
def test_the_bench(tmp_path: Path) -> None:
    script = str(Path(__file__).parents[1] / "scripts" / "bench_teacher.py")
    tiny = ["--slots", "8", "--mean", "0.1", "--seconds", "2", "--repetitions", "1", "--rows", "40"]
    for more in ([], ["--faults"]):
        done = subprocess.run(
            [sys.executable, script, *tiny, *more, "--json", str(tmp_path / "out.json")],
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / "out.json").read_text())
        if more:
            assert report["client"]["requests"] == report["server"]["requests"] and sum(report["outcomes"].values()) == 3 * 40
        else:
            assert all(found[0]["replies/s"] > 0 for found in report["runs"].values()) and report["memory"]["end"] > 0
            assert report["runs"]["ours"][0]["lost"] == 0 and report["runs"]["ours"][0]["rejected"] < 0.02
