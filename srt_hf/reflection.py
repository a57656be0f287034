"""What `Dataset.map` calls to have a row reflected by the teacher: paper eq. 4-6 (instruction) and eq. 7-9 (response)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from srt_hf.errors import RequestFailed
from srt_hf.parsing import PARSER_VERSION, Reflection, parse_instruction_reflection, parse_response_reflection
from srt_hf.prompts import Prompts
from srt_hf.rows import Triple, row_id, triple
from srt_hf.schema import BOTH, INSTRUCTION, ORIGINAL, RESPONSE, Candidate, batch_columns, row_columns
from srt_hf.teacher import Reply, Teacher

_ATTEMPTS = 2  # the request itself and one more, which differs: a reminder of the form, or a larger token limit


class Reflector:
    """Bound async methods for `Dataset.map`: `reflect` (everything that any student may choose from), or one step at a time.

    A row's failure is the `error` of a candidate and `map` goes on; a failure of the teacher raises `TeacherError`.
    Inside a running event loop (a notebook) use `reflect_batch` with `map(batched=True)`.
    """

    def __init__(self, teacher: Teacher | str, *, prompts: Prompts | str | Path | None = None) -> None:
        self.teacher = Teacher(teacher) if isinstance(teacher, str) else teacher
        self.prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_file(prompts) if prompts else Prompts()

    def __getstate__(self) -> dict[str, Any]:
        # The parser's version is no configuration, but a changed parser must not meet cached results.
        return {"teacher": self.teacher, "prompts": self.prompts, "parser": PARSER_VERSION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.teacher, self.prompts = state["teacher"], state["prompts"]

    async def reflect(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Exhaustive: up to three calls. -> `candidates`: original, instruction, response, both (and `id` if there is none)."""
        id, values = _identify(row)
        instruction, response = await asyncio.gather(self._ask(INSTRUCTION, id, values), self._ask(RESPONSE, id, values))
        if instruction["error"]:
            both = _candidate(BOTH, error="not_attempted")
        else:
            both = await self._ask(BOTH, id, _pair(instruction), original_input=values[1])
        return _columns(row, id, [_original(values), instruction, response, both])

    async def reflect_instruction(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Step 1 of the paper's order: one call. -> `candidates`: original, instruction."""
        id, values = _identify(row)
        return _columns(row, id, [_original(values), await self._ask(INSTRUCTION, id, values)])

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
        return _columns(row, id, candidates)

    def reflect_batch(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """`reflect` for `map(batched=True)`, with an event loop and thread of its own: for notebooks."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        results = _in_own_loop(lambda: self._reflect_all(rows))
        return batch_columns(batch, {name: [result[name] for result in results] for name in (results[0] if results else {})})

    async def _reflect_all(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            return await asyncio.gather(*(self.reflect(row) for row in rows))
        finally:
            await self.teacher.close()

    async def _ask(self, step: str, id: str, values: Triple, original_input: str | None = None) -> Candidate:
        """One reflection, with one more try where the first reply cannot be used. `step` is the candidate's origin."""
        instruction, input, output = values
        if not instruction.strip():
            return _candidate(step, error="empty")
        shown = input if original_input is None else original_input
        messages = self.prompts.reflection(step, instruction, shown, output)
        max_tokens = self.teacher.max_tokens
        spent: list[Reply] = []
        reflection = Reflection(None, None, None, "not_attempted")
        for attempt in range(_ATTEMPTS):
            try:
                reply = await self.teacher.chat(messages, max_tokens=max_tokens, id=id, step=step, attempt=attempt)
            except RequestFailed as failure:
                # A second try that fails leaves the first one's reason standing.
                if attempt == 0:
                    reflection = Reflection(None, None, None, failure.code)
                break
            spent.append(reply)
            if reply.reflection is not None:  # recorded as it came out, after all tries
                reflection = reply.reflection
                break
            parse = parse_instruction_reflection if step == INSTRUCTION else parse_response_reflection
            reflection = parse(reply.text, reply.finish_reason)
            if reflection.error in (None, "refused"):
                break
            if reflection.error == "truncated":
                max_tokens = 2 * self.teacher.max_tokens
            else:
                messages = self.prompts.again(messages, step, reply.text)
        return self._answered(step, values, reflection, spent)

    def _answered(self, step: str, values: Triple, reflection: Reflection, spent: list[Reply]) -> Candidate:
        instruction, input, _ = values
        if step == INSTRUCTION:
            # The new instruction stands alone: what it needs of the input is in it.
            instruction, input = reflection.instruction or "", ""
        pair = {} if reflection.error else {"instruction": instruction, "input": input, "output": reflection.output}
        return _candidate(
            step,
            **pair,
            critique=reflection.critique,
            teacher=(spent[-1].teacher if spent else None) or str(self.teacher.identity()),
            finish_reason=spent[-1].finish_reason if spent else None,
            prompt_tokens=_total(reply.prompt_tokens for reply in spent),
            completion_tokens=_total(reply.completion_tokens for reply in spent),
            error=reflection.error,
        )


class EnvironmentReflector(Reflector):
    """`srt_hf.reflect`: the teacher is whatever the environment names at the moment of use.

    SRT_HF_TEACHER, SRT_HF_TEACHER_MODEL, SRT_HF_TEACHER_KEY and SRT_HF_JOURNAL.
    """

    def __init__(self) -> None:
        self.prompts = Prompts()
        self._teachers: dict[tuple[str | None, ...], Teacher] = {}

    @property
    def teacher(self) -> Teacher:  # type: ignore[override]
        names = ("SRT_HF_TEACHER", "SRT_HF_TEACHER_MODEL", "SRT_HF_TEACHER_KEY", "SRT_HF_JOURNAL")
        target, model, key, journal = settings = tuple(os.environ.get(name) for name in names)
        if settings not in self._teachers:
            self._teachers[settings] = Teacher(target or "", model=model, key=key, journal=journal)
        return self._teachers[settings]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


def _identify(row: Mapping[str, Any]) -> tuple[str, Triple]:
    values = triple(row)
    id = row.get("id")
    return row_id(values) if id is None else str(id), values


def _columns(row: Mapping[str, Any], id: str, candidates: list[Any]) -> dict[str, Any]:
    return row_columns(row, {"candidates": candidates} if "id" in row else {"id": id, "candidates": candidates})


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
        "error": None,
    }
    return {**empty, **known}  # type: ignore[typeddict-item]


def _total(counts: Any) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _in_own_loop(work: Callable[[], Any]) -> Any:
    """Run a coroutine to its end in a thread with a loop of its own, whether or not this thread has a running loop."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()


reflect = EnvironmentReflector().reflect
