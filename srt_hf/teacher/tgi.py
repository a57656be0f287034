"""`tgi+http://` teachers: TGI through `text-generation`'s own AsyncClient, for those whose stack is built on it.

All but the request itself is HttpBackend's: who answers, where the key goes, what an error means. The client opens a connection
for each request, and its `chat` has no place for a schema, further fields or a model's name; `http://` has.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from srt_hf.errors import ConfigError, TeacherError
from srt_hf.teacher.http import HttpBackend
from srt_hf.teacher.protocol import Identity, Reply, Request, Stumble
from srt_hf.teacher.translation import translate_status

# Its exceptions hold the server's words and no status; these are the ones they are made from.
_STATUSES = {
    "BadRequestError": 400,
    "GenerationError": 424,
    "IncompleteGenerationError": 500,
    "NotFoundError": 404,
    "OverloadedError": 429,
    "RateLimitExceededError": 429,
    "ShardNotReadyError": 424,
    "ShardTimeoutError": 504,
    "ValidationError": 422,
}


class TgiBackend(HttpBackend):
    """A TGI at `url` (`http://host:8080`). Raises ConfigError for what the client cannot do, and where it is not installed."""

    def __init__(self, url: str, *, model: str | None, key: str | None, timeout: float) -> None:
        super().__init__(url, model=None, key=key, provider="auto", timeout=timeout)
        try:
            from text_generation import AsyncClient, errors
        except ImportError as error:
            raise ConfigError(
                "A tgi+http teacher needs the package text-generation.",
                "pip install srt_hf[tgi], in an environment of its own: it needs huggingface-hub < 1. Or give http://HOST:PORT.",
            ) from error
        if model:
            raise _cannot("a model's name")
        if urlsplit(url).query:
            raise _cannot("a query in the address")
        self._errors = errors
        # Its default is 10 s.
        self._client = AsyncClient(self._address("").rstrip("/"), headers=self._headers, timeout=timeout)

    def _ask_who(self) -> Identity:
        identity = super()._ask_who()
        if not identity.is_tgi:
            raise TeacherError(f"The server at {self.shown} is no TGI.", "Give its address without tgi+.")
        return identity

    async def generate(self, request: Request, identity: Identity) -> Reply:
        if request.extra_body:
            raise _cannot("extra_body")
        if request.schema is not None:
            # No RequestFailed, from which a run in tags would go on: the journal keeps those as what the *server* answered.
            raise _cannot("a schema (structured)")
        return await super().generate(request, identity)

    async def _complete(self, request: Request, identity: Identity) -> Any:
        answer = await self._client.chat(
            request.messages,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
        )
        answer.usage = SimpleNamespace(**answer.usage)  # the one part that it leaves as JSON
        return answer

    def _translate(self, error: Exception) -> Exception:
        kind = type(error).__name__
        if not isinstance(error, getattr(self._errors, kind, ())):
            return super()._translate(error)
        if kind in _STATUSES:
            return translate_status(_STATUSES[kind], str(error), {}, self.shown)
        return Stumble(f"{self.shown} answered: {' '.join(str(error).split())[:300]}", "server_error")


def _cannot(what: str) -> ConfigError:
    return ConfigError(f"text-generation's client does not take {what}.", "Leave it out, or give the address without tgi+.")
