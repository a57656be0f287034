# /// script
# requires-python = ">=3.10"
# dependencies = ["srt_hf[ray]"]
# ///
"""Recycle an instruction dataset for a student with Selective Reflection-Tuning, and push the result to the Hub.

    python scripts/recycle_and_push.py --dataset tatsu-lab/alpaca --teacher http://localhost:8080 \\
        --student meta-llama/Llama-2-7b-hf --repo org/srecycled-alpaca

The teacher (TGI or any OpenAI-compatible server) reflects on each pair, the student chooses by IFD and r-IFD. A server's key is
read from SRT_HF_TEACHER_KEY. A stopped run goes on where it was when the same command is given again. With --num_shards and
--shard_index several machines take a part of the rows each, and scripts/merge.py makes one result of theirs.
Exit codes: 0 done, 1 error, 2 wrong option, 3 nothing was kept, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Any

import srt_hf
from srt_hf.arguments import CostArguments, SelectionArguments, StudentArguments, TeacherArguments
from srt_hf.cli import changed, parse, run
from srt_hf.estimate import estimate
from srt_hf.run_arguments import EngineArguments, OutputArguments, ReflectionArguments, SourceArguments, check_use, settings
from srt_hf.shards import take
from srt_hf.sources import prepare


def main(
    source: SourceArguments,
    teaching: TeacherArguments,
    asking: ReflectionArguments,
    scoring: StudentArguments,
    selection: SelectionArguments,
    cost: CostArguments,
    running: EngineArguments,
    output: OutputArguments,
) -> int:
    check_use(source, changed(teaching, asking, cost, running), changed(scoring), output.repo)
    options = asking.options()
    made = source.provenance()
    naming: dict[str, Any] = {"columns": source.columns, "id_column": source.id_column}
    if cost.estimate:
        prepared = prepare(source.load(scoring.student, made.revision), **naming)
        if source.place:
            prepared, _ = take(prepared, *source.place)
        asked = {name: options[name] for name in ("mode", "prompts", "structured")}
        asked["overlap"] = running.engine == "ray"
        print(estimate(prepared, fleet=cost.fleet, prices=cost.prices, selector=selection.make(), **asked))
        return 0
    deciding: dict[str, Any] = {"selector": selection.make(), "proxy": scoring.proxy, "margin": scoring.margin}
    deciding["student"] = None if source.scores else scoring.make()
    teacher = None if source.candidates else teaching.make()
    output.check(scoring.student)  # before anything is paid for
    rows, shard = source.load(scoring.student, made.revision), None
    if source.place:
        whole = rows if source.candidates else prepare(rows, **naming)
        rows, shard = take(whole, *source.place, settings(teaching, asking, options["prompts"]), len(rows) - len(whole))
        naming = {}  # the columns have their names now, and the ids of the whole
    if teacher is None:
        recycled = srt_hf.reselect(rows, **deciding)
    else:
        recycled = srt_hf.recycle(rows, teacher=teacher, prices=cost.prices, **deciding, **naming, **options, **running.options())
    if shard:
        shard.mark(recycled)
    return output.publish(recycled, provenance=made, replies=asking.replies)


if __name__ == "__main__":
    groups = (SourceArguments, TeacherArguments, ReflectionArguments, StudentArguments, SelectionArguments, CostArguments)
    arguments = parse(__doc__, *groups, EngineArguments, OutputArguments)
    sys.exit(run(lambda: main(*arguments), "Every reply so far is in the journal; the same command goes on from there."))
