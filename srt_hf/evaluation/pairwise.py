"""Two models answer the prompts of a test set, and a judge says which answer is better.

    python scripts/evaluate.py pairwise --test_sets vicuna_test_set.jsonl --model sft-output \\
        --baseline meta-llama/Llama-2-7b-hf --judge http://localhost:8080 --template vicuna

The judge scores both orders from 1 to 10. Better twice, or better once and equal once, is a win; equal twice, or better once
each, is a tie; the score is (wins - losses) / judged + 1. A verdict that cannot be read is asked for once more, in other words;
a pair that has none then, or lacks an answer, is counted apart and enters no number. Model and baseline may also be files of
answers. A stopped run goes on where it was when the same command is given again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srt_hf.cli import option
from srt_hf.errors import RequestFailed
from srt_hf.evaluation.answers import Answer, Answerer, JudgeArguments, ModelArguments, ServerArguments, ask_all, told_as
from srt_hf.evaluation.figures import JUDGED, count, summary
from srt_hf.evaluation.files import write_rows
from srt_hf.evaluation.results import Metric, OutputArguments, Results
from srt_hf.evaluation.sets import Question, TestSet, load_sets
from srt_hf.evaluation.verdicts import VERSION, Verdict, judging, judging_again, outcome, parse_verdict
from srt_hf.parsing import strip_reasoning
from srt_hf.teacher import Teacher

# Characters of an answer that the judge is shown; the next where its window is too small for the one before.
_SHOWN = (20_000, 5_000, 1_500)
_ALL = "all"  # the line of all sets together


@dataclass
class TestArguments:
    """What is asked"""

    __test__ = False  # no test case
    test_sets: str = option("", "files of prompts, several with commas: Vicuna, Koala, WizardLM, Self-Instruct, LIMA, your own")


@dataclass
class BaselineArguments:
    """The model that it is compared with; a server's key is read from SRT_HF_BASELINE_KEY"""

    baseline: str = option("", "server URL, Hub model id or folder (runs in this process), or file of answers")
    baseline_name: str | None = option(None, "the baseline's name, for a server of several")
    baseline_revision: str | None = option(None, "branch, tag or commit of a Hub model")
    baseline_template: str | None = option(None, "prompt format of a baseline that runs here [that of --template]")

    def make(self, model: ModelArguments, servers: ServerArguments) -> Answerer:
        """Who answers, asked as the model is. Raises ConfigError."""
        template = self.baseline_template or model.template
        return model.of("baseline", self.baseline, self.baseline_name, self.baseline_revision, template, servers)


ARGUMENTS = (TestArguments, ModelArguments, BaselineArguments, JudgeArguments, ServerArguments, OutputArguments)


def main(
    test: TestArguments,
    model: ModelArguments,
    baseline: BaselineArguments,
    judged_by: JudgeArguments,
    servers: ServerArguments,
    output: OutputArguments,
) -> int:
    """Run the comparison and write its results."""
    sets = load_sets(test.test_sets)
    sides = {"model": model.make(servers), "baseline": baseline.make(model, servers)}
    judge = judged_by.make(servers)
    # Who cannot be reached, and what cannot be asked in this way, shows before the first answer is paid for.
    judge_about = judged_by.about(judge)
    about, baseline_about = (who.about() for who in sides.values())
    setup = {
        "judge": judge_about,
        "prompt_version": VERSION,
        "baseline": baseline_about,
        "sets": {one.name: {"prompts": len(one.questions), "digest": one.digest} for one in sets},
        **model.sampling(about, baseline_about),
    }
    output.check("pairwise", setup)
    questions = [question for one in sets for question in one.questions]
    answers = {side: who.answer(questions) for side, who in sides.items()}
    names = {"model": about["name"], "baseline": baseline_about["name"]}
    pairs = [{**pair, **names} for pair in judge_pairs(judge, questions, answers["model"], answers["baseline"])]
    path = output.beside("pairwise", "pairs.jsonl")
    write_rows(path, pairs)
    print(f"Answers and verdicts: {path}.")
    if not any(pair["outcome"] in JUDGED for pair in pairs):
        left_out = told_left_out(count(pair["outcome"] for pair in pairs))
        warnings.warn(f"Nothing was judged, so no results are written: {left_out}.", stacklevel=1)
        return 1
    told = _told(sets, pairs, about["name"], setup)
    output.finish(Results("pairwise", about, setup, *told, _details(sets, pairs), subject=subject_of(setup)))
    return 0


def subject_of(setup: Mapping[str, Any]) -> str:
    """The test sets and the baseline, by which a card tells comparisons apart."""
    return f"{', '.join(setup['sets'])} against {setup['baseline']['name']}"


def judge_pairs(
    judge: Teacher, questions: Sequence[Question], model: Mapping[str, Answer], baseline: Mapping[str, Answer]
) -> list[dict[str, Any]]:
    """Have the judge score each question's two answers in both orders, all at once. A row for each question, in order:

    id, instruction, input, model_answer, baseline_answer (None where there is none), model_words, baseline_words, model_cut,
    baseline_cut, shown_cut (the judge saw a shortened answer), verdicts (one for each order: scores as (model, baseline) or
    None, reply, asked_again, error), outcome ("win", "tie" or "lose" of the model; "unparsable"; "missing", an answer that a file
    lacks; "no_answer", a model that failed; "no_verdict", a judge that failed).

    Raises TeacherUnreachable or TeacherAuthError where the judge cannot go on; verdicts so far are in its journal.
    """
    rows = [_row(question, model.get(question.id), baseline.get(question.id)) for question in questions]
    texts = {question.id: question.text for question in questions}
    open_rows = [row for row in rows if row["outcome"] is None]
    work = [_verdicts(judge, row, texts[row["id"]]) for row in open_rows]
    with told_as("judge"):
        verdicts = ask_all(judge, work, "The judge compares")
    for row, (both, shown_cut) in zip(open_rows, verdicts, strict=True):
        row |= {"verdicts": both, "shown_cut": shown_cut}
        failed = any(verdict["error"] for verdict in both)
        row["outcome"] = "no_verdict" if failed else outcome([verdict["scores"] for verdict in both])
    return rows


def _row(question: Question, model: Answer | None, baseline: Answer | None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": question.id, "instruction": question.instruction, "input": question.input}
    for side, answer in (("model", model), ("baseline", baseline)):
        there = answer is not None and answer.error is None
        row[f"{side}_answer"] = answer.text if answer is not None and there else None
        row[f"{side}_words"] = len(answer.text.split()) if answer is not None and there else None
        row[f"{side}_cut"] = answer is not None and answer.cut
        row[f"{side}_error"] = answer.error if answer is not None else None
    known = model is not None and baseline is not None
    lacking = ("no_answer" if known else "missing") if None in (row["model_answer"], row["baseline_answer"]) else None
    return {**row, "shown_cut": False, "verdicts": [], "outcome": lacking}


async def _verdicts(judge: Teacher, row: Mapping[str, Any], question: str) -> tuple[list[dict[str, Any]], bool]:
    """Both orders' verdicts of a pair, and whether the judge saw a shortened answer: the same cut of it in both orders."""
    whole = max(len(row["model_answer"]), len(row["baseline_answer"]))
    limits = [limit for limit in _SHOWN if limit == _SHOWN[0] or limit < whole]
    for longest in limits:
        both: list[dict[str, Any]] = []
        for swapped in (False, True):
            both.append(await _verdict(judge, row, question, swapped, longest))
            if both[-1]["error"] == "too_long" and longest != limits[-1]:
                break
        else:
            return both, whole > longest
    raise AssertionError("the shortest was tried")


async def _verdict(judge: Teacher, row: Mapping[str, Any], question: str, swapped: bool, longest: int) -> dict[str, Any]:
    """One order's verdict, its scores turned back to (model, baseline). longest: characters of an answer that are shown."""
    shown = [row["model_answer"], row["baseline_answer"]]
    first, second = shown[::-1] if swapped else shown
    try:
        messages = judging(question, first, second, longest)
        scores, reply, again = await _ask(judge, messages, row["id"], "judge-swapped" if swapped else "judge")
    except RequestFailed as error:
        return {"scores": None, "reply": None, "asked_again": False, "error": error.code}
    turned = (scores[1], scores[0]) if scores and swapped else scores
    return {"scores": turned, "reply": reply, "asked_again": again, "error": None}


async def _ask(judge: Teacher, messages: list[dict[str, str]], id: str, step: str) -> tuple[Verdict | None, str, bool]:
    """The scores, the reply that they were read from, and whether it took a second request."""
    reply = await judge.chat(messages, id=id, step=step)
    scores = parse_verdict(strip_reasoning(reply.text))
    if scores is not None:
        return scores, reply.text, False
    reply = await judge.chat(judging_again(messages, reply.text), id=id, step=step, attempt=1)
    return parse_verdict(strip_reasoning(reply.text)), reply.text, True


# What is told of it.


def _told(
    sets: Sequence[TestSet], pairs: Sequence[Mapping[str, Any]], model: str, setup: Mapping[str, Any]
) -> tuple[list[Metric], list[str], list[list[str]], list[str]]:
    """The metrics, the table's head and lines, and the sentences below it."""
    metrics: list[Metric] = []
    lines: list[list[str]] = []
    head: list[str] = []
    for name, line in _summaries(sets, pairs).items():
        metrics.append(Metric(name, "winning score", line["score"], line["interval"]))
        for side, label in (("model", "median words"), ("baseline", "baseline median words")):
            words = line[f"{side}_words"]
            metrics.append(Metric(name, label, words and words["median"]))
        head, cells = line_of(name, line)
        lines.append(cells)
    again = sum(verdict["asked_again"] for pair in pairs for verdict in pair["verdicts"])
    cut = {side: sum(pair[f"{side}_cut"] for pair in pairs) for side in ("model", "baseline")}
    who = f"{model} against {setup['baseline']['name']}, judged by {setup['judge']['name']}"
    notes = [
        f"{who}: both orders, (wins − losses) / judged + 1.",
        "Words are medians, model : baseline; longer won: decided pairs that went to the longer answer, beside how often the "
        "model's answer is the longer one at all.",
        f"Cut by the token limit: {cut['model']} answers of the model, {cut['baseline']} of the baseline.",
        _bias(pairs),
    ]
    if again:
        notes.append(f"{again} verdicts had to be asked for again.")
    if shortened := sum(pair["shown_cut"] for pair in pairs):
        notes.append(f"{shortened} pairs had an answer too long for the judge, who saw it without its middle.")
    return metrics, head, lines, notes


def _summaries(sets: Sequence[TestSet], pairs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A line of figures for each set and, where there are several, for all of them."""
    by_id = {pair["id"]: pair for pair in pairs}
    lines = {one.name: summary([by_id[question.id] for question in one.questions]) for one in sets}
    return lines if len(sets) == 1 else {**lines, _ALL: summary(pairs)}


def line_of(name: str, line: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """A summary as a line of a table, behind the table's head."""
    ends = line["interval"]
    words = [line[f"{side}_words"] for side in ("model", "baseline")]
    cells = {
        "set": name,
        "judged": f"{line['judged']:,} of {line['prompts']:,}",
        **{key: f"{line[key]:,}" for key in JUDGED},
        "score": "–" if line["score"] is None else f"{line['score']:.3f}",
        "95 %": "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}",
        "sign test p": "–" if line["sign_test"] is None else f"{line['sign_test']:.3g}",
        "words": " : ".join("–" if side is None else f"{side['median']:g}" for side in words),
        "mean words": " : ".join("–" if side is None else f"{side['mean']:.0f}" for side in words),
        "longer won": "{:,} of {:,}".format(*line["longer_won"]),
        "model longer": "{:,} of {:,}".format(*line["model_longer"]),
        "left out": told_left_out(line["left_out"]) or "0",
    }
    return list(cells), list(cells.values())


def told_left_out(counts: Mapping[str, int]) -> str:
    """Why pairs were counted apart, in words."""
    return ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())


def _bias(pairs: Sequence[Mapping[str, Any]]) -> str:
    """How often the judge favoured a place: what asking in both orders evens out."""
    first, second, even = _places(pairs).values()
    return f"Of single verdicts, {first} favoured the answer shown first, {second} the second, {even} neither."


def _places(pairs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    places = {"first": 0, "second": 0, "even": 0}
    for pair in pairs:
        for swapped, verdict in enumerate(pair["verdicts"]):
            if verdict["scores"] is not None:
                model, baseline = verdict["scores"]
                first, second = (baseline, model) if swapped else (model, baseline)
                places["even" if first == second else "first" if first > second else "second"] += 1
    return places


def _details(sets: Sequence[TestSet], pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "sets": _summaries(sets, pairs),
        "places": _places(pairs),
        "cut": {side: sum(pair[f"{side}_cut"] for pair in pairs) for side in ("model", "baseline")},
        "shown_cut": sum(pair["shown_cut"] for pair in pairs),
        "asked_again": sum(verdict["asked_again"] for pair in pairs for verdict in pair["verdicts"]),
        "errors": count(pair[f"{side}_error"] for pair in pairs for side in ("model", "baseline") if pair[f"{side}_error"]),
        "judge_errors": count(verdict["error"] for pair in pairs for verdict in pair["verdicts"] if verdict["error"]),
    }
