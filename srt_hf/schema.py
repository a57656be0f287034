"""Column names and Arrow types of every stage, written once.

A row keeps its original columns and gains `id`, `candidates`, `scores`, `scored_by` and the decision (`choice`, `origin`,
`kept`, `reason`), and `flags`. Map functions return their columns through `row_columns` (batched: `batch_columns`), because
`Dataset.map` guesses a column's type from the first values that it sees, and a column of 1,000 Nones would become type null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Features

TRIPLE = ("instruction", "input", "output")

# What was changed to get a candidate. `human` comes from review only and no rule chooses it.
ORIGINAL, INSTRUCTION, RESPONSE, BOTH, HUMAN = "original", "instruction", "response", "both", "human"
ORIGINS = (ORIGINAL, INSTRUCTION, RESPONSE, BOTH, HUMAN)

# Why a candidate holds no usable pair (candidates.error).
ERRORS = {
    "unparsable": "the reply lacks a section or its tags cannot be told apart",
    "placeholder": "the reply echoes the placeholder of the requested format",
    "truncated": "the reply stopped at the token limit before its last section ended",
    "empty": "the reply, or the cell that was to be reflected on, holds no text",
    "refused": "the teacher declined the task",
    "too_long": "the request does not fit the teacher's context",
    "rejected": "the server rejected the request as invalid",
    "timeout": "this request timed out again and again while others passed",
    "server_error": "the server failed on this request again and again while others passed",
    "not_attempted": "an earlier step failed, so nothing was asked",
}

# Those that asking again may mend.
RETRIED = [code for code in ERRORS if code != "not_attempted"]

# Why a number is missing (scores.missing).
MISSING = {
    "candidate_error": "the candidate holds no pair",
    "empty_instruction": "there is no instruction to score",
    "empty_output": "there is no response to score",
    "too_long": "the prompt fills the student's window and leaves no target token, or the pass does not fit into memory",
    "not_finite": "the student's loss is not a finite number",
    "unscored": "a person wrote the candidate, and the student has not scored it",
    "not_recorded": "published scores hold no row here, or the 0 that the paper's code writes where it failed",
}

# What a look at the text alone finds in the chosen pair (column `flags`). A flag is a remark: no row is left out for it.
FLAGS = {
    "duplicate": "an earlier kept pair is the same but for case and white space",
    "near_duplicate": "an earlier kept pair has nearly the same words",
    "boilerplate": "words about the rewriting itself, or tags of the requested form, are left in the text",
    "refusal": "the response declines the task, in English",
    "placeholder": "the text has a slot that nobody filled, such as [Your Name]",
    "other_language": "the text is in another language than the original",
}

# What reviewers made of a row (column `review_status`).
REVIEW_STATUSES = {
    "accepted": "people accept the recycled pair",
    "edited": "people accept it with their corrections (origin `human`)",
    "original": "people keep the original",
    "dropped": "people drop the row",
    "tie": "people are divided, so the original stays",
    "unreviewed": "nobody has answered, so the student's decision stands",
}

NLLS = ("nll_y", "nll_y_given_x", "nll_x", "nll_x_given_y")
COUNTS = ("n_y", "n_y_given_x", "n_x", "n_x_given_y")

CANDIDATE = pa.struct(
    [
        ("origin", pa.string()),
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("output", pa.string()),
        ("critique", pa.string()),
        ("teacher", pa.string()),
        ("sample", pa.int32()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("answer_cut", pa.int32()),
        ("error", pa.string()),
    ]
)
SCORE = pa.struct(
    [(name, pa.float64()) for name in NLLS]
    + [(name, pa.int32()) for name in COUNTS]
    + [("ifd", pa.float64()), ("r_ifd", pa.float64()), ("missing", pa.string())]
)
SCORED_BY = pa.struct(
    [
        ("student", pa.string()),
        ("revision", pa.string()),
        ("template", pa.string()),
        ("max_length", pa.int32()),
        ("dtype", pa.string()),
    ]
)

# Every column that some stage adds, with its type.
COLUMNS: dict[str, pa.DataType] = {
    "id": pa.string(),
    **dict.fromkeys(TRIPLE, pa.string()),
    "candidates": pa.list_(CANDIDATE),
    "scores": pa.list_(SCORE),
    "scored_by": SCORED_BY,
    "choice": pa.int32(),
    "origin": pa.string(),
    "kept": pa.bool_(),
    "reason": pa.string(),
    "flags": pa.list_(pa.string()),
    **{field.name: field.type for field in SCORE},
    **{f"original_{name}": pa.string() for name in TRIPLE},
    "original_ifd": pa.float64(),
    "original_r_ifd": pa.float64(),
    "review_status": pa.string(),
    "reviewers": pa.int32(),
    "rating": pa.float64(),
    "corrections": pa.list_(pa.struct([(name, pa.string()) for name in ("instruction", "output")])),
}

REPO_TAG = "srt-hf"  # on the card of every repo of this tool; an existing repo without it is not written to
ABLATION_TAG = "srt-hf-ablation"  # besides it, on a repo that holds arms of an ablation and no recycled dataset
DECISION = ("choice", "origin", "kept", "reason")
SCORED_COLUMNS = ("scores", "scored_by")  # what a scorer adds
STAGE_COLUMNS = ("candidates", *SCORED_COLUMNS, *DECISION, "flags")  # what the method adds to a row, besides `id`
# The stages' tables on the Hub.
CANDIDATES_COLUMNS = ("id", *TRIPLE, "candidates")
SCORES_COLUMNS = ("id", *SCORED_COLUMNS, *DECISION, "flags")
FLAT_COLUMNS = (
    "id",
    *TRIPLE,
    "origin",
    "reason",
    "ifd",
    "r_ifd",
    *(f"original_{name}" for name in TRIPLE),
    "original_ifd",
    "original_r_ifd",
    "flags",
)
REVIEWED = "reviewed"  # the config of the first reviewed student's table, as `default` is of the first student's
REVIEW_COLUMNS = ("review_status", "reviewers", "rating", "corrections")  # what a review adds
REVIEWED_COLUMNS = (*FLAT_COLUMNS, *REVIEW_COLUMNS)


class Candidate(TypedDict):
    """One version of a row's pair; `origin` as in `ORIGINS`, `error` None or as in `ERRORS`.

    answer_cut: characters of the original answer that did not fit into the teacher's window and were not shown to it.
    """

    origin: str
    instruction: str | None
    input: str | None
    output: str | None
    critique: str | None
    teacher: str | None
    sample: int
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    answer_cut: int | None
    error: str | None


class Score(TypedDict):
    """The student's four mean losses (nats per token) over a candidate, their token counts and the two scores."""

    nll_y: float | None
    nll_y_given_x: float | None
    nll_x: float | None
    nll_x_given_y: float | None
    n_y: int | None
    n_y_given_x: int | None
    n_x: int | None
    n_x_given_y: int | None
    ifd: float | None
    r_ifd: float | None
    missing: str | None


def of_origin(candidates: Sequence[Mapping[str, Any]], origin: str) -> list[int]:
    """Indices of the candidates of this origin."""
    return [n for n, candidate in enumerate(candidates) if candidate["origin"] == origin]


def row_columns(row: Mapping[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """What a per-row map function returns for `row`: `values`, as Arrow scalars of their columns' types where they must be.

    `Dataset.map` hands over a lazy row and types each column from what comes back. Whoever calls with a plain dict (a person,
    `IterableDataset.map`, whose `features=` does the typing) gets plain values.
    """
    if isinstance(row, dict):
        return values
    return {name: pa.scalar(value, type=COLUMNS[name]) for name, value in values.items()}


def batch_columns(batch: Mapping[str, Any], values: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """`row_columns` for a batched map function: each column a list of Arrow scalars, or of plain values."""
    if isinstance(batch, dict):
        return values
    return {name: [pa.scalar(value, type=COLUMNS[name]) for value in column] for name, column in values.items()}


def features(columns: Iterable[str]) -> Features:
    """`datasets.Features` of these columns, for `map(features=...)` on streams and for empty tables."""
    from datasets import Features

    return Features.from_arrow_schema(pa.schema([(name, COLUMNS[name]) for name in columns]))
