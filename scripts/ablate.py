# /// script
# requires-python = ">=3.10"
# dependencies = ["srt_hf[coherence]"]
# ///
"""Make the arms of the paper's ablations and its ladder of data sizes from one dataset of candidates, as configs ready to train.

    python scripts/ablate.py --candidates org/srecycled-alpaca --student meta-llama/Llama-2-7b-hf --repo org/alpaca-ablations
    python scripts/train_sft.py --dataset org/alpaca-ablations --dataset_config top-2 --output_dir top-2

No teacher is asked, and the student scores once for all arms; with --scores, which an earlier run or ablation has left, not at
all. Most arms need the candidates of an exhaustive run (recycle_and_push.py --mode exhaustive) or of the paper's authors. A repo
holds the arms of one run: others that are there go only with --overwrite.
Exit codes: 0 done, 1 error, 2 wrong option, 3 no arm has a row, 130 interrupted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import srt_hf
from srt_hf import hub
from srt_hf.ablation import ARMS, Coherence, ablate, choose_arms
from srt_hf.ablation.result import check_repo
from srt_hf.arguments import RepoArguments, StudentArguments
from srt_hf.cli import command, option, parse, run
from srt_hf.errors import ConfigError
from srt_hf.identity import shown_name
from srt_hf.published import candidates_made


@dataclass
class SourceArguments:
    """The candidates"""

    candidates: str | None = option(None, "repo or output folder of a run with candidates (required)")
    candidates_revision: str | None = option(None, "branch, tag or commit of the candidates' repo")
    scores: str | None = option(
        None, "repo or folder with the student's scores of --candidates, an ablation's too: load no model"
    )
    limit: int | None = option(None, "how many rows to take, the first ones [all]")

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ConfigError("No candidates are named.", "Give a repo or output folder of an earlier run with --candidates.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is {self.limit}.", "Give at least 1, or leave it out for all rows.")


@dataclass
class ArmArguments:
    """The arms"""

    arms: str | None = option(None, f"which, with commas: {', '.join(ARMS)} [all; coherence where its package is installed]")
    seed: int = option(0, "of the arm random")
    coherence_model: str = option(Coherence.MODEL, "sentence-transformers model of the arm coherence (needs srt_hf[coherence])")

    @property
    def names(self) -> list[str]:
        if self.arms is None:
            return choose_arms(None)
        given = self.arms.split(",") if isinstance(self.arms, str) else self.arms  # a config file may give a list
        return choose_arms([name.strip() for name in given if name.strip()])


@dataclass
class OutputArguments(RepoArguments):
    """Where the arms go"""

    output_dir: str = option("ablations", "folder that gets what the repo gets: Parquet, card, report")


def main(source: SourceArguments, choice: ArmArguments, scoring: StudentArguments, output: OutputArguments) -> int:
    if scoring.proxy:
        raise ConfigError("--proxy decides what is clear by the paper's rule, and the arms have others.", "Leave it out.")
    arms = choice.names
    student = None if source.scores else scoring.make()
    # What is wrong with the target shows before anything is computed.
    hub.check_folder(Path(output.output_dir))
    existing = check_repo(output.repo, shown_name(scoring.student), arms, **output.where()) if output.repo else None
    origin = (str(source.candidates), source.candidates_revision)
    made = candidates_made(*origin, scores=source.scores, command=command())
    rows = srt_hf.load_candidates(*origin, scores=source.scores, student=scoring.student, limit=source.limit)
    ablation = ablate(rows, student=student, arms=arms, seed=choice.seed, coherence_model=choice.coherence_model)
    ablation.save_to_disk(output.output_dir, repo_id=output.repo, provenance=made, existing=existing)
    print(ablation.table())
    if not ablation.kept:
        print(f"\nSaved to {output.output_dir}: the scores and the report.")
        print("No arm has a row, so nothing is pushed.", file=sys.stderr)
        return 3
    print(f"\nSaved to {output.output_dir}; its arms are for train_sft.py --dataset {output.output_dir} --dataset_config ARM.")
    if not output.repo:
        print("No --repo was given, so nothing was pushed to the Hub.")
        return 0
    print(f"Pushed: {ablation.push_to_hub(output.repo, provenance=made, **output.where())}")
    return 0


if __name__ == "__main__":
    arguments = parse(__doc__, SourceArguments, ArmArguments, StudentArguments, OutputArguments)
    sys.exit(run(lambda: main(*arguments), "The same command starts anew; scores that are ready stay in the cache of datasets."))
