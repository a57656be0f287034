"""One reflection, asked until there is something to use: what a reply that cannot be used is answered with.

    truncated                   a larger token limit, as far as the server's window reaches
    unparsable and the like     the reply and a reminder of the form
    a constrained reply that is no JSON, or a server that cannot constrain      the request in tags
    too_long                    the original answer with its middle left out

Each is another request than the one before, and there is one such try: `retry` names the codes that earn a further draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from srt_hf.errors import RequestFailed
from srt_hf.parsing import Reflection, parse_instruction_reflection, parse_response_reflection
from srt_hf.parsing.structured import parse_structured, schema
from srt_hf.prompts import Prompts
from srt_hf.reflection.window import Window
from srt_hf.rows import Triple
from srt_hf.schema import INSTRUCTION
from srt_hf.teacher import Reply, Teacher
from srt_hf.teacher.protocol import Messages

_TRIES = 2  # requests of one draw whose replies are read


@dataclass
class Asked:
    """What came of one reflection: `replies` are those paid for, `draw` the one that was used, `cut` how many characters of the
    original answer the teacher was not shown."""

    reflection: Reflection
    replies: list[Reply] = field(default_factory=list)
    draw: int = 0
    cut: int = 0


@dataclass
class _Form:
    """One request and how it can be changed."""

    build: Callable[[str, bool], Messages]  # answer shown, structured -> messages
    answer: str
    structured: bool
    max_tokens: int
    messages: Messages
    refused: bool = False  # as a structured one

    def options(self, step: str) -> dict[str, Any]:
        """What is asked of the teacher besides the messages."""
        return {"max_tokens": self.max_tokens, "schema": schema(step) if self.structured else None}

    def rebuild(self) -> None:
        self.messages = self.build(self.answer, self.structured)


class Asker:
    """Asks `teacher` for reflections in the wording of `prompts`.

    structured: constrain replies to a JSON schema where the server can. retry: codes of `schema.ERRORS`; a reflection that ended
    with one is drawn once more, at a temperature where the teacher is greedy. Draws of earlier runs are used in any case.
    """

    def __init__(self, teacher: Callable[[], Teacher], prompts: Prompts, structured: bool, retry: Collection[str]) -> None:
        self._teacher = teacher
        self._prompts = prompts
        self._structured = structured
        self._retry = retry
        self._window = Window()

    async def reflect(self, step: str, id: str, values: Triple, shown_input: str) -> Asked:
        """`step` is the origin of the candidate that is asked for, `values` the pair to reflect on."""
        instruction, _, output = values

        def build(answer: str, structured: bool) -> Messages:
            return self._prompts.reflection(step, instruction, shown_input, answer, structured)

        asked = Asked(Reflection(None, None, None, "not_attempted"))
        fresh = False
        while True:
            await self._draw(step, id, build, output, asked)
            if asked.reflection.error is None:
                return asked
            following = asked.draw + 1
            if not await self._has(step, build, output, following):
                if fresh or asked.reflection.error not in self._retry:
                    return asked
                fresh = True
            asked.draw = following

    async def _draw(self, step: str, id: str, build: Callable[[str, bool], Messages], output: str, asked: Asked) -> None:
        """One draw, into `asked`."""
        teacher = self._teacher()
        form = await self._form(build, output)
        if form is None:
            asked.reflection = Reflection(None, None, None, "too_long")
            return
        read = attempt = 0
        while True:
            asked.cut = max(0, len(output) - len(form.answer))
            try:
                reply = await teacher.chat(
                    form.messages, **form.options(step), id=id, step=step, attempt=attempt, draw=asked.draw
                )
            except RequestFailed as failure:
                if attempt == 0 and self._after_failure(failure, form):
                    attempt += 1
                    continue
                # A second try that fails leaves the reason of a first one that was read.
                if not read:
                    asked.reflection = Reflection(None, None, None, failure.code)
                return
            if form.refused and self._structured:  # the same in tags was taken, so it was the schema
                self._structured = False
                warnings.warn("The teacher cannot constrain replies to a schema: asked in tags instead.", stacklevel=2)
            asked.replies.append(reply)
            read += 1
            attempt += 1
            if reply.reflection is not None:  # recorded as it came out, after all tries
                asked.reflection = reply.reflection
                return
            asked.reflection, in_form = _parse(reply, step, form.structured)
            if read >= _TRIES or not self._after_reply(reply, asked.reflection, in_form, step, form):
                return

    async def _form(self, build: Callable[[str, bool], Messages], output: str) -> _Form | None:
        """The first request, None where no part of the answer fits into the window."""
        teacher = self._teacher()
        max_tokens, structured = teacher.max_tokens, self._structured
        identity = await teacher.who()
        shown = await self._window.fit(identity, lambda answer: build(answer, structured), output, max_tokens)
        return None if shown is None else _Form(build, shown, structured, max_tokens, build(shown, structured))

    async def _has(self, step: str, build: Callable[[str, bool], Messages], output: str, draw: int) -> bool:
        """Whether an earlier run made this draw."""
        form = await self._form(build, output)
        return form is not None and self._teacher().has(form.messages, **form.options(step), draw=draw)

    def _after_failure(self, failure: RequestFailed, form: _Form) -> bool:
        """Change a request that the server refused; False where there is nothing to change."""
        if form.structured and failure.code == "rejected":
            form.structured, form.refused = False, True
        elif failure.code == "too_long":
            identity = self._teacher().identity()
            shown = self._window.guess(identity, lambda text: form.build(text, form.structured), form.answer, form.max_tokens)
            if shown is None:
                return False
            form.answer = shown
        else:
            return False
        form.rebuild()
        return True

    def _after_reply(self, reply: Reply, reflection: Reflection, in_form: bool, step: str, form: _Form) -> bool:
        """Change a request whose reply cannot be used; False where it can be, or where another would say the same."""
        if reflection.error in (None, "refused"):
            return False
        if reflection.error == "truncated":
            larger = self._larger(reply, form.max_tokens)
            changed, form.max_tokens = larger > form.max_tokens, larger
            return changed
        if form.structured and not in_form:
            form.structured = False
            form.rebuild()
        else:
            form.messages = self._prompts.again(form.messages, step, reply.text, form.structured)
        return True

    def _larger(self, reply: Reply, max_tokens: int) -> int:
        """Twice the limit, or what the window leaves beside the prompt."""
        window = self._teacher().identity().max_total_tokens
        if window is None or reply.prompt_tokens is None:
            return 2 * max_tokens
        return min(2 * max_tokens, window - reply.prompt_tokens)


def _parse(reply: Reply, step: str, structured: bool) -> tuple[Reflection, bool]:
    """The reflection that a reply holds, and whether it came as the JSON that was asked for."""
    found = parse_structured(reply.text, step, reply.finish_reason) if structured else None
    if found is not None:
        return found, True
    parse = parse_instruction_reflection if step == INSTRUCTION else parse_response_reflection
    return parse(reply.text, reply.finish_reason), False
