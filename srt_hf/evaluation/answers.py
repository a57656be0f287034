"""Who answers a test set's questions: a served model, a model in this process, or a file of answers that exist.

    model = models.make(servers)                # an Answerer, from the options --model … and --timeout, --outage, --journal
    answers = model.answer(questions)           # {id: Answer}; a question that is not in it was not answered

Every generated answer is in the journal before it counts, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srt_hf.cli import json_object, masked, option
from srt_hf.errors import ConfigError, RequestFailed, TeacherAuthError, TeacherError, TeacherUnreachable
from srt_hf.evaluation.sets import Question
from srt_hf.parsing import strip_reasoning
from srt_hf.prompts import TEMPLATE_NAMES
from srt_hf.teacher import Teacher

__all__ = [
    "Answer",
    "Answerer",
    "JudgeArguments",
    "ModelArguments",
    "Question",
    "ServerArguments",
    "ask_all",
    "judge_identity",
    "told_as",
]

_NAMED = "Give http://HOST:PORT, a Hub model id, a folder, or a file of answers."
_NAME_OPTIONS = {"model": "model_name", "baseline": "baseline_name", "judge": "judge_model"}
_URL = ("http://", "https://", "tgi+http://", "tgi+https://")


@dataclass(frozen=True)
class Answer:
    """A model's answer. cut: the token limit ended it. error: a code of schema.ERRORS where there is none; then text is ""."""

    text: str
    cut: bool = False
    error: str | None = None


class Answerer(ABC):
    """Somebody who answers."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What a results file says of it: `name` (without any path or secret), `revision` (a Hub commit, a server's word for it,
        or a digest), and how it is asked. JSON values.

        Raises what stops a run (TeacherUnreachable, TeacherAuthError, StudentError, ConfigError): call it before any work.
        """

    @abstractmethod
    def answer(self, questions: Sequence[Question]) -> dict[str, Answer]:
        """The answers by question id, blocking; a progress bar on stderr. What a file has no answer to is left out, a request
        that failed for good has an `error`. Raises TeacherError or StudentError where the run cannot go on.
        """


@dataclass
class ServerArguments:
    """Servers, and what is kept"""

    timeout: float = option(600.0, "seconds one request may take")
    outage: float = option(900.0, "seconds without any reply after which the run stops")
    journal: str | None = option(None, "file of all answers and replies (default: srt_hf/journal.sqlite under HF_HOME)")


@dataclass
class ModelArguments:
    """The model that is evaluated; a server's key is read from SRT_HF_MODEL_KEY"""

    model: str = option("", "server URL, Hub model id or folder (runs in this process), or file of answers")
    model_name: str | None = option(None, "the model's name, for a server of several")
    model_revision: str | None = option(None, "branch, tag or commit of a Hub model")
    template: str = option("auto", f"prompt format of a model that runs here: {', '.join(TEMPLATE_NAMES)}")
    dtype: str = option("auto", "of a model that runs here: auto, float32, bfloat16, float16")
    batch_size: int = option(16, "answers that a model writes at once here; fewer where memory is short")
    max_tokens: int = option(1024, "new tokens an answer may have")
    temperature: float = option(0.0, "0 is greedy, as in the paper")
    seed: int | None = option(None, "sampling seed, for temperatures above 0")

    def make(self, servers: ServerArguments) -> Answerer:
        """Who answers, not asked or loaded yet. Raises ConfigError."""
        return self.of("model", self.model, self.model_name, self.model_revision, self.template, servers)

    def of(
        self, side: str, model: str, name: str | None, revision: str | None, template: str, servers: ServerArguments
    ) -> Answerer:
        """The same for another model, asked in the same way. side: "model" or "baseline", the option that names it."""
        if not model:
            raise ConfigError(f"No model is named with --{side}.", _NAMED)
        if model.startswith(_URL):
            return Served(side, model, name, self, servers)
        if Path(model).is_file():
            from srt_hf.evaluation.answer_files import Recorded

            return Recorded(Path(model), side)
        if Path(model).is_dir() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
            from srt_hf.evaluation.generation import Local

            return Local(model, revision, template, self, servers.journal)
        raise ConfigError(f"--{side} {model!r} is no model.", _NAMED)

    def sampling(self, *abouts: Mapping[str, Any]) -> dict[str, Any]:
        """How answers are drawn, for the setup of a run of these `Answerer.about`; nothing where all answers exist in files."""
        if all(about["how"] == "file" for about in abouts):
            return {}
        return {"sampling": {name: getattr(self, name) for name in ("max_tokens", "temperature", "seed")}}


@dataclass
class JudgeArguments:
    """The judge; a server's key is read from SRT_HF_JUDGE_KEY"""

    judge: str = option("http://localhost:8080", "server URL (several with commas), Hub model id, local:MODEL, replay:FILE")
    judge_model: str | None = option(None, "the judge's name, for a server of several")
    judge_provider: str = option("auto", "which Inference Provider, for a Hub model id")
    judge_temperature: float = option(0.0, "0 is greedy")
    judge_top_p: float | None = option(None, "nucleus sampling; TGI rejects 1.0")
    judge_seed: int | None = option(None, "sampling seed, for temperatures above 0")
    judge_max_tokens: int = option(1024, "new tokens a verdict may have")
    judge_extra_body: str | None = option(None, "JSON object of further fields of each request")

    def make(self, servers: ServerArguments) -> Teacher:
        """The judge, not asked yet. Raises ConfigError."""
        if not self.judge:
            raise ConfigError(
                "No judge is named with --judge.", "Give http://HOST:PORT, a Hub model id, local:MODEL or replay:FILE."
            )
        own = {name: getattr(self, f"judge_{name}") for name in ("provider", "temperature", "top_p", "seed", "max_tokens")}
        key, further = os.environ.get("SRT_HF_JUDGE_KEY"), json_object(self.judge_extra_body or None, "--judge_extra_body")
        with told_as("judge"):
            return Teacher(self.judge, model=self.judge_model, key=key, extra_body=further, **own, **vars(servers))

    def about(self, judge: Teacher) -> dict[str, Any]:
        """Who judges and how it is asked, for a results file. Raises TeacherUnreachable or TeacherAuthError: call it first."""
        asked = {name: getattr(self, f"judge_{name}") for name in ("temperature", "top_p", "seed", "max_tokens", "extra_body")}
        if asked["extra_body"]:
            text = asked["extra_body"]  # a config file may give a mapping
            asked["extra_body"] = masked(text if isinstance(text, str) else json.dumps(text))
        return {**judge_identity(judge), **asked}


class Served(Answerer):
    """A model behind a URL, asked through `Teacher`: its concurrency, patience and journal."""

    def __init__(self, side: str, url: str, name: str | None, asked: ModelArguments, servers: ServerArguments) -> None:
        key = os.environ.get(f"SRT_HF_{side.upper()}_KEY")
        self._asked = {name: getattr(asked, name) for name in ("max_tokens", "temperature", "seed")}
        with told_as(side):
            self._teacher = Teacher(url, model=name, key=key, **self._asked, **vars(servers))
        self._side = side

    def about(self) -> dict[str, Any]:
        with told_as(self._side):
            return {**_identity(self._teacher), "how": "served", **self._asked}

    def answer(self, questions: Sequence[Question]) -> dict[str, Answer]:
        with told_as(self._side):
            found = ask_all(self._teacher, [self._one(question) for question in questions], f"The {self._side} answers")
            self._warn_of_old_answers()
        return {question.id: answer for question, answer in zip(questions, found, strict=True)}

    def _warn_of_old_answers(self) -> None:
        kept, who = self._teacher.counts["from_journal"], self._teacher.identity()
        if kept and who.revision is None:  # a model retrained under its old name would be judged by its old answers
            warnings.warn(
                f"{kept:,} answers of the --{self._side} are from the journal, and its server tells no revision. If it was "
                "another model of this name then, give another --journal.",
                stacklevel=3,
            )

    async def _one(self, question: Question) -> Answer:
        try:
            reply = await self._teacher.chat(question.messages, id=question.id, step="answer")
        except RequestFailed as error:
            return Answer("", error=error.code)
        return Answer(strip_reasoning(reply.text), cut=reply.finish_reason == "length")


def judge_identity(judge: Teacher) -> dict[str, Any]:
    """Name and revision of who judges, as a results file has them. Raises TeacherUnreachable or TeacherAuthError."""
    with told_as("judge"):
        return _identity(judge)


def _identity(teacher: Teacher) -> dict[str, Any]:
    found = teacher.identity()
    # transformers serve calls its model by the path of its folder.
    name = Path(found.model).name if Path(found.model).is_absolute() else found.model
    return {"name": name, "revision": found.revision}


@contextmanager
def told_as(side: str) -> Iterator[None]:
    """A teacher's errors in the words, and with the cure, that fit the option --`side`, which named it."""
    try:
        yield
    except RequestFailed:  # of one request, which stops nothing
        raise
    except TeacherAuthError as error:
        cure = f"Put the key of the --{side} into SRT_HF_{side.upper()}_KEY."
        raise TeacherAuthError(_reworded(error.message, side), cure) from error
    except TeacherUnreachable as error:
        cure = f"Start the server of the --{side}. What was answered so far is kept; the same command goes on from there."
        raise TeacherUnreachable(_reworded(error.message, side), cure) from error
    except (TeacherError, ConfigError) as error:
        raise type(error)(_reworded(error.message, side), _reworded(error.hint, side)) from error


def _reworded(text: str, side: str) -> str:
    """A sentence about a teacher and its options as one about the --`side` and its own; names and addresses stay.

    >>> _reworded("max_tokens is 0.", "judge"), _reworded("No teacher answers at http://teacher:80.", "baseline")
    ('--judge_max_tokens is 0.', 'No baseline answers at http://teacher:80.')
    """
    text = text.replace("SRT_HF_TEACHER_KEY", f"SRT_HF_{side.upper()}_KEY").replace("teacher_model", f"--{_NAME_OPTIONS[side]}")
    own = "judge_" if side == "judge" else ""
    text = re.sub(r"(?:^|(?<=\())(?:--)?(max_tokens|temperature|top_p)\b", rf"--{own}\1", text)
    text = re.sub(r"^(timeout|outage)\b", r"--\1", text)
    return re.sub(r"(?:(?<=^The )|(?<=^No )|(?<=[Aa] )|(?<= no )|(?<=local: ))teacher(?=['\s.])", side, text)


def ask_all(teacher: Teacher, work: Sequence[Coroutine[Any, Any, Any]], description: str) -> list[Any]:
    """Run the coroutines `work`, all of which ask `teacher`, at once and return their results in order, with a progress bar.

    Blocking: it runs a loop of its own. The first error ends all; the replies under way are waited for and kept.
    """
    return asyncio.run(_gather(teacher, work, description))


async def _gather(teacher: Teacher, work: Sequence[Coroutine[Any, Any, Any]], description: str) -> list[Any]:
    from tqdm import tqdm

    with tqdm(total=len(work), desc=description, disable=None) as bar:

        async def one(coroutine: Coroutine[Any, Any, Any]) -> Any:
            result = await coroutine
            bar.update()
            return result

        tasks = [asyncio.ensure_future(one(coroutine)) for coroutine in work]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for coroutine in work:  # one that was not begun would warn
                coroutine.close()
            await teacher.close()
