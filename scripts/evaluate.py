# /// script
# requires-python = ">=3.10"
# dependencies = ["srt_hf[eval,review]"]
# ///
"""Evaluate a model on a benchmark of the paper.

    python scripts/evaluate.py SUBCOMMAND [options]

pairwise      two models answer a test set, a judge scores both orders, win/tie/lose by the paper's rule
human         the same comparison by people: a blind study in files or in Argilla, then majority and agreement
openllm       the Open LLM Leaderboard's four tasks
alpaca-eval   AlpacaEval: win rate against its reference answers, plain and length-controlled
mt-bench      MT-Bench: two-turn questions, answers and single-answer grades

`python scripts/evaluate.py SUBCOMMAND --help` lists the options of one. All of them can stand in a file (--config run.yaml).
Exit codes: 0 done, 1 error, 2 wrong option, 130 interrupted.
"""

from __future__ import annotations

import sys
from importlib import import_module

from srt_hf.cli import choose_subcommand, parse, run

# Subcommand -> module of srt_hf.evaluation, imported only when it is chosen. It has a docstring that is the help page, ARGUMENTS,
# the dataclasses of its options, and main, which takes an instance of each and returns the exit code.
SUBCOMMANDS = {"pairwise": "pairwise", "human": "human", "openllm": "openllm", "alpaca-eval": "alpaca", "mt-bench": "mtbench"}


def main() -> int:
    chosen = choose_subcommand(__doc__, SUBCOMMANDS)
    module = import_module(f"srt_hf.evaluation.{SUBCOMMANDS[chosen]}")
    arguments = parse(module.__doc__, *module.ARGUMENTS, subcommand=chosen)
    return run(lambda: module.main(*arguments), "What was answered so far is kept; the same command goes on from there.")


if __name__ == "__main__":
    sys.exit(main())
