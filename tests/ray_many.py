"""Recycle many invented rows by the engine ray, in a process of its own; prints the peak memory of that driver:

    python ray_many.py TEACHER_URL STUDENT_FOLDER JOURNAL ROWS

Memory is what the process holds itself (RssAnon). The rows of a block have one text, so that the teacher is asked for it once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from datasets import Dataset, disable_progress_bars
from push_many import Peak

from srt_hf import Student, Teacher, recycle
from srt_hf.scoring import BATCH


def rows(count: int) -> Iterator[dict[str, Any]]:
    for n in range(count):
        yield {"id": str(n), "instruction": f"Write about number {n // BATCH}.", "output": f"It is number {n // BATCH}. " * 20}


if __name__ == "__main__":
    url, student, journal, count = *sys.argv[1:4], int(sys.argv[4])
    disable_progress_bars()
    table = Dataset.from_generator(rows, gen_kwargs={"count": count})
    peak = Peak()
    peak.start()
    start = time.perf_counter()
    by = {"teacher": Teacher(url, journal=journal), "student": Student(student, template="vicuna")}
    done = recycle(table, mode="exhaustive", engine="ray", ray_address="local", **by).rows
    assert len(done) == count and done[count - 1]["candidates"][3]["error"] is None and done[0]["scores"][0]["ifd"] is not None
    print(f"{count} rows, {time.perf_counter() - start:.0f} s")
    print(peak.mib)
