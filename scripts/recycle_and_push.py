"""Recycle an instruction dataset for a student with Selective Reflection-Tuning, and push the result to the Hub.

    python scripts/recycle_and_push.py --dataset tatsu-lab/alpaca --teacher http://localhost:8080 \\
        --student meta-llama/Llama-2-7b-hf --repo org/srecycled-alpaca

The teacher (TGI or any OpenAI-compatible server) reflects on each pair, the student chooses by IFD and r-IFD. A server's key is
read from SRT_HF_TEACHER_KEY. A stopped run goes on where it was when the same command is given again.
Exit codes: 0 done, 1 error, 2 wrong option, 3 nothing was kept, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import srt_hf
from srt_hf import hub
from srt_hf.cli import command, explained, option, parse, run
from srt_hf.errors import ConfigError
from srt_hf.pipeline import MODES, check_mode, top_reasons
from srt_hf.prompts import TEMPLATE_NAMES
from srt_hf.schema import TRIPLE
from srt_hf.selection import KEEPS, RULES


@dataclass
class SourceArguments:
    """The dataset to recycle"""

    dataset: str = option("tatsu-lab/alpaca", "Hub id, local JSON, JSONL, Parquet or CSV file, or saved dataset")
    dataset_config: str | None = option(None, "config of a Hub dataset")
    split: str = option("train", "split")
    revision: str | None = option(None, "branch, tag or commit of a Hub dataset")
    limit: int | None = option(None, "how many rows to take, the first ones [all]")
    id_column: str | None = option(None, "column of distinct ids [id, if there is one]; with '' they are made from the text")
    instruction_column: str | None = option(None, "the dataset's own name for `instruction`")
    input_column: str | None = option(None, "the dataset's own name for `input`")
    output_column: str | None = option(None, "the dataset's own name for `output`")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is {self.limit}.", "Give at least 1, or leave it out for all rows.")


@dataclass
class TeacherArguments:
    """The model that reflects and rewrites"""

    teacher: str = option("http://localhost:8080", "server URL, Hub model id, local:MODEL or replay:FILE-OR-REPO")
    teacher_model: str | None = option(None, "model name, for a server of several")
    provider: str = option("auto", "which Inference Provider, for a Hub model id")
    temperature: float = option(0.0, "0 is greedy, as in the paper")
    top_p: float | None = option(None, "nucleus sampling; TGI rejects 1.0")
    seed: int | None = option(None, "sampling seed, for temperatures above 0 [none is sent]")
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
    dtype: str = option("auto", "auto, fastest (bfloat16 where that is faster), float32 (the paper's numbers), bfloat16, float16")
    max_length: int = option(2048, "tokens of prompt and answer together")
    trust_remote_code: bool = option(False, "run code from the student's repo")
    proxy: str | None = option(None, "a smaller model that scores first and leaves only close calls to the student")
    margin: float = option(0.05, "what a close call is for --proxy: numbers nearer than this to each other, or to 1")


@dataclass
class SelectionArguments:
    """How the pairs are chosen"""

    mode: str = option("selective", f"{' (two calls a row) or '.join(MODES)} (three, candidates for any student)")
    rule: str = option("paper", f"who wins: {explained(RULES)}")
    keep: str = option("reflected", f"which choices are kept: {explained(KEEPS)}")

    def __post_init__(self) -> None:
        check_mode(self.mode)


@dataclass
class OutputArguments:
    """Where the result goes"""

    repo: str | None = option(None, "dataset repo on the Hub, such as org/srecycled-alpaca; without it nothing is pushed")
    private: bool = option(False, "make the new Hub repo private")
    create_pr: bool = option(False, "open a pull request on the Hub repo instead of writing to its main branch")
    overwrite: bool = option(False, "replace all tables of the Hub repo, even if this tool did not make it")
    output_dir: str = option("recycled", "folder that gets what the repo gets: Parquet, card, report")

    def __post_init__(self) -> None:
        if not self.repo and (self.private or self.create_pr or self.overwrite):
            raise ConfigError("--private, --create_pr and --overwrite are about the Hub repo.", "Name it with --repo.")


def load_source(source: SourceArguments) -> Any:
    rows = srt_hf.load_rows(source.dataset, name=source.dataset_config, split=source.split, revision=source.revision)
    return rows if source.limit is None else rows.select(range(min(source.limit, len(rows))))


def make_teacher(teaching: TeacherArguments) -> srt_hf.Teacher:
    options = ("provider", "temperature", "top_p", "seed", "max_tokens", "timeout", "journal")
    chosen = {name: getattr(teaching, name) for name in options}
    key = os.environ.get("SRT_HF_TEACHER_KEY")
    return srt_hf.Teacher(teaching.teacher, model=teaching.teacher_model, key=key, **chosen)


def make_student(scoring: StudentArguments) -> srt_hf.Student:
    options = ("template", "dtype", "max_length", "trust_remote_code")
    chosen = {name: getattr(scoring, name) for name in options}
    return srt_hf.Student(scoring.student, revision=scoring.student_revision, **chosen)


def provenance(source: SourceArguments) -> srt_hf.Provenance:
    is_file = Path(source.dataset).exists()
    return srt_hf.Provenance(Path(source.dataset).name if is_file else source.dataset, not is_file, command())


def main(
    source: SourceArguments,
    teaching: TeacherArguments,
    scoring: StudentArguments,
    selection: SelectionArguments,
    output: OutputArguments,
) -> int:
    selector = srt_hf.Selector(rule=selection.rule, keep=selection.keep)
    prompts = srt_hf.Prompts.from_file(teaching.prompts) if teaching.prompts else None
    teacher, student = make_teacher(teaching), make_student(scoring)
    # What is wrong with the target shows before anything is paid for.
    hub.check_folder(Path(output.output_dir))
    pushing = {"private": output.private, "overwrite": output.overwrite}
    others = hub.check_target(output.repo, **pushing) if output.repo else []
    recycled = srt_hf.recycle(
        load_source(source),
        teacher=teacher,
        student=student,
        mode=selection.mode,
        selector=selector,
        prompts=prompts,
        columns={name: getattr(source, f"{name}_column") or "" for name in TRIPLE},
        id_column=source.id_column,
        proxy=scoring.proxy,
        margin=scoring.margin,
    )
    made = provenance(source)
    recycled.save_to_disk(output.output_dir, repo_id=output.repo, provenance=made, other_configs=others)
    print(recycled.report.table())
    print(f"\nSaved to {output.output_dir}.")
    if not recycled.report.kept:
        print(f"No row was kept, so nothing is pushed. Top reasons: {top_reasons(recycled.report)}.", file=sys.stderr)
        if recycled.report.nothing_replayed:
            print("None of the recorded ids occur in this dataset: --id_column names the column they came from.", file=sys.stderr)
        return 3
    if not output.repo:
        print("No --repo was given, so nothing was pushed to the Hub.")
        return 0
    print(f"Pushed: {recycled.push_to_hub(output.repo, provenance=made, create_pr=output.create_pr, **pushing)}")
    return 0


if __name__ == "__main__":
    arguments = parse(__doc__, SourceArguments, TeacherArguments, StudentArguments, SelectionArguments, OutputArguments)
    sys.exit(run(lambda: main(*arguments), "Every reply so far is in the journal; the same command goes on from there."))
