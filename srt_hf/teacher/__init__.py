"""The teacher: one client for every kind of target, paced, retried and journaled.

A failure of the *request* is `RequestFailed` with its code. A failure of the *teacher* (an outage, a wrong key) is another
`TeacherError` and stops the run; every reply received so far is in the journal.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
import warnings
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any

from srt_hf.errors import ConfigError, RequestFailed, TeacherError, TeacherUnreachable
from srt_hf.journal import Journal, default_path, request_key
from srt_hf.teacher.pacing import AdaptiveLimit, backoff
from srt_hf.teacher.protocol import Backend, Identity, Messages, Reply, Request, Stumble, Weather, without_query
from srt_hf.teacher.replay import ReplayBackend, outcome_from_record

__all__ = ["Identity", "Reply", "Request", "Teacher"]

_STUMBLES = 3  # tries of one request that the server itself fails before the row gets a code


class Teacher:
    """An async chat client for one teacher.

    Args:
        target: "http://host:8080" (TGI, vLLM, any OpenAI-compatible server), a Hub model id (Inference Providers),
            "local:MODEL" (transformers in this process) or "replay:FILE-OR-REPO" (recorded replies; also an output folder).
        model: the model's name for a server that serves several.
        key: the server's own key. HF_TOKEN is used for Hugging Face's hosts only.
        provider: which Inference Provider, for Hub model ids.
        max_tokens: new tokens a reply may have (paper: 2,048).
        temperature, top_p, seed: sampling; the defaults are the paper's greedy decoding, with nothing sent that TGI rejects.
        extra_body: further fields of the request, passed to the server as they are.
        timeout: seconds that one request may take.
        outage: seconds without any reply after which the run stops with TeacherUnreachable.
        journal: file of all replies; None or "" for `srt_hf/journal.sqlite` under HF_HOME, False for none.
    """

    def __init__(
        self,
        target: str,
        *,
        model: str | None = None,
        key: str | None = None,
        provider: str = "auto",
        max_tokens: int = 2048,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int | None = None,
        extra_body: dict[str, Any] | None = None,
        timeout: float = 600.0,
        outage: float = 900.0,
        journal: str | Path | bool | None = None,
    ) -> None:
        self._config = {name: value for name, value in locals().items() if name != "self"}
        if not target:
            raise ConfigError(
                "No teacher is named.",
                "Give a server's URL, a Hub model id, local:MODEL or replay:FILE as teacher (SRT_HF_TEACHER for srt_hf.reflect).",
            )
        _check_values(max_tokens=max_tokens, temperature=temperature, top_p=top_p, timeout=timeout)
        self.target = without_query(target)
        self.max_tokens = max_tokens
        # requests: everything sent, retries (after an error of the server) and second tries (asked_again) among them.
        self.counts = dict.fromkeys(("requests", "asked_again", "retries", "from_journal"), 0)
        self._sampling: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "extra_body": extra_body or {},
        }
        self._outage = outage
        self._backend = _backend(target, model=model, key=key, provider=provider, timeout=timeout)
        if journal is None or journal is True or journal == "":
            journal = default_path()
        self.journal = Journal(journal) if journal and self._backend.journaled else None
        self._identity: Identity | None = None
        self._limit: AdaptiveLimit | None = None
        self._asking = threading.Lock()
        self._last_reply = 0.0
        self._warned_rejection = False
        self._in_flight: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Future[Reply]]]
        self._in_flight = weakref.WeakKeyDictionary()

    def identity(self) -> Identity:
        """Who answers, asked once. Raises TeacherUnreachable, TeacherAuthError or ConfigError."""
        with self._asking:
            if self._identity is None:
                self._identity = self._backend.identity()
                self._limit = self._limit or AdaptiveLimit(self._identity.max_concurrent_requests)
            return self._identity

    def __getstate__(self) -> dict[str, Any]:
        """Configuration and who answers now: no client, no lock, so that map fingerprints are stable and never stale.

        A fresh look each time, and from then on the one that requests go by: the server may serve another model by now, the
        replay file may have changed.
        """
        with self._asking:
            self._identity = None
        return {"config": self._config, "identity": asdict(self.identity())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["config"])  # type: ignore[misc]

    async def chat(
        self, messages: Messages, *, max_tokens: int | None = None, id: str = "", step: str = "", attempt: int = 0, draw: int = 0
    ) -> Reply:
        """Send `messages` and return the reply: from the journal if this very request was answered before.

        `id`, `step` and `attempt` only name the request in the journal and for replay; `draw` tells repeated draws apart.
        Raises RequestFailed where this request fails for good, another TeacherError where the teacher does.
        """
        request = Request(messages, max_tokens or self.max_tokens, **self._sampling, id=id, step=step, attempt=attempt)
        self.counts["asked_again"] += attempt > 0
        identity: Identity = self._identity if self._identity is not None else await asyncio.to_thread(self.identity)
        key = _key(request, identity, draw)
        pending = self._in_flight.setdefault(asyncio.get_running_loop(), {})
        if self.journal is None:
            return await self._send(request, identity)
        # The same request may be under way for another row of the same text: one is enough.
        while key in pending:
            await asyncio.wait([pending[key]])
        record = self.journal.get(key)
        if record is not None:
            self.counts["from_journal"] += 1
            return _unpack(record)
        pending[key] = asyncio.get_running_loop().create_future()
        try:
            record = await self._buy(request, identity)
            await self.journal.put(key, record, id=id, step=step, attempt=attempt)
        finally:
            pending.pop(key).cancel()
        return _unpack(record)

    async def close(self) -> None:
        """Close the running loop's connections."""
        close = getattr(self._backend, "close", None)
        if close is not None:
            await close()

    async def _buy(self, request: Request, identity: Identity) -> dict[str, Any]:
        """The reply, or the final failure, as a journal record. Weather and outages leave none."""
        try:
            reply = asdict(await self._send(request, identity))
            # With its writer, who is not the one that answers when the journal is replayed.
            return {**{name: value for name, value in reply.items() if value is not None}, "teacher": str(identity)}
        except RequestFailed as failure:
            return {"error": failure.code, "message": failure.message}

    async def _send(self, request: Request, identity: Identity) -> Reply:
        """One request through all weather, until a reply, its final failure or an outage."""
        assert self._limit is not None
        began = time.monotonic()
        stumbles = tries = 0
        while True:
            async with self._limit.slot():
                sent_at = time.monotonic()
                try:
                    return await self._try(request, identity)
                except (Weather, Stumble) as error:
                    problem = error
            if isinstance(problem, Stumble):
                stumbles += 1
                if stumbles >= _STUMBLES and await self._works(sent_at, identity):
                    raise RequestFailed(f"{problem.args[0]}, {stumbles} times", problem.code) from problem
            elif problem.overloaded:
                self._limit.overloaded(sent_at)
            if time.monotonic() - max(began, self._last_reply) > self._outage:
                raise TeacherUnreachable(
                    f"No reply from {self.target} for {self._outage:.0f} s ({problem.args[0]})."
                ) from problem
            self.counts["retries"] += 1
            tries += 1
            await asyncio.sleep(backoff(tries, getattr(problem, "retry_after", None)))

    async def _try(self, request: Request, identity: Identity) -> Reply:
        assert self._limit is not None
        self.counts["requests"] += 1
        try:
            reply = await self._backend.generate(request, identity)
        except RequestFailed as failure:
            self._warn_of_rejection(failure)
            raise
        self._limit.succeeded()
        self._last_reply = time.monotonic()
        return reply

    def _warn_of_rejection(self, failure: RequestFailed) -> None:
        """Show the server's words once: a wrong parameter is rejected in every row."""
        if failure.code == "rejected" and not self._warned_rejection:
            self._warned_rejection = True
            warnings.warn(f"{failure} Further rejections are counted, not shown.", stacklevel=2)

    async def _works(self, since: float, identity: Identity) -> bool:
        """Whether the teacher answers others, so that what keeps failing is this one request and not an outage.

        Where no reply came to anybody in the meantime, one word is asked for.
        """
        if self._last_reply > since:
            return True
        try:
            await self._backend.generate(Request([{"role": "user", "content": "Say yes."}], 1, 0.0), identity)
        except (Weather, Stumble, TeacherError):
            return False
        return True


def _key(request: Request, identity: Identity, draw: int) -> str:
    content = {name: value for name, value in asdict(request).items() if name not in ("id", "step", "attempt")}
    return request_key({"model": identity.model, "revision": identity.revision, "draw": draw, **content})


def _check_values(*, max_tokens: int, temperature: float, top_p: float | None, timeout: float) -> None:
    """Raise ConfigError for a number that no teacher takes."""
    for name, value, fits, allowed in (
        ("max_tokens", max_tokens, max_tokens >= 1, "at least 1"),
        ("temperature", temperature, temperature >= 0, "0 (greedy) or more"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "a number above 0 and at most 1"),
        ("timeout", timeout, timeout > 0, "a number of seconds above 0"),
    ):
        if not fits:
            raise ConfigError(f"{name} is {value}.", f"Give {allowed}.")


def _backend(target: str, *, model: str | None, key: str | None, provider: str, timeout: float) -> Backend:
    if target.startswith("replay:"):
        return ReplayBackend(target.removeprefix("replay:"))
    if target.startswith("local:"):
        from srt_hf.teacher.local import LocalBackend

        return LocalBackend(target.removeprefix("local:"))
    from srt_hf.teacher.http import HttpBackend

    url = target if target.startswith(("http://", "https://")) else None
    if re.match(r"(\w+://)?[^/?]*@", target):
        raise ConfigError("The teacher's address holds a user name or password.", "Give the key apart (SRT_HF_TEACHER_KEY).")
    if url is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", target):
        raise ConfigError(
            f"{without_query(target)!r} is no teacher.",
            "Give http://HOST:PORT, a Hub model id ORG/NAME, local:MODEL or replay:FILE-OR-REPO.",
        )
    return HttpBackend(url, model=model if url else target, key=key, provider=provider, timeout=timeout)


def _unpack(record: dict[str, Any]) -> Reply:
    outcome = outcome_from_record(record)
    if isinstance(outcome, RequestFailed):
        raise outcome
    return outcome
