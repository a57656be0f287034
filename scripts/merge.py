# /// script
# requires-python = ">=3.10"
# dependencies = ["srt_hf"]
# ///
"""Make one result of the shards that several runs of recycle_and_push.py made, and push it to the Hub.

    python scripts/recycle_and_push.py --dataset org/rows --num_shards 4 --shard_index 0 --output_dir shards/0    # … to 3
    python scripts/merge.py --shards shards/* --output_dir srecycled-rows --repo org/srecycled-rows

The result is what one run over all rows makes, row by row, with its report, card and page; no model is loaded. With --journals
the replies that the shards bought come into one journal, so that a later run over all rows pays for none of them.
scripts/recipes/slurm_array.sh does all of it on a cluster.
Exit codes: 0 done, 1 error, 2 wrong option, 3 nothing was kept, 130 interrupted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from srt_hf.cli import command, option, parse, run
from srt_hf.errors import ConfigError
from srt_hf.journal import Journal, default_path
from srt_hf.run_arguments import OutputArguments
from srt_hf.shards import merge


@dataclass
class ShardArguments:
    """What is merged"""

    shards: list[str] | None = option(None, "output folders of all shards, in any order (required)")  # noqa: RUF009
    journals: list[str] | None = option(None, "journals of the shards, whose replies go into --journal")  # noqa: RUF009
    journal: str | None = option(None, "file of all replies (default: srt_hf/journal.sqlite under HF_HOME)")
    replies: bool = option(False, "add replies.jsonl: what --journal holds for these rows, word for word, for replay:")

    def __post_init__(self) -> None:
        if not self.shards:
            raise ConfigError("No shards are named.", "Give the output folders of all shards with --shards.")

    def all_replies(self) -> Journal:
        """The one journal, with what the shards' own ones hold. Raises JournalError."""
        journal = Journal(self.journal or default_path())
        for path in self.journals or ():
            print(f"{journal.take_over(path):,} replies of {path} are new to {journal.path}.")
        return journal


def main(given: ShardArguments, output: OutputArguments) -> int:
    journal = given.all_replies()
    recycled = merge(given.shards or (), journal)
    output.check(recycled.report.student["student"])
    first = recycled.report.provenance
    made = replace(first, command="\n".join(line for line in (first.command, command()) if line))
    return output.publish(recycled, provenance=made, replies=given.replies)


if __name__ == "__main__":
    arguments = parse(__doc__, ShardArguments, OutputArguments)
    sys.exit(run(lambda: main(*arguments), "Nothing is half done: the same command begins again."))
