# /// script
# requires-python = ">=3.10"
# dependencies = ["srt_hf[ray]"]
# ///
"""What the engine ray gains, and what it costs, on this machine: teacher and student at once against one after the other.

    python scripts/bench_scale.py --json bench.json       # in a checkout of the project, a quarter of an hour

The teacher is tests/tgi_server.py, a process of its own, as slow as makes both stages take equally long; the student is random,
and its scoring is real, on one thread. What was measured is in scripts/bench_scale.md.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in what Ray starts

import datasets

import srt_hf
from srt_hf.cli import option, parse, run
from srt_hf.report import render_table, write_json

TESTS = Path(__file__).parents[1] / "tests"
CALLS = 3  # of the teacher, a row
SIGMA = 0.8  # of the logarithm of a reply's seconds
# A student that is slow enough to be what a run waits for, and one that costs next to nothing.
SIZES = {
    "large": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "max_position_embeddings": 1024},
    "small": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
}
NOTES = """{rows} rows, exhaustive; a teacher of {slots} slots; medians of {repetitions} interleaved runs
gain            seconds of the two stages one after the other, over those of the engine ray with its start, and without
1, 2 students   all replies are in the journal: rows/s of the engine once started
engine          the same with a student that costs next to nothing: ms a row, beside those of the local engine"""


@dataclass
class Arguments:
    """The runs"""

    rows: int = option(3000, "rows of each run")
    slots: int = option(64, "requests that the teacher takes at once")
    repetitions: int = option(2, "runs of each kind, interleaved")
    json: str | None = option(None, "file for every number")


@contextmanager
def simulated_tgi(**options: Any) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, str(TESTS / "tgi_server.py"), json.dumps(options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process, ExitStack() as end:
        end.callback(process.kill)
        yield process.stdout.readline().strip()  # type: ignore[union-attr]


def make_students(folder: Path) -> dict[str, str]:
    """Folders of the students."""
    sys.path.append(str(TESTS))
    make = importlib.import_module("tiny_models").make
    return {name: str(make("llama", folder / name, **size)) for name, size in SIZES.items()}


class Bench:
    """Runs of the method, and the seconds that their stages take."""

    def __init__(self, folder: Path, given: Arguments) -> None:
        self.folder, self.given = folder, given
        self.students = make_students(folder)
        self.number = count()
        self.journal = Path()  # of the last run that asked the teacher

    def run(self, url: str, student: str = "large", rows: int = 0, again: bool = False, **engine: Any) -> dict[str, float]:
        """Stage -> seconds. again: with the replies of the run before, from a journal of its own, so that nothing is cached."""
        journal = self.folder / f"journal-{next(self.number)}"
        if again:
            shutil.copy(self.journal, journal)
        else:
            self.journal = journal
        data = datasets.Dataset.from_list([self.row(n) for n in range(rows or self.given.rows)])
        teacher = srt_hf.Teacher(url, journal=journal)
        chosen = srt_hf.Student(self.students[student], template="vicuna")
        result = srt_hf.recycle(data, teacher=teacher, student=chosen, mode="exhaustive", **engine)
        teacher.journal.close()  # type: ignore[union-attr]
        return {stage: seconds for stage, seconds in result.report.seconds.items() if stage.startswith(("reflect", "score"))}

    @staticmethod
    def row(n: int) -> dict[str, str]:
        return {"instruction": f"Write about number {n}.", "output": f"The number {n} comes after {n - 1}. " * 4}


def calibrate(bench: Bench) -> float:
    """Seconds a reply with which the teacher takes as long as the student."""
    with simulated_tgi(slots=bench.given.slots) as url:
        student = bench.run(url)["score"]  # the first run, which also warms up
    mean = student * bench.given.slots / (CALLS * bench.given.rows)
    with simulated_tgi(slots=bench.given.slots, mean=mean, sigma=SIGMA) as url:
        found = bench.run(url)
    return mean * found["score"] / found["reflect"]


def measure(bench: Bench, mean: float) -> dict[str, float]:
    """One repetition: what each kind of run took, in seconds."""
    rows = bench.given.rows
    ray: dict[str, Any] = {"engine": "ray", "students": 1}
    both = "reflect and score"
    with simulated_tgi(slots=bench.given.slots, mean=mean, sigma=SIGMA) as url:
        start = bench.run(url, rows=1, **ray)[both]
        local = bench.run(url)
        overlapped = bench.run(url, **ray)[both]
        one = bench.run(url, again=True, **ray)[both]
        two = bench.run(url, again=True, engine="ray", students=2)[both]
        plain = bench.run(url, "small", again=True)
        empty = bench.run(url, "small", again=True, **ray)[both]
    return {
        "teacher, s": local["reflect"],
        "student, s": local["score"],
        "engine ray, s": overlapped,
        "of that, its start, s": start,
        "gain": sum(local.values()) / overlapped,
        "gain once started": sum(local.values()) / (overlapped - start),
        "1 student, rows/s": rows / (one - start),
        "2 students, rows/s": rows / (two - start),
        "engine, ms a row": 1000 * (empty - start) / rows,
        "engine local, ms a row": 1000 * sum(plain.values()) / rows,
    }


def main(given: Arguments) -> int:
    warnings.simplefilter("ignore")  # a random student knows no template
    datasets.disable_progress_bars()
    found = defaultdict(list)
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given)
        mean = calibrate(bench)
        for _ in range(given.repetitions):
            for name, value in measure(bench, mean).items():
                found[name].append(value)
    print(NOTES.format(**asdict(given)), f"teacher: {mean:.2f} s a reply\n", sep="\n")
    lines = [[name, f"{median(values):.2f}", ", ".join(f"{value:.2f}" for value in values)] for name, values in found.items()]
    print(render_table(["", "median", "all"], lines))
    if given.json:
        write_json(given.json, {**asdict(given), "mean": mean, "runs": found})
    return 0


if __name__ == "__main__":
    [arguments] = parse(__doc__, Arguments)
    sys.exit(run(lambda: main(arguments)))
