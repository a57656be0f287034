"""MT-Bench's answers: a model holds the conversations, or a file holds them already. FastChat's lines in either case."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from srt_hf.errors import DataError
from srt_hf.evaluation.answers import Answer, Answerer, ModelArguments, ServerArguments
from srt_hf.evaluation.fastchat import FAILED, Id, Row, file_name, load_answers, temperature_of, turns_of, write_answers
from srt_hf.evaluation.files import digest
from srt_hf.evaluation.sets import Question

Errors = dict[tuple[Id, int], str]


@dataclass(frozen=True)
class Conversations:
    """about: the model, for the results. rows: FastChat's lines by question. errors: (question, turn) -> why it has no answer."""

    about: dict[str, Any]
    model_id: str
    rows: dict[Id, Row]
    errors: Errors


def recorded(path: Path, model_id: str | None, questions: Sequence[Row]) -> Conversations:
    """The answers of a file in FastChat's format. Raises DataError where it has not two to each question."""
    found = load_answers(path)
    absent = [row["question_id"] for row in questions if len(turns_of(found.get(row["question_id"], {}))) < 2]
    if absent:
        raise DataError(f"{path} has no two answers to {len(absent)} of the questions, the first is {absent[0]}.")
    rows = {row["question_id"]: found[row["question_id"]] for row in questions}
    name = model_id or file_name(str(next(iter(rows.values())).get("model_id") or path.stem))
    about = {"name": name, "revision": digest([[id, turns_of(row)] for id, row in rows.items()]), "how": "recorded"}
    turns = {(id, turn): text for id, row in rows.items() for turn, text in enumerate(turns_of(row), start=1)}
    return Conversations(about, name, rows, {key: "recorded as failed" for key, text in turns.items() if text == FAILED})


def answered(
    models: ModelArguments, servers: ServerArguments, folder: Path, model_id: str | None, questions: Sequence[Row]
) -> Conversations:
    """The model's answers. Those that it gave earlier are taken from its file in `folder`, which has all of them in the end.

    Raises DataError where the file holds answers of another model, or given in another way: they are nobody's to overwrite.
    """
    groups: dict[float, list[Row]] = defaultdict(list)
    for row in questions:
        groups[temperature_of(row["category"])].append(row)
    answerers = {temperature: replace(models, temperature=temperature).make(servers) for temperature in groups}
    abouts = {temperature: answerer.about() for temperature, answerer in answerers.items()}
    about = {**next(iter(abouts.values())), "temperature": "by category"}
    name = model_id or file_name(about["name"])
    file = folder / f"{name}.jsonl"
    rows = load_answers(file) if file.is_file() else {}
    for temperature, group in groups.items():
        _check_own(file, rows, group, abouts[temperature])
    errors: Errors = {}
    for temperature, group in groups.items():
        rest = [row for row in group if FAILED in turns_of(rows.get(row["question_id"], {})) or row["question_id"] not in rows]
        if rest:
            turns = _converse(answerers[temperature], rest, errors)
            rows |= {row["question_id"]: _line(row, turns[row["question_id"]], abouts[temperature], name) for row in rest}
            write_answers(file, rows)
    return Conversations(about, name, {row["question_id"]: rows[row["question_id"]] for row in questions}, errors)


def _check_own(file: Path, rows: Mapping[Id, Row], questions: Sequence[Row], about: Mapping[str, Any]) -> None:
    for row in questions:
        own = rows.get(row["question_id"])
        if own and own.get("answer_id") != _answer_id(about, row, turns_of(own)):
            raise DataError(
                f"{file} holds answers that this model did not give to these questions in this way.",
                f"Give the new ones another --model_id, or grade those with --model {file}.",
            )


def _converse(answerer: Answerer, questions: Sequence[Row], errors: Errors) -> dict[Id, list[str]]:
    """Both turns' answers by question. Why one is missing goes to `errors`."""
    turns: dict[Id, list[str]] = {row["question_id"]: [] for row in questions}
    for turn in (1, 2):
        going_on = [row for row in questions if FAILED not in turns[row["question_id"]]]
        answers = answerer.answer([_question(row, turns[row["question_id"]]) for row in going_on])
        for id, given in turns.items():
            answer = answers.get(turn_id(id, turn), Answer("", error="not_attempted"))
            if answer.error:
                errors[id, turn] = answer.error
            given.append(FAILED if answer.error else answer.text)
    return turns


def turn_id(question: Id, turn: int) -> str:
    """A turn's name in the journal."""
    return f"mt_bench/{question}/{turn}"


def _question(row: Row, given: Sequence[str]) -> Question:
    """The next turn, after the answers `given` to those before it."""
    earlier = tuple(zip(row["turns"], given, strict=False))
    return Question(turn_id(row["question_id"], len(given) + 1), row["turns"][len(given)], earlier=earlier)


def _line(row: Row, turns: list[str], about: Mapping[str, Any], model_id: str) -> Row:
    return {
        "question_id": row["question_id"],
        "answer_id": _answer_id(about, row, turns),
        "model_id": model_id,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": time.time(),
    }


def _answer_id(about: Mapping[str, Any], row: Row, turns: Sequence[str]) -> str:
    """Tells by itself that this model, asked in this way, gave these answers: FastChat's format has no room for a revision."""
    return digest([about, row["turns"], list(turns)]).removeprefix("sha256:")[:22]
