"""The same comparison by people: a blind study, then majority, agreement and score from what they answered.

    python scripts/evaluate.py human --prepare study --test_sets vicuna_test_set.jsonl --model sft.jsonl --baseline base.jsonl
    python scripts/evaluate.py human --key study/key.json --answers anna.csv,ben.csv,chris.csv

or, the same study in Argilla:

    python scripts/evaluate.py human --prepare study --argilla_dataset vicuna-study --test_sets ... --model ... --baseline ...
    python scripts/evaluate.py human --key study/key.json --argilla_dataset vicuna-study

--prepare writes study.csv, which opens in a spreadsheet, study.jsonl, the same for other tools, and key.json, which tells whose
answer is A: keep that one back. Each annotator writes A, B or tie into the column choice of a copy of study.csv. An answers file
is such a CSV, or JSONL {"pair": "p001", "choice": "A"}; annotators are told apart by a column annotator, or by their files. A
pair goes to whom most annotators chose; one without a majority is counted apart.

In Argilla (ARGILLA_API_URL, ARGILLA_API_KEY) each annotator logs in and judges, and what they submitted is counted, and kept with
their comments in argilla.csv beside the key. Where the sending broke off, the same --prepare sends the rest. --answers and
--argilla_dataset may be scored together.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from srt_hf.agreement import agreement, majority
from srt_hf.annotation import ArgillaArguments, Place
from srt_hf.cli import changed, option
from srt_hf.errors import ConfigError, DataError
from srt_hf.evaluation.answers import Answer, ModelArguments, ServerArguments
from srt_hf.evaluation.argilla_study import open_study, read_votes, send_study
from srt_hf.evaluation.figures import JUDGED, summary
from srt_hf.evaluation.files import digest, write_rows, write_whole
from srt_hf.evaluation.pairwise import BaselineArguments, TestArguments, line_of, subject_of, told_left_out
from srt_hf.evaluation.results import Metric, OutputArguments, Results
from srt_hf.evaluation.sets import Question, load_sets
from srt_hf.evaluation.sheets import read_choices, write_choices, write_sheet
from srt_hf.report import counted, decimal, render_table

_FORM = 1  # of key.json
_FILES = ("study.csv", "study.jsonl", "key.json")


@dataclass
class StudyArguments:
    """The study"""

    prepare: str | None = option(None, "folder that gets a new study of --model and --baseline on --test_sets")
    sample: int | None = option(None, "for --prepare: how many prompts, drawn by --study_seed [all]")
    study_seed: int | None = option(
        None, "for --prepare: decides which answer is A, and in which order pairs are shown [drawn, and kept in key.json]"
    )
    key: str | None = option(None, "key.json of a study that has been answered")
    min_submitted: int = option(1, "for --prepare with --argilla_dataset: how many annotators each pair needs")
    answers: str | None = option(None, "for --key: files of what annotators answered, several with commas")

    def __post_init__(self) -> None:
        if bool(self.prepare) == bool(self.key):
            raise ConfigError("A study is prepared or scored.", "Give --prepare FOLDER, or --key FILE with --answers FILES.")
        if self.min_submitted < 1:
            raise ConfigError(f"--min_submitted is {self.min_submitted}.", "Give at least 1.")
        if self.sample is not None and self.sample < 1:
            raise ConfigError(f"--sample is {self.sample}.", "Give at least 1, or leave it out for all prompts.")


ARGUMENTS = (StudyArguments, ArgillaArguments, TestArguments, ModelArguments, BaselineArguments, ServerArguments, OutputArguments)


def main(
    study: StudyArguments,
    argilla: ArgillaArguments,
    test: TestArguments,
    model: ModelArguments,
    baseline: BaselineArguments,
    servers: ServerArguments,
    output: OutputArguments,
) -> int:
    """Prepare a study, or score one."""
    _check_use(study, argilla, changed(test, model, baseline, servers), changed(output))
    place = argilla.make() if argilla.argilla_dataset else None
    if study.prepare:
        return _prepare(study, place, test, model, baseline, servers)
    key = load_key(Path(study.key or ""))
    output.check("human", key["setup"])
    choices = read_choices(study.answers, key["study"]) if study.answers else {}
    votes = read_votes(place, key["study"]) if place else None
    results, disagreements = score_study(key, {**choices, **votes.choices} if votes else choices)
    if votes:
        results.notes += votes.notes()
        write_choices(Path(study.key or "").with_name("argilla.csv"), votes.rows(key["study"]))
    output.finish(results)
    print(f"\n{disagreements}")
    return 0


def _check_use(study: StudyArguments, argilla: ArgillaArguments, asking: list[str], output: list[str]) -> None:
    """Raise ConfigError for options that this run would not use, and where it has nothing to score."""
    if study.key and not study.answers and not argilla.argilla_dataset:
        raise ConfigError("--key alone scores nothing.", "Name the annotators' files with --answers, or --argilla_dataset.")
    of_prepare = ("sample", "study_seed", "min_submitted")
    own = [name for name in changed(study) if name in (of_prepare if study.key else ("answers",))]
    if idle := [*own, *(asking if study.key else output)]:
        what = "--key scores a study that is there" if study.key else "--prepare scores nothing"
        raise ConfigError(f"{what}, so --{', --'.join(idle)} would do nothing.", "Leave it out.")
    of_server = [*changed(argilla), *(name for name in changed(study) if name == "min_submitted")]
    if of_server and not argilla.argilla_dataset:
        raise ConfigError(
            f"No dataset in Argilla is named, so --{', --'.join(of_server)} would do nothing.",
            "Name it with --argilla_dataset, or leave this out.",
        )


def _prepare(
    study: StudyArguments,
    place: Place | None,
    test: TestArguments,
    model: ModelArguments,
    baseline: BaselineArguments,
    servers: ServerArguments,
) -> int:
    folder = Path(study.prepare or "")
    earlier = _earlier(folder, place)
    sets = load_sets(test.test_sets)
    seed = study.study_seed
    if seed is None:
        seed = earlier["seed"] if earlier else secrets.randbelow(2**32)
    questions = [question for one in sets for question in one.questions]
    drawn = draw(questions, seed, study.sample)
    sides = {"model": model.make(servers), "baseline": baseline.make(model, servers)}
    about = {side: who.about() for side, who in sides.items()}
    dataset = open_study(place, study.min_submitted) if place else None  # what is wrong there is told before any work
    # A file is read whole, since answers to what was not drawn are nothing strange.
    answers = {side: who.answer(questions if about[side]["how"] == "file" else drawn) for side, who in sides.items()}
    rows, pairs = blind(drawn, answers["model"], answers["baseline"], seed)
    if not rows:
        raise DataError("There is no prompt that both have answered, so there is nothing to compare.")
    setup = {
        "baseline": about["baseline"],
        "sets": {one.name: {"prompts": len(one.questions), "digest": one.digest} for one in sets},
        "sample": study.sample and {"prompts": study.sample, "seed": seed},
        **model.sampling(*about.values()),
    }
    name = digest(rows).removeprefix("sha256:")[:8]
    key = {"srt_hf_study": _FORM, "study": name, "seed": seed, "model": about["model"], "setup": setup, "pairs": pairs}
    if earlier and earlier["study"] != name:
        raise ConfigError(f"{folder} has another study, {earlier['study']}, already.", "Name a new folder.")
    if not earlier:
        _write(folder, key, rows)
    if lacking := len(drawn) - len(rows):
        print(f"Left out, because one of the two has no answer: {counted(lacking, 'prompt')}.")
    if place and dataset:
        sent = send_study(dataset, place, name, rows)
        print(f"{counted(sent, 'pair')} sent to {place.dataset} on {place.url}; {len(rows) - sent:,} were there already.")
    return 0


def _earlier(folder: Path, place: Place | None) -> dict[str, Any] | None:
    """The key of the study that the folder has, which an earlier run may not have sent to Argilla whole. Raises ConfigError where
    there are files of a study that this run would overwrite."""
    there = [name for name in _FILES if (folder / name).exists()]
    if there and (place is None or len(there) < len(_FILES)):
        raise ConfigError(f"{folder} has a {there[0]} already, maybe with answers in it.", "Name a new folder.")
    return load_key(folder / "key.json") if there else None


def _write(folder: Path, key: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> None:
    """The files of a new study."""
    folder.mkdir(parents=True, exist_ok=True)
    named = [{"study": key["study"], **row} for row in rows]
    write_whole(folder / "key.json", json.dumps(key, indent=2, ensure_ascii=False) + "\n")
    write_rows(folder / "study.jsonl", named)
    shortened = write_sheet(folder / "study.csv", named)
    print(f"{counted(len(rows), 'pair')} in {folder}: give study.csv to the annotators and keep key.json back.")
    if shortened:
        what = counted(shortened, "text")
        print(f"Shown without their middle, because a spreadsheet's cell is smaller: {what}. study.jsonl has them whole.")


def draw(questions: Sequence[Question], seed: int, sample: int | None) -> list[Question]:
    """The questions in the order that they are shown in: by hash of seed and id; the first `sample` of them."""
    return sorted(questions, key=lambda question: _hash(seed, "order", question.id))[:sample]


def blind(
    questions: Sequence[Question], model: Mapping[str, Answer], baseline: Mapping[str, Answer], seed: int
) -> tuple[list[dict[str, str]], dict[str, dict[str, Any]]]:
    """What annotators see, {pair, question, answer_a, answer_b}, and the key to it by pair. Each of the two is A as often as the
    other, in places drawn by the hash of seed and id. A question that one of the two has no answer to is left out."""
    rows: list[dict[str, str]] = []
    key: dict[str, dict[str, Any]] = {}
    both = {question.id: _texts(model.get(question.id), baseline.get(question.id)) for question in questions}
    answered = [question for question in questions if len(both[question.id]) == 2]
    shuffled = sorted((question.id for question in answered), key=lambda id: _hash(seed, "place", id))
    first = {id: place % 2 == 0 for place, id in enumerate(shuffled)}
    for number, question in enumerate(answered, start=1):
        texts = both[question.id]
        a, b = ("model", "baseline") if first[question.id] else ("baseline", "model")
        pair = f"p{number:03}"
        rows.append({"pair": pair, "question": question.text, "answer_a": texts[a], "answer_b": texts[b]})
        words = {f"{side}_words": len(text.split()) for side, text in texts.items()}
        key[pair] = {"id": question.id, "a": a, **words}
    return rows, key


def _texts(model: Answer | None, baseline: Answer | None) -> dict[str, str]:
    both = {"model": model, "baseline": baseline}
    return {side: answer.text for side, answer in both.items() if answer is not None and answer.error is None}


def _hash(seed: int, what: str, id: str) -> bytes:
    return hashlib.sha256(f"srt_hf/study/{seed}/{what}/{id}".encode()).digest()


def load_key(path: Path) -> dict[str, Any]:
    """The key that --prepare wrote. Raises DataError for any other file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["srt_hf_study"] == _FORM:
            return found
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{path} is no key of a study.", "Give the key.json that --prepare wrote.")


def score_study(key: Mapping[str, Any], choices: Mapping[tuple[str, str], str]) -> tuple[Results, str]:
    """The results, and a table of who said what where annotators differ.

    choices: by (annotator, pair) "a", "b" or "tie". Raises DataError for a pair that the key does not have, or where nothing was
    answered.
    """
    if strange := {pair for _, pair in choices} - set(key["pairs"]):
        raise DataError(f"The pair {min(strange)} is not in the key.", "Score the answers with the key of their own study.")
    votes: dict[str, list[str]] = {pair: [] for pair in key["pairs"]}
    for (_, pair), choice in sorted(choices.items()):
        votes[pair].append(_outcome(choice, key["pairs"][pair]["a"]))
    if not choices:
        raise DataError("No pair has an answer.", "In files, it stands in the column choice; in Argilla, drafts are none.")
    pairs = [{**entry, "outcome": majority(votes[pair])} for pair, entry in key["pairs"].items()]
    line = summary(pairs)
    alpha, shared, alike = agreement(votes.values())
    annotators = sorted({annotator for annotator, _ in choices})
    head, cells = line_of("human", line)
    places = {name: Counter(choices.values())[name] for name in ("a", "b", "tie")}
    who = f"{key['model']['name']} against {key['setup']['baseline']['name']}, {counted(len(annotators), 'annotator')}"
    notes = [
        f"{who}, the majority of each pair.",
        f"Krippendorff's alpha (nominal): {decimal(alpha)}. Pairs with several answers: {shared}, all alike: {alike}.",
        f"Of single choices, {places['a']} favoured answer A, {places['b']} answer B, {places['tie']} neither.",
    ]
    if line["left_out"]:
        notes.append(f"Counted apart: {told_left_out(line['left_out'])}.")
    metrics = [
        Metric("human", "winning score", line["score"], line["interval"]),
        Metric("human", "Krippendorff's alpha", alpha),
    ]
    # Annotators are numbered: their names are nobody else's business.
    each = [
        Counter(_outcome(choices[who, pair], key["pairs"][pair]["a"]) for a, pair in choices if a == who) for who in annotators
    ]
    details = {"summary": line, "annotators": [dict(counts) for counts in each], "places": places, "votes": votes}
    results = Results("human", key["model"], key["setup"], metrics, head, [cells], notes, details, subject_of(key["setup"]))
    return results, disagreement(votes)


def _outcome(choice: str, a: str) -> str:
    """What the choice means for the model."""
    if choice == "tie":
        return "tie"
    return "win" if (choice == "a") == (a == "model") else "lose"


def disagreement(votes: Mapping[str, Sequence[str]]) -> str:
    """A table: how often one annotator said the row's word and another the column's, of the same pair."""
    met = Counter(two for said in votes.values() for two in permutations(said, 2))
    lines = [[one, *(f"{met[one, other] // (2 if one == other else 1):,}" for other in JUDGED)] for one in JUDGED]
    return render_table(["one said \\ another", *JUDGED], lines)
