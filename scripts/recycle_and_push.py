"""Recycle an instruction dataset for a student with Selective Reflection-Tuning, and push the result to the Hub.

    python scripts/recycle_and_push.py --dataset tatsu-lab/alpaca --teacher http://localhost:8080 \\
        --student meta-llama/Llama-2-7b-hf --repo org/srecycled-alpaca

The teacher (TGI or any OpenAI-compatible server) reflects on each pair, the student chooses by IFD and r-IFD. A server's key is
read from SRT_HF_TEACHER_KEY. A stopped run goes on where it was when the same command is given again.
Exit codes: 0 done, 1 error, 2 wrong option, 3 nothing was kept, 130 interrupted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import srt_hf
from srt_hf import hub
from srt_hf.arguments import CostArguments, RepoArguments, SelectionArguments, StudentArguments, TeacherArguments
from srt_hf.cli import changed, command, option, parse, run
from srt_hf.errors import ConfigError
from srt_hf.estimate import estimate
from srt_hf.identity import shown_name
from srt_hf.pipeline import MODES, check_mode
from srt_hf.published import candidates_made
from srt_hf.reflection import check_retry
from srt_hf.result import other_runs, top_reasons
from srt_hf.schema import RETRIED, TRIPLE
from srt_hf.sources import prepare


@dataclass
class SourceArguments:
    """The dataset to recycle"""

    dataset: str = option("tatsu-lab/alpaca", "Hub id, local JSON, JSONL, Parquet or CSV file, or saved dataset")
    dataset_config: str | None = option(None, "config of a Hub dataset")
    split: str = option("train", "split")
    dataset_revision: str | None = option(None, "branch, tag or commit of a Hub dataset")
    candidates: str | None = option(
        None, "repo or output folder of an earlier run, best an exhaustive one: choose from its candidates"
    )
    scores: str | None = option(None, "repo or folder with the student's scores of --candidates: choose by them, load no model")
    limit: int | None = option(None, "how many rows to take, the first ones [all]")
    id_column: str | None = option(None, "column of distinct ids [id, if there is one]; with '' they are made from the text")
    instruction_column: str | None = option(None, "the dataset's own name for `instruction`")
    input_column: str | None = option(None, "the dataset's own name for `input`")
    output_column: str | None = option(None, "the dataset's own name for `output`")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is {self.limit}.", "Give at least 1, or leave it out for all rows.")
        if self.scores and not self.candidates:
            raise ConfigError("--scores are of candidates that exist.", "Name those with --candidates.")


@dataclass
class ReflectionArguments:
    """How the teacher is asked"""

    mode: str = option("selective", f"{' (two calls a row) or '.join(MODES)} (three, candidates for any student)")
    prompts: str | None = option(None, "YAML file with your own wording: system, instruction, response, reminder")
    structured: bool = option(False, "have the server constrain replies to a JSON schema; in tags where it cannot")
    retry: str | None = option(
        None, f"codes of an earlier run's failures to ask about once more, with commas: {', '.join(RETRIED)}"
    )

    replies: bool = option(False, "add replies.jsonl: what the teacher wrote, word for word, for replay:")

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_retry(self.codes)

    @property
    def codes(self) -> list[str]:
        return [code.strip() for code in (self.retry or "").split(",") if code.strip()]

    def options(self) -> dict[str, Any]:
        prompts = srt_hf.Prompts.from_file(self.prompts) if self.prompts else srt_hf.Prompts()
        return {"mode": self.mode, "prompts": prompts, "structured": self.structured, "retry": self.codes}


@dataclass
class OutputArguments(RepoArguments):
    """Where the result goes"""

    output_dir: str = option("recycled", "folder that gets what the repo gets: Parquet, card, report")


def check_use(source: SourceArguments, teacher: list[str], student: list[str]) -> None:
    """Refuse options that would do nothing. teacher, student: what was given of theirs."""
    if not source.candidates:
        return
    idle = [*(name for name in changed(source) if name not in ("candidates", "scores", "dataset_revision", "limit")), *teacher]
    idle += [name for name in student if source.scores and name != "student"]
    if idle:
        which = "--candidates and --scores" if source.scores else "--candidates"
        raise ConfigError(f"With {which} there is nothing to do for --{', --'.join(idle)}.", "Leave that out.")


def load_source(source: SourceArguments, student: str, commit: str | None) -> Any:
    if source.candidates:
        options: dict[str, Any] = {"scores": source.scores, "student": student, "limit": source.limit}
        return srt_hf.load_candidates(source.candidates, source.dataset_revision, **options)
    revision = commit or source.dataset_revision
    rows = srt_hf.load_rows(source.dataset, name=source.dataset_config, split=source.split, revision=revision)
    return rows if source.limit is None else rows.select(range(min(source.limit, len(rows))))


def provenance(source: SourceArguments) -> srt_hf.Provenance:
    if source.candidates:
        return candidates_made(source.candidates, source.dataset_revision, scores=source.scores, command=command())
    if Path(source.dataset).exists():
        return srt_hf.Provenance(Path(source.dataset).name, command=command())
    return srt_hf.Provenance(source.dataset, True, command(), **hub.about_source(source.dataset, source.dataset_revision))


def main(
    source: SourceArguments,
    teaching: TeacherArguments,
    asking: ReflectionArguments,
    scoring: StudentArguments,
    selection: SelectionArguments,
    cost: CostArguments,
    output: OutputArguments,
) -> int:
    check_use(source, changed(teaching, asking, cost), changed(scoring))
    options = asking.options()
    made = provenance(source)
    columns = {name: getattr(source, f"{name}_column") or "" for name in TRIPLE}
    if cost.estimate:
        prepared = prepare(load_source(source, scoring.student, made.revision), columns=columns, id_column=source.id_column)
        asked = {name: options[name] for name in ("mode", "prompts", "structured")}
        print(estimate(prepared, rate=cost.rate, prices=cost.prices, **asked))
        return 0
    deciding: dict[str, Any] = {"selector": selection.make(), "proxy": scoring.proxy, "margin": scoring.margin}
    deciding["student"] = None if source.scores else scoring.make()
    teacher = None if source.candidates else teaching.make()
    # What is wrong with the target shows before anything is paid for.
    hub.check_folder(Path(output.output_dir))
    if output.repo:
        other_runs(hub.check_target(output.repo, **output.where()), shown_name(scoring.student), output.repo)
    rows = load_source(source, scoring.student, made.revision)
    if teacher is None:
        recycled = srt_hf.reselect(rows, **deciding)
    else:
        options |= {"columns": columns, "id_column": source.id_column, "prices": cost.prices}
        recycled = srt_hf.recycle(rows, teacher=teacher, **deciding, **options)
    saving: dict[str, Any] = {"provenance": made, "replies": asking.replies}
    recycled.save_to_disk(output.output_dir, repo_id=output.repo, **saving)
    print(recycled.report.table())
    print(f"\nSaved to {output.output_dir}; {recycled.page} in it is for looking through all rows.")
    if not recycled.report.kept:
        print(f"No row was kept, so nothing is pushed. Top reasons: {top_reasons(recycled.report)}.", file=sys.stderr)
        if recycled.report.nothing_replayed:
            print("None of the recorded ids occur in this dataset: --id_column names the column they came from.", file=sys.stderr)
        return 3
    if not output.repo:
        print("No --repo was given, so nothing was pushed to the Hub.")
        return 0
    print(f"Pushed: {recycled.push_to_hub(output.repo, **saving, **output.where())}")
    return 0


if __name__ == "__main__":
    groups = (SourceArguments, TeacherArguments, ReflectionArguments, StudentArguments, SelectionArguments, CostArguments)
    arguments = parse(__doc__, *groups, OutputArguments)
    sys.exit(run(lambda: main(*arguments), "Every reply so far is in the journal; the same command goes on from there."))
