"""Answers that exist already: a JSON or JSONL file, each row matched to a question by its text, else by its id.

Read are the layouts that answers are published in:

| a row | of |
|---|---|
| the test set's own row and {"response": "…"} | the paper's authors (tianyi-lab/Cherry_LLM) |
| {"data": [{…, "Answer1": "…", "Answer2": "…"}]} | the same, two models: the first is the model's, the second the baseline's |
| {"instruction": "…", "output": "…", "generator": "…"} | AlpacaEval |
| {"question_id": 1, "choices": [{"turns": ["…"]}]}, {"question_id": 1, "answer_id": "…", "text": "…"} | FastChat |
| {"id": "…", "answer": "…"}, also response, output, completion, prediction, generated_text | many |
| {"messages": [{"role": "user", …}, {"role": "assistant", …}]} | chat logs |
| {"id": "vicuna/1", "model_answer": "…", "baseline_answer": "…", "model": "…", "baseline": "…"} | `evaluate.py pairwise` itself |
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srt_hf.errors import DataError
from srt_hf.evaluation.answers import Answer, Answerer
from srt_hf.evaluation.files import digest, read_rows
from srt_hf.evaluation.sets import Question

_TEXTS = ("response", "answer", "output", "completion", "prediction", "generated_text")
_SIDES = {"model": ("model_answer", "Answer1"), "baseline": ("baseline_answer", "Answer2")}
_PROMPTS = ("instruction", "Instruction", "prompt", "conversations", "question")
_IDS = ("id", "question_id", "idx")
_WRITERS = ("generator", "model_id", "model")


class Recorded(Answerer):
    """The answers in `path`; of a file that holds two models' those of `side`, "model" or "baseline".

    Raises DataError where the file cannot be read, or its first row holds no answer.
    """

    def __init__(self, path: Path, side: str) -> None:
        self._path, self._side = path, side
        self._rows = read_rows(path)
        if all(_answer(row, side) is None for row in self._rows):
            fields = ", ".join(map(repr, list(self._rows[0])[:8])) or "none"
            raise DataError(
                f"The file of answers {path} has an unknown layout: its fields are {fields}.",
                f"An answer is under one of {', '.join(_TEXTS)}, in messages, or in FastChat's choices.",
            )

    def about(self) -> dict[str, Any]:
        writers = {row[key] for row in self._rows for key in self._name_keys(row) if isinstance(row.get(key), str)}
        name = writers.pop() if len(writers) == 1 else self._path.stem
        return {"name": name, "revision": digest([_answer(row, self._side) for row in self._rows]), "how": "file"}

    def _name_keys(self, row: dict[str, Any]) -> tuple[str, ...]:
        return (self._side,) if _holds_two(row) else _WRITERS  # rows of two models name each by its side

    def answer(self, questions: Sequence[Question]) -> dict[str, Answer]:
        """The answers that the file has to these questions. Raises DataError where it has none at all, or two to one."""
        by_text: dict[str, list[Question]] = defaultdict(list)
        by_id: dict[str, list[Question]] = defaultdict(list)
        for question in questions:
            for text in {question.text, question.instruction}:
                by_text[text].append(question)
            for id in (question.id, question.id.partition("/")[2]):
                by_id[id].append(question)
        found: dict[str, Answer] = {}
        strange: list[str] = []
        for row in self._rows:
            answer, fits = _answer(row, self._side), self._match(row, by_text, by_id)
            if answer is not None and not fits:
                strange.append(next((str(row[key]) for key in _IDS if key in row), "without an id"))
            if answer is None or not fits:
                continue
            free = [question.id for question in fits if question.id not in found]
            if free:
                found[free[0]] = Answer(answer, cut=row.get(f"{self._side}_cut") is True)
            elif all(found[question.id].text != answer for question in fits):
                raise DataError(f"{self._path} has two answers to the question {fits[0].id}.", "Leave one of them out.")
        if not found:
            raise DataError(
                f"None of the {len(self._rows):,} answers in {self._path} is to a question of the test sets.",
                "They are matched by the question's text, or by its id.",
            )
        if strange:
            # Ids that count from 0 where the questions' count from 1 would put every answer to another question.
            warnings.warn(
                f"{len(strange):,} of {len(self._rows):,} answers in {self._path} are to no question of the test sets "
                f"({', '.join(strange[:3])}): check that the others are matched rightly.",
                stacklevel=2,
            )
        # Sets overlap (LIMA's test set holds some of Vicuna's questions): one answer serves both.
        same = {question.text: found[question.id] for question in questions if question.id in found}
        return found | {q.id: same[q.text] for q in questions if q.id not in found and q.text in same}

    def _match(self, row: dict[str, Any], by_text: dict[str, list[Question]], by_id: dict[str, list[Question]]) -> list[Question]:
        """The row's question, several where they read the same; by id among those of its text. None where nothing fits."""
        prompts = _prompts(row)
        id = next((str(row[key]) for key in _IDS if isinstance(row.get(key), (str, int))), "")
        named = by_id.get(id, [])
        # The instruction with its input fits fewer than the instruction alone.
        fits = min((by_text[text] for text in prompts if text in by_text), key=len, default=[])
        fits = [question for question in named if question in fits] or fits or ([] if prompts else named)
        if len({question.text for question in fits}) > 1:
            raise DataError(
                f"An answer in {self._path} fits several questions: {fits[0].id} and {fits[1].id}.",
                "Give each row the question's id as it stands there.",
            )
        return fits


def _holds_two(row: dict[str, Any]) -> bool:
    return any(key in row for keys in _SIDES.values() for key in keys)


def _answer(row: dict[str, Any], side: str) -> str | None:
    """The row's answer; None where it has none."""
    if _holds_two(row):
        found: Any = next((row[key] for key in _SIDES[side] if key in row), None)
    elif key := next((key for key in _TEXTS if isinstance(row.get(key), str)), None):
        found = row[key]
    elif isinstance(row.get("choices"), list):
        found = _first(_first(row["choices"], "turns"))
    elif isinstance(row.get("messages"), list):
        turns = [turn for turn in row["messages"] if isinstance(turn, dict) and turn.get("role") == "assistant"]
        found = turns[-1].get("content") if turns else None
    else:
        found = row.get("text") if "answer_id" in row or "model_id" in row else None
    return found if isinstance(found, str) else None


def _first(values: Any, key: str | None = None) -> Any:
    found = values[0] if isinstance(values, list) and values else None
    return found.get(key) if key and isinstance(found, dict) else found


def _prompts(row: dict[str, Any]) -> list[str]:
    """The question as the row tells it: with its input first."""
    texts = [_first(row[key]) if isinstance(row[key], list) else row[key] for key in _PROMPTS if key in row]
    if "text" in row and not {"answer_id", "model_id"} & set(row):  # Vicuna's prompt; FastChat's answer
        texts.append(row["text"])
    if isinstance(row.get("messages"), list):
        texts += [turn.get("content") for turn in row["messages"] if isinstance(turn, dict) and turn.get("role") == "user"][:1]
    texts = [text for text in texts if isinstance(text, str)]
    instances = row.get("instances")
    input = _first(instances, "input") if isinstance(instances, list) else row.get("input")
    if isinstance(input, str) and input and texts:
        return [f"{texts[0]}\n{input}", *texts]
    return texts
