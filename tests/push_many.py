"""Decide, document and push many invented rows, in a process of its own; prints its peak memory: python push_many.py REPO ROWS

Memory is what the process holds itself (RssAnon): the pages of memory-mapped tables are the system's, which takes them back.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from srt_hf import reselect
from srt_hf.schema import CANDIDATE, CANDIDATES_COLUMNS, NLLS, ORIGINS, SCORED_BY, SCORED_COLUMNS, features
from srt_hf.student import as_score

WORDS = [f"{a}{b}" for a in ("ra", "mo", "ti", "lun", "per", "so") for b in ("ver", "dal", "ka", "nish", "tor", "el", "um")]
NONE = dict.fromkeys(field.name for field in CANDIDATE)
BY = {**dict.fromkeys(field.name for field in SCORED_BY), "student": "org/student"}


def rows(count: int) -> Iterator[dict[str, Any]]:
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    for n in range(count):
        triple = {"instruction": text(12), "input": "", "output": text(60)}
        written = {**NONE, **triple, "sample": 0}
        candidates = [{**written, "origin": origin, "critique": text(80), "output": text(120)} for origin in ORIGINS[:4]]
        scores = [as_score(dict(zip(NLLS, draw.sample((1.0, 1.2, 1.4, 1.6), 4), strict=True))) for _ in candidates]
        yield {"id": str(n), **triple, "candidates": candidates, "scores": scores, "scored_by": BY}


class Peak(threading.Thread):
    """The highest RssAnon, in MiB, sampled."""

    mib = 0.0

    def __init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.mib = max(self.mib, int(status.partition("RssAnon:")[2].split()[0]) / 2**10)
            time.sleep(0.02)


if __name__ == "__main__":
    repo, count = sys.argv[1], int(sys.argv[2])
    table = Dataset.from_generator(rows, gen_kwargs={"count": count}, features=features((*CANDIDATES_COLUMNS, *SCORED_COLUMNS)))
    peak = Peak()
    peak.start()
    start = time.perf_counter()
    recycled = reselect(table)
    print(recycled.push_to_hub(repo))
    print(f"{recycled.report.kept} kept, {time.perf_counter() - start:.0f} s", recycled.report.seconds)
    print(peak.mib)
