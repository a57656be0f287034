"""Recycle rows by the engine ray in a process of its own, for tests that kill it: python ray_run.py JSON-OF-THE-ARGUMENTS"""

from __future__ import annotations

import json
import sys
from typing import Any

from datasets import Dataset

import srt_hf
from srt_hf.cli import run


def main(rows: str, out: str, teacher: str, journal: str, student: str, **more: Any) -> int:
    asked = srt_hf.Teacher(teacher, journal=journal)
    chosen = srt_hf.Student(student, template="vicuna")
    result = srt_hf.recycle(Dataset.from_json(rows), teacher=asked, student=chosen, engine="ray", **more)
    result.rows.to_parquet(out)
    return 0


if __name__ == "__main__":
    sys.exit(run(lambda: main(**json.loads(sys.argv[1])), "The journal has it."))
