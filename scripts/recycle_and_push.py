"""Recycle an instruction dataset for a student with Selective Reflection-Tuning, and push the result to the Hub.

    python scripts/recycle_and_push.py --dataset tatsu-lab/alpaca --teacher http://localhost:8080 \\
        --student meta-llama/Llama-2-7b-hf --repo org/srecycled-alpaca

The teacher (TGI or any OpenAI-compatible server) reflects on each pair, the student chooses by IFD and r-IFD. Every option can
stand in a YAML file given with --config; the command line wins. A server's key is read from SRT_HF_TEACHER_KEY. A stopped run
goes on where it was when the same command is given again. Exit codes: 0 done, 1 error, 3 nothing was kept, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import srt_hf
from srt_hf import hub
from srt_hf.cli import parse, run
from srt_hf.pipeline import MODES, top_reasons
from srt_hf.prompts import TEMPLATE_NAMES
from srt_hf.schema import TRIPLE
from srt_hf.selection import KEEPS, RULES


def option(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, **more})


@dataclass
class SourceArguments:
    """The dataset to recycle"""

    dataset: str = option("tatsu-lab/alpaca", "Hub id, local JSON, JSONL, Parquet or CSV file, or saved dataset")
    dataset_config: str | None = option(None, "config of a Hub dataset")
    split: str = option("train", "split")
    revision: str | None = option(None, "branch, tag or commit of a Hub dataset")
    limit: int | None = option(None, "take only the first rows")
    id_column: str | None = option(None, "column of distinct ids [id, if there is one]; with '' they are made from the text")
    instruction_column: str | None = option(None, "the dataset's own name for `instruction`")
    input_column: str | None = option(None, "the dataset's own name for `input`")
    output_column: str | None = option(None, "the dataset's own name for `output`")


@dataclass
class TeacherArguments:
    """The model that reflects and rewrites"""

    teacher: str = option("http://localhost:8080", "server URL, Hub model id, local:MODEL or replay:FILE-OR-REPO")
    teacher_model: str | None = option(None, "model name, for a server of several")
    provider: str = option("auto", "which Inference Provider, for a Hub model id")
    temperature: float = option(0.0, "0 is greedy, as in the paper")
    top_p: float | None = option(None, "nucleus sampling; TGI rejects 1.0")
    seed: int | None = option(None, "sampling seed")
    max_tokens: int = option(2048, "new tokens a reply may have")
    timeout: float = option(600.0, "seconds one request may take")
    prompts: str | None = option(None, "YAML file with your own wording: system, instruction, response, reminder")
    journal: str | None = option(None, "file of all replies (default: srt_hf/journal.sqlite under HF_HOME)")


@dataclass
class StudentArguments:
    """The model that will be trained, and decides"""

    student: str = option("meta-llama/Llama-2-7b-hf", "Hub id or folder of a causal LM")
    student_revision: str | None = option(None, "branch, tag or commit of the student")
    template: str = option("auto", f"the student's prompt format: {', '.join(TEMPLATE_NAMES)}")
    dtype: str = option("auto", "auto, float32 (the paper's numbers), bfloat16, float16")
    max_length: int = option(2048, "tokens of prompt and answer together")
    trust_remote_code: bool = option(False, "run code from the student's repo")


@dataclass
class SelectionArguments:
    """How the pairs are chosen"""

    mode: str = option("selective", f"{' (two calls a row) or '.join(MODES)} (three, candidates for any student)")
    rule: str = option("paper", f"how pairs are compared: {', '.join(RULES)}")
    keep: str = option("reflected", f"which choices are kept: {', '.join(KEEPS)}")


@dataclass
class OutputArguments:
    """Where the result goes"""

    repo: str | None = option(None, "dataset repo on the Hub, such as org/srecycled-alpaca; without it nothing is pushed")
    private: bool = option(False, "make the new repo private")
    create_pr: bool = option(False, "open a pull request instead of writing to the main branch")
    overwrite: bool = option(False, "write into an existing repo that was not made by this tool")
    output_dir: str = option("recycled", "folder that gets what the repo gets: Parquet, card, report")


def load_source(source: SourceArguments) -> Any:
    rows = srt_hf.load_rows(source.dataset, name=source.dataset_config, split=source.split, revision=source.revision)
    return rows if source.limit is None else rows.select(range(min(source.limit, len(rows))))


def make_teacher(teaching: TeacherArguments) -> srt_hf.Teacher:
    return srt_hf.Teacher(
        teaching.teacher,
        model=teaching.teacher_model,
        key=os.environ.get("SRT_HF_TEACHER_KEY"),
        **{name: getattr(teaching, name) for name in ("provider", "temperature", "top_p", "seed")},
        **{name: getattr(teaching, name) for name in ("max_tokens", "timeout", "journal")},
    )


def make_student(scoring: StudentArguments) -> srt_hf.Student:
    options = ("template", "dtype", "max_length", "trust_remote_code")
    chosen = {name: getattr(scoring, name) for name in options}
    return srt_hf.Student(scoring.student, revision=scoring.student_revision, **chosen)


def provenance(source: SourceArguments) -> srt_hf.Provenance:
    command = shlex.join(["python", "scripts/recycle_and_push.py", *sys.argv[1:]])
    is_file = Path(source.dataset).exists()
    # A query in an address may hold a secret.
    command = re.sub(r"(https?://[^\s'?]+)\?[^\s']*", r"\1", command)
    return srt_hf.Provenance(Path(source.dataset).name if is_file else source.dataset, not is_file, command)


def main(
    source: SourceArguments,
    teaching: TeacherArguments,
    scoring: StudentArguments,
    selection: SelectionArguments,
    output: OutputArguments,
) -> int:
    teacher, student = make_teacher(teaching), make_student(scoring)
    selector = srt_hf.Selector(rule=selection.rule, keep=selection.keep)
    # What is wrong with the target shows before anything is paid for.
    hub.check_folder(Path(output.output_dir))
    if output.repo:
        hub.check_target(output.repo, private=output.private, overwrite=output.overwrite)
    recycled = srt_hf.recycle(
        load_source(source),
        teacher=teacher,
        student=student,
        mode=selection.mode,
        selector=selector,
        prompts=teaching.prompts,
        columns={name: getattr(source, f"{name}_column") or "" for name in TRIPLE},
        id_column=source.id_column,
    )
    made = provenance(source)
    recycled.save_to_disk(output.output_dir, repo_id=output.repo, provenance=made)
    print(recycled.report.table())
    print(f"\nSaved to {output.output_dir}.")
    if not recycled.report.kept:
        print(f"No row was kept, so nothing is pushed. Top reasons: {top_reasons(recycled.report)}.", file=sys.stderr)
        return 3
    if not output.repo:
        print("No --repo was given, so nothing was pushed to the Hub.")
        return 0
    options = {"private": output.private, "create_pr": output.create_pr, "overwrite": output.overwrite}
    print(f"Pushed: {recycled.push_to_hub(output.repo, provenance=made, **options)}")
    return 0


if __name__ == "__main__":
    arguments = parse(__doc__, SourceArguments, TeacherArguments, StudentArguments, SelectionArguments, OutputArguments)
    sys.exit(run(lambda: main(*arguments), "Every reply so far is in the journal; the same command goes on from there."))
