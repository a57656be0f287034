"""MT-Bench: a model answers 80 questions of two turns each, a judge grades both turns from 1 to 10.

    python scripts/evaluate.py mt-bench --model http://localhost:8080 --judge http://localhost:8081 \\
        --questions mt_bench/question.jsonl --reference_answers mt_bench/reference_answer/gpt-4.jsonl

The questions and the reference answers are FastChat's (fastchat/llm_judge/data/mt_bench in lm-sys/FastChat). The answers go to
model_answer/MODEL.jsonl and the grades to model_judgment/JUDGE_single.jsonl in --bench_dir, as FastChat 0.2.36 writes them, so
that its show_result.py reads them. A file of such answers can be the --model, too.

The temperature follows the question's category, as published. The judge sees this project's wording; with FastChat's own
(--judge_prompts data/judge_prompts.jsonl) and a published judge the grades can stand beside published ones. A reply without a
grade is asked about once more; where there is none then, the file says -1, and no average counts it.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from srt_hf.cli import option
from srt_hf.errors import ConfigError, DataError, RequestFailed
from srt_hf.evaluation import conversations, fastchat
from srt_hf.evaluation.answers import JudgeArguments, ModelArguments, ServerArguments, ask_all, told_as
from srt_hf.evaluation.conversations import Conversations, turn_id
from srt_hf.evaluation.fastchat import FAILED, Id, Row, Wording, turns_of
from srt_hf.evaluation.figures import count
from srt_hf.evaluation.files import digest
from srt_hf.evaluation.results import Metric, OutputArguments, Results
from srt_hf.parsing import strip_reasoning
from srt_hf.teacher import Teacher

_AVERAGES = {"average": (1, 2), "first turn": (1,), "second turn": (2,)}  # name -> turns
_TRIES = 2  # replies of one match that are read for a grade
_RESAMPLES = 10_000
_QUOTED = 2_000  # characters of an unreadable reply that the judge is shown again


@dataclass
class BenchArguments:
    """MT-Bench"""

    questions: str | None = option(None, "FastChat's question.jsonl (required)")
    reference_answers: str | None = option(None, "FastChat's reference_answer/….jsonl, for math, reasoning and coding")
    judge_prompts: str | None = option(None, "FastChat's judge_prompts.jsonl, for its wording [this project's]")
    bench_dir: str = option("mt_bench", "folder that gets model_answer/ and model_judgment/")
    model_id: str | None = option(None, "the model's name in these files [the one that it has]")

    def __post_init__(self) -> None:
        if self.model_id is not None and fastchat.file_name(self.model_id) != self.model_id:
            raise ConfigError(f"--model_id {self.model_id!r} cannot name a file.", "Use letters, digits, '.', '_' and '-'.")


ARGUMENTS = (BenchArguments, ModelArguments, JudgeArguments, ServerArguments, OutputArguments)


@dataclass(frozen=True)
class Match:
    """One answer to be graded. prompt: what the judge is asked, in `wording`."""

    question: Row
    turn: int
    wording: Wording
    prompt: str


@dataclass(frozen=True)
class Grade:
    """score: from 1 to 10; None where there is none, and `error` says why: "unparsable", or a code of schema.ERRORS."""

    score: float | None
    judgment: str
    error: str | None = None


def main(
    bench: BenchArguments, models: ModelArguments, judging: JudgeArguments, servers: ServerArguments, output: OutputArguments
) -> int:
    if not bench.questions:
        raise ConfigError("No questions are named.", "Give FastChat's question.jsonl with --questions.")
    if models.temperature:
        raise ConfigError("MT-Bench has a temperature for each category.", "Leave --temperature out.")
    questions = fastchat.load_questions(Path(bench.questions))
    references = _references(bench.reference_answers, questions)
    wordings = fastchat.wordings(bench.judge_prompts)
    judge = judging.make(servers)
    recorded = Path(models.model).is_file()
    setup: dict[str, Any] = {
        "judge": judging.about(judge),
        "wording": digest([vars(wording) for wording in wordings.values()]),
        "questions": digest([[row["question_id"], row["category"], row["turns"]] for row in questions]),
        "references": digest([[id, turns] for id, turns in references.items()]) if references else None,
        **({} if recorded else {"sampling": {"max_tokens": models.max_tokens, "seed": models.seed}}),
    }
    output.check("mt-bench", setup)
    name, folder = str(setup["judge"]["name"]), Path(bench.bench_dir)
    file = folder / "model_judgment" / f"{fastchat.file_name(name)}_single.jsonl"
    fastchat.read_judgments(file)  # what is wrong with it shows before anything is paid for
    if recorded:
        given = conversations.recorded(Path(models.model), bench.model_id, questions)
    else:
        given = conversations.answered(models, servers, folder / "model_answer", bench.model_id, questions)
    matches = _matches(questions, given, references, wordings)
    with told_as("judge"):
        graded = ask_all(judge, [grade(judge, match, given.model_id) for match in matches], "The judge grades")
    judgments = [_judgment(match, grade, given.model_id, name) for match, grade in zip(matches, graded, strict=True)]
    fastchat.write_judgments(file, judgments)
    print(f"The grades are in {file}.")
    if all(grade.score is None for grade in graded):
        warnings.warn("Nothing was graded, so no results are written.", stacklevel=1)
        return 1
    output.finish(summary(list(zip(matches, graded, strict=True)), given, setup))
    return 0


def _references(path: str | None, questions: Sequence[Row]) -> dict[Id, list[str]]:
    """The reference answers to the questions that are graded by one; none without a file. DataError where one lacks."""
    needed = [row["question_id"] for row in questions if row["category"] in fastchat.WITH_REFERENCE]
    if not path:
        return {}
    found = fastchat.load_answers(Path(path))
    absent = [id for id in needed if len(turns_of(found.get(id, {}))) < 2]
    if absent:
        raise DataError(f"{path} lacks the reference answers to {len(absent)} of the questions, the first is {absent[0]}.")
    return {id: turns_of(found[id]) for id in needed}


def _matches(
    questions: Sequence[Row],
    given: Conversations,
    references: Mapping[Id, list[str]],
    wordings: Mapping[tuple[bool, int], Wording],
) -> list[Match]:
    """What there is to grade: each turn that has an answer."""
    found = []
    for row in questions:
        id = row["question_id"]
        turns, reference = turns_of(given.rows[id]), references.get(id)
        for turn in (1, 2):
            if FAILED not in turns[:turn]:
                wording = wordings[reference is not None, turn]
                found.append(Match(row, turn, wording, wording.fill(row["turns"], turns, reference)))
    return found


async def grade(judge: Teacher, match: Match, model_id: str) -> Grade:
    """One grade. A reply without one is answered with a reminder, once; what the judge said both times is kept."""
    messages = [{"role": "system", "content": match.wording.system}, {"role": "user", "content": match.prompt}]
    id = f"{turn_id(match.question['question_id'], match.turn)}/{model_id}"
    said: list[str] = []
    for attempt in range(_TRIES):
        try:
            reply = await judge.chat(messages, id=id, step="grade", attempt=attempt)
        except RequestFailed as failure:
            return Grade(None, "\n\n".join([*said, FAILED]), failure.code)
        said.append(strip_reasoning(reply.text))
        score = fastchat.rating(said[-1], match.wording.own)
        if score is not None:
            return Grade(score, "\n\n".join(said))
        quoted = {"role": "assistant", "content": said[-1][:_QUOTED] or "(nothing)"}
        messages = [*messages, quoted, {"role": "user", "content": fastchat.REMINDER}]
    return Grade(None, "\n\n".join(said), "unparsable")


def _judgment(match: Match, grade: Grade, model_id: str, judge: str) -> Row:
    return {
        "question_id": match.question["question_id"],
        "model": model_id,
        "judge": [judge, match.wording.name],
        "user_prompt": match.prompt,
        "judgment": grade.judgment,
        "score": fastchat.NO_GRADE if grade.score is None else grade.score,
        "turn": match.turn,
        "tstamp": time.time(),
    }


def summary(graded: Sequence[tuple[Match, Grade]], given: Conversations, setup: dict[str, Any]) -> Results:
    """The averages of both turns, of each, and of each category; with 95 % bootstrap intervals over the questions."""
    categories: dict[str, dict[Id, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for match, grade in graded:
        scores = categories[match.question["category"]][match.question["question_id"]]
        if grade.score is not None:
            scores[match.turn] = grade.score
    found = {name: _averages(list(questions.values())) for name, questions in categories.items()}
    averages = _averages([scores for questions in categories.values() for scores in questions.values()])
    lengths = [len(text.split()) for row in given.rows.values() for text in turns_of(row) if text != FAILED]
    words = Metric("mt_bench", "words of an answer", sum(lengths) / len(lengths) if lengths else None)
    missing = {
        "no answer": count(given.errors.values()),
        "no grade": count(grade.error for _, grade in graded if grade.error),
    }
    return Results(
        "mt-bench",
        given.about,
        setup,
        [*averages, words],
        head=["", *_AVERAGES],
        lines=[
            *([name, *map(_short, metrics)] for name, metrics in found.items()),
            ["all", *map(_short, averages)],
            ["95 %", *("–" if one.interval is None else "{:.2f} to {:.2f}".format(*one.interval) for one in averages)],
        ],
        notes=_notes(graded, words, missing, setup),
        details={"missing": missing, "categories": {name: {one.name: one.value for one in found[name]} for name in found}},
    )


def _notes(
    graded: Sequence[tuple[Match, Grade]], words: Metric, missing: Mapping[str, Mapping[str, int]], setup: Mapping[str, Any]
) -> list[str]:
    known = sum(grade.score is not None for _, grade in graded)
    notes = [f"{known} grades from 1 to 10 by {setup['judge']['name']}. An answer has {_short(words)} words in the mean."]
    notes += [
        f"There is {what} for {sum(codes.values())} turns ({', '.join(f'{n} {code}' for code, n in codes.items())}), "
        "which no average counts."
        for what, codes in missing.items()
        if codes
    ]
    if not setup["references"] and any(match.question["category"] in fastchat.WITH_REFERENCE for match, _ in graded):
        notes.append("Math, reasoning and coding were graded without reference answers, unlike published grades.")
    return notes


def _averages(rows: Sequence[Mapping[int, float]]) -> list[Metric]:
    """rows: the grades of each question, by turn."""
    return [
        Metric("mt_bench", name, *_mean([[row[turn] for turn in turns if turn in row] for row in rows]))
        for name, turns in _AVERAGES.items()
    ]


def _mean(clusters: Sequence[Sequence[float]]) -> tuple[float | None, tuple[float, float] | None]:
    """The mean of all grades and its interval. A question's grades stay together when questions are drawn, as they are alike."""
    graded = [cluster for cluster in clusters if cluster]
    if not graded:
        return None, None
    sums, sizes = np.array([[sum(cluster), len(cluster)] for cluster in graded]).T
    drawn = np.random.default_rng(0).integers(len(graded), size=(_RESAMPLES, len(graded)))  # (resamples, questions)
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    # Where all questions have one grade, every draw is the same, which says nothing of how sure the mean is.
    return float(sums.sum() / sizes.sum()), (float(low), float(high)) if low < high else None


def _short(metric: Metric) -> str:
    return "–" if metric.value is None else f"{metric.value:.2f}"
