# /// script
# requires-python = ">=3.10"
# dependencies = ["srt_hf"]
# ///
"""How well the teacher's client keeps a simulated TGI busy, beside the ways in use: one run, interleaved repetitions, medians.

    python scripts/bench_teacher.py --rows 50000 --json bench.json
    python scripts/bench_teacher.py --faults    # 30 % of the replies are bad, and the server dies twice

The server is tests/tgi_server.py, a process of its own. What was measured is in scripts/bench_teacher.md.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import datasets
from huggingface_hub import AsyncInferenceClient

import srt_hf
from srt_hf.cli import option, parse, run
from srt_hf.network import httpx
from srt_hf.report import render_table, write_json
from srt_hf.schema import TRIPLE, features

SETTLING = 0.2  # the share of a run before anything is measured
ROW = {"instruction": "Write about this number.", "output": "A sentence of an answer, neither short nor long. " * 15}
# Each way's requests at once, and how many of them wait for each other. Ours: the rows that `Dataset.map` has under way.
WAYS = dict.fromkeys(("ours", "ours, limit not told", "ours, no latency"), (1_000, 1))
WAYS |= {"batches of 10": (1, 10), "semaphore 32": (32, 1), "semaphore 1,000": (1_000, 1)}
COLUMNS = {"replies/s": ".1f", "ceiling": ".1%", "rejected": ".2%", "lost": ".0f", "CPU ms": ".2f", "MiB": ".0f"}
NOTES = """{slots} slots, log-normal reply times of {mean} s (sigma 0.8); medians of {repetitions} runs of {seconds} s
ceiling  replies/s, once settled, as a share of slots / mean time; rejected: requests answered with 429, by the server's count
lost     rows given up; ours has its journal on, the others try 5 times, a second apart
CPU ms   of the client's process, for a reply: 2 are 500 replies a second on one core; MiB: its peak RSS"""


@dataclass
class Arguments:
    """The simulated server and the runs"""

    slots: int = option(64, "requests that the server takes at once; it answers 429 to more")
    mean: float = option(0.5, "seconds that it takes for a reply, on average")
    seconds: float = option(9.0, "of each run")
    repetitions: int = option(2, "runs of each way, interleaved")
    rows: int = option(1_000, "rows of the run that looks at memory, or of the fault drill; up to three replies each")
    faults: bool = option(False, "the fault drill instead of all this")
    json: str | None = option(None, "file for every number")


@contextmanager
def simulated_tgi(**options: Any) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, str(Path(__file__).parents[1] / "tests" / "tgi_server.py"), json.dumps(options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process, ExitStack() as end:
        end.callback(process.kill)
        yield process.stdout.readline().strip()  # type: ignore[union-attr]


def asking(way: str, url: str, folder: str) -> Callable[[int], Any]:
    """How this way asks for row number n, until it has the reply or gives up."""
    prompts, teacher = srt_hf.Prompts(), srt_hf.Teacher(url, journal=Path(folder) / "journal.sqlite")
    client = AsyncInferenceClient(base_url=url, api_key="-")

    async def ask(n: int) -> object:
        messages = prompts.reflection("response", ROW["instruction"], str(n), ROW["output"])
        if way.startswith("ours"):
            return await teacher.chat(messages)
        for _ in range(4):
            with suppress(Exception):  # whatever it is, again: that is what is naive
                return await client.chat_completion(messages, max_tokens=2048)
            await asyncio.sleep(1)
        return await client.chat_completion(messages, max_tokens=2048)

    return ask


async def drive(ask: Callable[[int], Any], at_once: int, together: int, seconds: float, url: str) -> dict[str, Any]:
    """Ask for row after row until the time is up, and look at what came once settled."""
    logging.disable()
    rows, done, lost = iter(range(sys.maxsize)), 0, 0

    async def work() -> None:
        nonlocal done, lost
        while True:
            found = await asyncio.gather(*(ask(next(rows)) for _ in range(together)), return_exceptions=True)
            failed = sum(isinstance(one, Exception) for one in found)
            done, lost = done + together - failed, lost + failed

    async def so_far() -> list[float]:
        server = (await asyncio.to_thread(httpx.get, f"{url}/counts")).json()
        return [time.monotonic(), time.process_time(), done, server["requests"], server["statuses"].get("429", 0)]

    workers = asyncio.gather(*(work() for _ in range(at_once)))
    await asyncio.sleep(SETTLING * seconds)
    early = await so_far()
    await asyncio.sleep((1 - SETTLING) * seconds)
    took, cpu, replies, requests, rejected = (late - before for late, before in zip(await so_far(), early, strict=True))
    workers.cancel()
    return {"replies/s": replies / took, "rejected": rejected / requests, "lost": lost, "CPU ms": 1000 * cpu / replies}


def measure(url: str, way: str, seconds: float) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        found = drive(asking(way, url, folder), *WAYS[way], seconds, url)
        return {**asyncio.run(found), "MiB": getrusage(RUSAGE_SELF).ru_maxrss / 2**10}


def stream(url: str, rows: int) -> dict[str, Any]:
    """The peaks of memory after the first fifth of a stream's rows and after all of them."""
    data = datasets.IterableDataset.from_generator(lambda: ({**ROW, "input": str(n)} for n in range(rows)))
    with TemporaryDirectory() as folder:
        reflector = srt_hf.Reflector(srt_hf.Teacher(url, journal=Path(folder) / "journal.sqlite"))
        reflected = data.map(reflector.reflect, features=features([*TRIPLE, "id", "candidates"]))
        peaks = [getrusage(RUSAGE_SELF).ru_maxrss / 2**10 for _ in reflected]
        return {"early": peaks[int(SETTLING * rows)], "end": peaks[-1]}


def fresh(work: Callable[..., dict[str, Any]], *arguments: Any, **server: Any) -> dict[str, Any]:
    """Run `work(url, ...)` in a process of its own, whose peak of memory is its own too."""
    with simulated_tgi(**server) as url, get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (url, *arguments))


def compare(given: Arguments) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for way in [*runs] * given.repetitions:
        mean = 0.0 if "no latency" in way else given.mean
        found = fresh(measure, way, given.seconds, slots=given.slots, mean=mean, told="not told" not in way)
        runs[way].append({**found, "ceiling": found["replies/s"] * mean / given.slots})
    lines = [[way, *(format(median(r[name] for r in of), form) for name, form in COLUMNS.items())] for way, of in runs.items()]
    print(NOTES.format(**asdict(given)), render_table(["", *COLUMNS], lines), sep="\n\n")
    memory = fresh(stream, given.rows, slots=given.slots)
    print("\nA stream of {} rows: {early:.0f} MiB after a fifth of them, {end:.0f} at the end".format(given.rows, **memory))
    return {"runs": runs, "memory": memory}


def drill(given: Arguments) -> dict[str, Any]:
    """Rows through `Dataset.map` while 30 % of the replies are bad, and the server dies at two moments."""
    rows = datasets.Dataset.from_list([{**ROW, "input": str(n)} for n in range(given.rows)])
    server = {"slots": given.slots, "mean": 0.05, "faults": 0.3, "deaths": [given.rows, 2 * given.rows]}
    with TemporaryDirectory() as folder, simulated_tgi(**server) as url:
        teacher = srt_hf.Teacher(url, journal=Path(folder) / "journal.sqlite", timeout=2.0)
        result = rows.map(srt_hf.Reflector(teacher).reflect)
        report = {"client": teacher.counts, "server": httpx.get(f"{url}/counts").json()}
    report["outcomes"] = Counter(candidate["error"] or "good" for row in result for candidate in row["candidates"][1:])
    print(json.dumps(report, indent=2))
    return report


def main(given: Arguments) -> int:
    report = {**asdict(given), **(drill(given) if given.faults else compare(given))}
    if given.json:
        write_json(given.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(run(lambda: main(*parse(__doc__, Arguments))))
