"""What `Dataset.map` calls to have a row reflected by the teacher: paper eq. 4-6 (instruction) and eq. 7-9 (response)."""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from srt_hf.errors import ConfigError
from srt_hf.parsing import PARSER_VERSION
from srt_hf.prompts import Prompts
from srt_hf.reflection.asking import Asked, Asker
from srt_hf.rows import Triple, row_id, triple
from srt_hf.schema import BOTH, INSTRUCTION, ORIGINAL, RESPONSE, RETRIED, Candidate, batch_columns, row_columns
from srt_hf.teacher import Teacher

_Step = TypeVar("_Step", bound=Callable[..., Any])


def _to_the_last_reply(step: _Step) -> _Step:
    """`step`, whose failure waits for the replies under way: with a row that fails `Dataset.map` leaves its loop for good."""

    @functools.wraps(step)
    async def waiting(self: Reflector, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await step(self, row)
        except (Exception, asyncio.CancelledError):
            await self.teacher.last_replies()
            raise

    return waiting  # type: ignore[return-value]


class Reflector:
    """Bound async methods for `Dataset.map`: `reflect` (everything that any student may choose from), or one step at a time.

    teacher: a `Teacher` or its target. prompts: your own wording, as a file or `Prompts`.
    structured: ask for replies that the server constrains to a JSON schema; in tags where it cannot.
    retry: codes (`schema.ERRORS`) of an earlier run's failures to ask about once more. A greedy teacher is then asked at a
        temperature, since it would say the same; replies that were good stay as they are.

    `rows_done` and `outcomes` (error code, None for a usable reflection -> how often) count what this instance did.
    A row's failure is the `error` of a candidate and `map` goes on; a failure of the teacher raises `TeacherError`.
    Inside a running event loop (a notebook) use `reflect_batch` with `map(batched=True)`.
    """

    def __init__(
        self,
        teacher: Teacher | str,
        *,
        prompts: Prompts | str | Path | None = None,
        structured: bool = False,
        retry: Collection[str] = (),
    ) -> None:
        check_retry(retry)
        self.teacher = Teacher(teacher) if isinstance(teacher, str) else teacher
        self.prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_file(prompts) if prompts else Prompts()
        self.structured = structured
        self.retry = sorted(set(retry))
        self._run = uuid.uuid4().hex if self.retry else ""
        self._asker = Asker(lambda: self.teacher, self.prompts, structured, self.retry)
        self._count()

    def _count(self) -> None:
        self.rows_done = 0
        self.outcomes: Counter[str | None] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        options = {"prompts": self.prompts, "structured": self.structured, "retry": self.retry}
        # The parser's version is no configuration, but a changed parser must not meet cached results; nor must a run that asks
        # again, which the journal makes cheap.
        return {"teacher": self.teacher, "options": options, "parser": PARSER_VERSION, "run": self._run}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["teacher"], **state["options"])  # type: ignore[misc]
        self._run = state["run"]

    @_to_the_last_reply
    async def reflect(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Exhaustive: up to three calls. -> `candidates`: original, instruction, response, both (and `id` if there is none)."""
        id, values = _identify(row)
        instruction, response = await asyncio.gather(self._ask(INSTRUCTION, id, values), self._ask(RESPONSE, id, values))
        if instruction["error"]:
            both = _candidate(BOTH, error="not_attempted")
        else:
            both = await self._ask(BOTH, id, _pair(instruction), original_input=values[1])
        return self._columns(row, id, [_original(values), instruction, response, both])

    @_to_the_last_reply
    async def reflect_instruction(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Step 1 of the paper's order: one call. -> `candidates`: original, instruction."""
        id, values = _identify(row)
        return self._columns(row, id, [_original(values), await self._ask(INSTRUCTION, id, values)])

    @_to_the_last_reply
    async def reflect_response(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Step 2 of the paper's order, on the candidate that `choice` names (default: the original): one call.

        -> `candidates` with one more: response, or both where the chosen instruction is the teacher's.
        """
        id, values = _identify(row)
        candidates = list(row.get("candidates") or [_original(values)])
        chosen = candidates[row.get("choice") or 0]
        if chosen["origin"] == ORIGINAL:
            candidates.append(await self._ask(RESPONSE, id, values))
        else:
            candidates.append(await self._ask(BOTH, id, _pair(chosen), original_input=values[1]))
        return self._columns(row, id, candidates)

    def reflect_batch(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """`reflect` for `map(batched=True)`, with an event loop and thread of its own: for notebooks."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        results = _in_own_loop(lambda: self._reflect_all(rows))
        return batch_columns(batch, {name: [result[name] for result in results] for name in (results[0] if results else {})})

    async def _reflect_all(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            return await asyncio.gather(*(self.reflect(row) for row in rows))
        finally:
            await self.teacher.last_replies()
            await self.teacher.close()

    async def _ask(self, step: str, id: str, values: Triple, original_input: str | None = None) -> Candidate:
        """One reflection as a candidate. `step` is its origin."""
        instruction, input, _ = values
        if not instruction.strip():
            return _candidate(step, error="empty")
        return self._answered(
            step, values, await self._asker.reflect(step, id, values, input if original_input is None else original_input)
        )

    def _columns(self, row: Mapping[str, Any], id: str, candidates: list[Any]) -> dict[str, Any]:
        self.rows_done += 1
        return row_columns(row, {"candidates": candidates} if "id" in row else {"id": id, "candidates": candidates})

    def _answered(self, step: str, values: Triple, asked: Asked) -> Candidate:
        reflection, replies = asked.reflection, asked.replies
        self.outcomes[reflection.error] += 1
        instruction, input, _ = values
        if step == INSTRUCTION:
            # The new instruction stands alone: what it needs of the input is in it.
            instruction, input = reflection.instruction or "", ""
        pair = {} if reflection.error else {"instruction": instruction, "input": input, "output": reflection.output}
        return _candidate(
            step,
            **pair,
            critique=reflection.critique,
            teacher=(replies[-1].teacher if replies else None) or str(self.teacher.identity()),
            sample=asked.draw,
            finish_reason=replies[-1].finish_reason if replies else None,
            prompt_tokens=_total(reply.prompt_tokens for reply in replies),
            completion_tokens=_total(reply.completion_tokens for reply in replies),
            answer_cut=asked.cut,
            error=reflection.error,
        )


def check_retry(codes: Collection[str]) -> None:
    """Raises ConfigError for a code that is no failure which asking again may mend."""
    unknown = sorted(set(codes) - set(RETRIED))
    if unknown:
        raise ConfigError(f"There is no error code {', '.join(unknown)} to ask again for.", f"Choose from {', '.join(RETRIED)}.")


class EnvironmentReflector(Reflector):
    """`srt_hf.reflect`: the teacher is whatever the environment names at the moment of use.

    SRT_HF_TEACHER, SRT_HF_TEACHER_MODEL, SRT_HF_TEACHER_KEY and SRT_HF_JOURNAL.
    """

    def __init__(self) -> None:
        self.prompts = Prompts()
        self._asker = Asker(lambda: self.teacher, self.prompts, structured=False, retry=())
        self._count()
        self._teachers: dict[tuple[str | None, ...], Teacher] = {}

    @property
    def teacher(self) -> Teacher:  # type: ignore[override]
        names = ("SRT_HF_TEACHER", "SRT_HF_TEACHER_MODEL", "SRT_HF_TEACHER_KEY", "SRT_HF_JOURNAL")
        target, model, key, journal = settings = tuple(os.environ.get(name) for name in names)
        if settings not in self._teachers:
            self._teachers[settings] = Teacher(target or "", model=model, key=key, journal=journal)
        return self._teachers[settings]

    def __getstate__(self) -> dict[str, Any]:
        return {"teacher": self.teacher, "prompts": self.prompts, "parser": PARSER_VERSION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


def _identify(row: Mapping[str, Any]) -> tuple[str, Triple]:
    values = triple(row)
    id = row.get("id")
    return row_id(values) if id is None else str(id), values


def _original(values: Triple) -> Candidate:
    instruction, input, output = values
    return _candidate(ORIGINAL, instruction=instruction, input=input, output=output)


def _pair(candidate: Mapping[str, Any]) -> Triple:
    return candidate["instruction"] or "", candidate["input"] or "", candidate["output"] or ""


def _candidate(origin: str, **known: Any) -> Candidate:
    """A candidate with everything unknown None, except what is given."""
    empty: Candidate = {
        "origin": origin,
        "instruction": None,
        "input": None,
        "output": None,
        "critique": None,
        "teacher": None,
        "sample": 0,
        "finish_reason": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "answer_cut": None,
        "error": None,
    }
    return {**empty, **known}  # type: ignore[typeddict-item]


def _total(counts: Any) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _in_own_loop(work: Callable[[], Any]) -> Any:
    """Run a coroutine to its end in a thread with a loop of its own, whether or not this thread has a running loop. An interrupt
    cancels it."""
    from concurrent.futures import ThreadPoolExecutor

    running: list[tuple[asyncio.AbstractEventLoop, Any]] = []

    async def cancellable() -> Any:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await work()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: asyncio.run(cancellable()))
        try:
            return future.result()
        except KeyboardInterrupt:
            for loop, task in running:
                loop.call_soon_threadsafe(task.cancel)
            raise  # after the pool's thread has ended


reflect = EnvironmentReflector().reflect
