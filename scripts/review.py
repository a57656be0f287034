# /// script
# requires-python = ">=3.10"
# dependencies = ["srt_hf[review]"]
# ///
"""Have people in Argilla look at recycled rows before they are trained on, and bring their decisions back.

    python scripts/review.py push --source org/srecycled-alpaca --argilla_dataset alpaca-review --limit 500 --closest
    python scripts/review.py status --argilla_dataset alpaca-review
    python scripts/review.py pull --source org/srecycled-alpaca --argilla_dataset alpaca-review --repo org/srecycled-alpaca

push     put rows before reviewers; again, it adds what is new and leaves what is answered as it was shown
status   how far they are
pull     apply what they submitted: majority, ties to the original; a table of its own beside the student's

The server is ARGILLA_API_URL, its key ARGILLA_API_KEY. `python scripts/review.py SUBCOMMAND --help` lists the options of one.
Exit codes: 0 done, 1 error, 2 wrong option, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from srt_hf import Recycled, hub, review
from srt_hf.annotation import ArgillaArguments
from srt_hf.cli import choose_subcommand, option, parse, run
from srt_hf.errors import ConfigError
from srt_hf.report import render_table


@dataclass
class RunArguments:
    """The run to review"""

    source: str | None = option(None, "repo or output folder of recycle_and_push.py (required)")
    source_revision: str | None = option(None, "branch, tag or commit of the repo")
    student: str | None = option(None, "whose selection, where several students have selected")

    def load(self) -> Recycled:
        if not self.source:
            raise ConfigError("No run is named.", "Give its repo or output folder with --source.")
        return Recycled.load(self.source, self.student, self.source_revision)


@dataclass
class PickingArguments:
    """Which rows"""

    reason: str | None = option(None, "only rows with this reason, such as original_preferred [all]")
    share: float | None = option(None, "a random share of them, such as 0.1; the same rows each time")
    seed: int = option(0, "of --share")
    closest: bool = option(False, "the closest decisions first")
    limit: int | None = option(None, "so many rows, the first ones [all]")
    min_submitted: int = option(1, "how many answers a row needs; more than one tells how far people agree")

    def make(self) -> review.Picking:
        return review.Picking(self.reason, self.share, self.closest, self.limit, self.seed)


@dataclass
class OutputArguments:
    """Where the result goes"""

    only_reviewed: bool = option(False, "leave out rows that nobody has decided")
    output_dir: str | None = option(
        None, "folder that gets the table and answers.jsonl [--source if it is a folder, else reviewed]"
    )
    repo: str | None = option(None, "the run's repo on the Hub; without it nothing is pushed")
    create_pr: bool = option(False, "open a pull request on it instead of writing to its main branch")
    revision: str | None = option(None, "branch of it to write to [main]")

    def __post_init__(self) -> None:
        if not self.repo and (self.create_pr or self.revision):
            raise ConfigError("--create_pr and --revision are about the repo.", "Name it with --repo.")


def push(source: RunArguments, picking: PickingArguments, argilla: ArgillaArguments) -> int:
    """Put rows before reviewers in Argilla."""
    place, chosen = argilla.make(), picking.make()
    pushed = review.push(source.load(), place, chosen, min_submitted=picking.min_submitted)
    print(f"{pushed.added:,} records added, {pushed.updated:,} updated, {pushed.unchanged:,} were there already.")
    if pushed.held:
        print(
            f"{pushed.held:,} have other words by now, but somebody has answered them or begun to: they stay as they were, and "
            "answers to them will decide nothing. A dataset of another name shows the new words."
        )
    print(f"Reviewers find them as {place.dataset} on {place.url}.")
    return 0


def status(argilla: ArgillaArguments) -> int:
    """How far the reviewers are."""
    found = review.status(argilla.make())
    print(f"{found['completed']:,} of {found['total']:,} records have all the answers that they need.")
    lines = [
        [name, *(f"{counts[what]:,}" for what in ("submitted", "draft", "discarded"))] for name, counts in found["users"].items()
    ]
    print(render_table(["reviewer", "submitted", "draft", "discarded"], lines) if lines else "Nobody has answered yet.")
    return 0


def pull(source: RunArguments, argilla: ArgillaArguments, output: OutputArguments) -> int:
    """Apply what the reviewers submitted."""
    place = argilla.make()
    folder = output.output_dir or (source.source if source.source and Path(source.source).is_dir() else "reviewed")
    if output.repo:
        hub.check_target(output.repo, create_pr=output.create_pr, revision=output.revision)
    reviewed = review.pull(source.load(), place, only_reviewed=output.only_reviewed)
    reviewed.save_to_disk(folder)
    print(reviewed.table())
    print(f"\nSaved to {folder}: the table {reviewed.config}, and answers.jsonl with everybody's answers.")
    if not output.repo:
        print("No --repo was given, so nothing was pushed to the Hub.")
        return 0
    print(f"Pushed: {reviewed.push_to_hub(output.repo, create_pr=output.create_pr, revision=output.revision)}")
    return 0


SUBCOMMANDS: dict[str, tuple[Callable[..., int], tuple[type, ...]]] = {
    "push": (push, (RunArguments, PickingArguments, ArgillaArguments)),
    "status": (status, (ArgillaArguments,)),
    "pull": (pull, (RunArguments, ArgillaArguments, OutputArguments)),
}

if __name__ == "__main__":
    chosen = choose_subcommand(__doc__, SUBCOMMANDS)
    main, groups = SUBCOMMANDS[chosen]
    arguments = parse(main.__doc__, *groups, subcommand=chosen)
    sys.exit(run(lambda: main(*arguments), "What was sent so far is there; the same command goes on from there."))
