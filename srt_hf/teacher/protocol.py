"""What a teacher backend is: one request in, one reply out, and three ways to fail.

`RequestFailed` (errors) is final for this request. `Stumble` may be the request's fault or the server's: it is tried again
a few times. `Weather` is never the request's fault: the server is full, restarting or away, and patience is the answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from srt_hf.errors import RequestFailed
from srt_hf.parsing import Reflection

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Request:
    """One chat request. `schema` is a JSON schema that the reply shall have.

    `id`, `step` and `attempt` name it in the journal and for replay; a server never sees them.
    """

    messages: Messages
    max_tokens: int
    temperature: float
    top_p: float | None = None
    seed: int | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None
    id: str = ""
    step: str = ""
    attempt: int = 0


@dataclass(frozen=True)
class Reply:
    """One chat reply. `finish_reason` is "length" where the token limit cut it; token counts are None where unknown.

    A recorded reply may say which `teacher` wrote it. A recorded candidate is a `reflection`, which is all that is left of its
    text; its counts are those of all tries.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    teacher: str | None = None
    reflection: Reflection | None = None


Outcome = Reply | RequestFailed


@dataclass(frozen=True)
class Identity:
    """Who answers, as the server reports it, and what it can take (None where it does not say). named: whether it told its
    model's name; else it is known by its address."""

    model: str
    revision: str | None = None
    max_concurrent_requests: int | None = None
    max_total_tokens: int | None = None
    is_tgi: bool = False
    max_input_tokens: int | None = None
    named: bool = True

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}" if self.revision else self.model


def without_query(target: str) -> str:
    """The target as messages show it: the query of an address may hold a secret."""
    return target.partition("?")[0]


class Backend(ABC):
    """Where replies come from. A backend holds no limits and no retries; `Teacher` does."""

    journaled: bool  # whether its replies cost something and belong into the journal

    @abstractmethod
    def identity(self) -> Identity:
        """Ask who answers. Raises TeacherError when nothing does. Blocking; called before the first request."""

    @abstractmethod
    async def generate(self, request: Request, identity: Identity) -> Reply:
        """Answer one request. Raises RequestFailed, Stumble, Weather, or another TeacherError to stop the run."""

    async def close(self) -> None:
        """Close the running loop's connections, where there are any."""
        return


class Stumble(Exception):
    """This try failed, and another may pass. `code` is the row's error if none does."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message, code)
        self.code = code


class Weather(Exception):
    """The server is full or away. `overloaded` asks for fewer requests at once; `retry_after` is in seconds."""

    def __init__(self, message: str, overloaded: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message, overloaded, retry_after)
        self.overloaded = overloaded
        self.retry_after = retry_after
