"""The options of a run and of the merging of its shards, and what is made of them: rows in, a result out."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf import hub
from srt_hf.arguments import RepoArguments, TeacherArguments
from srt_hf.cli import changed, command, explained, json_object, option
from srt_hf.errors import ConfigError
from srt_hf.identity import shown_name
from srt_hf.pipeline import ENGINES, MODES, check_engine, check_mode
from srt_hf.prompts import Prompts
from srt_hf.published import candidates_made, load_candidates
from srt_hf.reflection import check_retry
from srt_hf.report import Provenance
from srt_hf.result import Recycled, other_runs, top_reasons
from srt_hf.schema import RETRIED, TRIPLE
from srt_hf.sources import load_rows

if TYPE_CHECKING:
    from datasets import Dataset

# Options of the source that candidates that exist heed too.
_OF_CANDIDATES = ("candidates", "scores", "dataset_revision", "limit", "num_shards", "shard_index")
# Options that decide what is in the result, so that all shards of a run must have them alike; the report names the rest.
_SETTINGS = ("temperature", "top_p", "seed", "max_tokens", "structured")


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
    num_shards: int | None = option(
        None, "share the rows out to so many runs, whose folders scripts/merge.py makes into one result"
    )
    shard_index: int | None = option(None, "which of them this run is, from 0")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is {self.limit}.", "Give at least 1, or leave it out for all rows.")
        if self.scores and not self.candidates:
            raise ConfigError("--scores are of candidates that exist.", "Name those with --candidates.")
        if (self.num_shards is None) != (self.shard_index is None):
            raise ConfigError("--num_shards and --shard_index belong together.", "Give both, or neither for all rows in one run.")
        if self.num_shards is not None and self.num_shards < 1:
            raise ConfigError(f"--num_shards is {self.num_shards}.", "Give at least 1.")
        if self.num_shards is not None and self.shard_index not in range(self.num_shards):
            all_of_them = f"Of {self.num_shards} shards it is 0 to {self.num_shards - 1}."
            raise ConfigError(f"--shard_index is {self.shard_index}.", all_of_them)

    @property
    def place(self) -> tuple[int, int] | None:
        """Which shard of how many; None for all rows in one run."""
        return None if self.shard_index is None or self.num_shards is None else (self.shard_index, self.num_shards)

    @property
    def columns(self) -> dict[str, str]:
        """The dataset's own names for the triple, "" where none is given."""
        return {name: getattr(self, f"{name}_column") or "" for name in TRIPLE}

    def load(self, student: str, commit: str | None) -> Dataset:
        """The rows, or candidates with `student`'s scores where those are ready. commit: of a Hub dataset. Raises DataError."""
        if self.candidates:
            options: dict[str, Any] = {"scores": self.scores, "student": student, "limit": self.limit}
            return load_candidates(self.candidates, self.dataset_revision, **options)
        revision = commit or self.dataset_revision
        rows = load_rows(self.dataset, name=self.dataset_config, split=self.split, revision=revision)
        return rows if self.limit is None else rows.select(range(min(self.limit, len(rows))))

    def provenance(self) -> Provenance:
        """Where the rows come from, for card and report."""
        if self.candidates:
            return candidates_made(self.candidates, self.dataset_revision, scores=self.scores, command=command())
        if Path(self.dataset).exists():
            return Provenance(Path(self.dataset).name, command=command())
        return Provenance(self.dataset, True, command(), **hub.about_source(self.dataset, self.dataset_revision))


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
        prompts = Prompts.from_file(self.prompts) if self.prompts else Prompts()
        return {"mode": self.mode, "prompts": prompts, "structured": self.structured, "retry": self.codes}


@dataclass
class EngineArguments:
    """Where it runs"""

    engine: str = option("local", explained(ENGINES))
    ray_address: str | None = option(None, "the Ray cluster, HOST:PORT or auto [RAY_ADDRESS, or one started on this machine]")
    students: int | None = option(None, "how many students score on the Ray cluster [one a GPU or, without GPUs, one a node]")

    def __post_init__(self) -> None:
        check_engine(self.engine, self.ray_address, self.students)

    def options(self) -> dict[str, Any]:
        """As for `recycle`."""
        return dict(vars(self))


@dataclass
class OutputArguments(RepoArguments):
    """Where the result goes"""

    output_dir: str = option("recycled", "folder that gets what the repo gets: Parquet, card, report")

    def check(self, student: str) -> None:
        """Raise what is wrong with the target for `student`'s result, before anything is paid for."""
        hub.check_folder(Path(self.output_dir))
        if self.repo:
            other_runs(hub.check_target(self.repo, **self.where()), shown_name(student), self.repo)

    def publish(self, recycled: Recycled, **saving: Any) -> int:
        """Save, print the report, push where a repo is named, and return the exit code. saving: as for `save_to_disk`."""
        recycled.save_to_disk(self.output_dir, repo_id=self.repo, **saving)
        report = recycled.report
        print(report.table())
        print(f"\nSaved to {self.output_dir}; {recycled.page} in it is for looking through all rows.")
        if report.shard:  # one without kept rows is no failure: its neighbours may have some
            print("It is shard {index} of {of}, counted from 0; scripts/merge.py makes one result of all.".format(**report.shard))
            return 0
        if not report.kept:
            print(f"No row was kept, so nothing is pushed. Top reasons: {top_reasons(report)}.", file=sys.stderr)
            if report.nothing_replayed:
                print(
                    "None of the recorded ids occur in this dataset: --id_column names the column they came from.",
                    file=sys.stderr,
                )
            return 3
        if not self.repo:
            print("No --repo was given, so nothing was pushed to the Hub.")
            return 0
        print(f"Pushed: {recycled.push_to_hub(self.repo, **saving, **self.where())}")
        return 0


def check_use(source: SourceArguments, teacher: list[str], student: list[str], repo: str | None) -> None:
    """Refuse options that would do nothing. teacher, student: what was given of theirs. Raises ConfigError."""
    if repo and source.num_shards:
        raise ConfigError(
            "A shard is not pushed by itself.", "Give --repo to scripts/merge.py, which makes the whole of all shards."
        )
    if not source.candidates:
        return
    idle = [*(name for name in changed(source) if name not in _OF_CANDIDATES), *teacher]
    idle += [name for name in student if source.scores and name != "student"]
    if idle:
        which = "--candidates and --scores" if source.scores else "--candidates"
        raise ConfigError(f"With {which} there is nothing to do for --{', --'.join(idle)}.", "Leave that out.")


def settings(teaching: TeacherArguments, asking: ReflectionArguments, prompts: Prompts) -> dict[str, Any]:
    """The options that decide what the teacher writes, by name, for the shards of a run to compare; texts by their digest."""
    known = {**vars(teaching), **vars(asking)}
    texts = {"extra_body": json_object(teaching.extra_body, "--extra_body"), "prompts": asdict(prompts)}
    return {**{name: known[name] for name in _SETTINGS}, **{name: _digest(text) for name, text in texts.items()}}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
