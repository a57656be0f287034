"""The teacher: one client for every kind of target, paced, retried and journaled.

A failure of the *request* is `RequestFailed` with its code. A failure of the *teacher* (an outage, a wrong key) is another
`TeacherError` and stops the run; every reply received so far is in the journal.
"""

from __future__ import annotations

import asyncio
import re
import threading
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from srt_hf.errors import ConfigError, RequestFailed
from srt_hf.journal import Journal, default_path, request_key
from srt_hf.teacher.fleet import Fleet, shared_fleet
from srt_hf.teacher.protocol import Backend, Identity, Messages, Outcome, Reply, Request, without_query
from srt_hf.teacher.replay import ReplayBackend, outcome_from_record
from srt_hf.teacher.roster import Roster
from srt_hf.teacher.sending import Sender

__all__ = ["Identity", "Reply", "Request", "Teacher"]

_FURTHER_DRAWS = 0.7  # temperature of a greedy teacher's further draws


class Teacher:
    """An async chat client for one teacher.

    Args:
        target: "http://host:8080" (TGI, vLLM, any OpenAI-compatible server; several of one model with commas between them),
            "@FILE" (such addresses, one a line; the file may change while a run goes on, which neither the journal nor the cache
            of `map` minds), a Hub model id (Inference Providers), "local:MODEL" (transformers in this process),
            "replay:FILE-OR-REPO" (recorded replies; also an output folder), or "tgi+http://host:8080" (a TGI through
            text-generation's client).
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
        _check_values(max_tokens=max_tokens, temperature=temperature, top_p=top_p, timeout=timeout, outage=outage)
        self.target = ", ".join(map(without_query, _servers(target)))
        self.max_tokens = max_tokens
        self._asked_again = self._from_journal = 0
        self._sampling: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "extra_body": extra_body or {},
        }
        access = (model, key, provider, timeout)
        self._fleet = shared_fleet(lambda: _fleet(target, *access), target, *access)
        if journal is None or journal is True or journal == "":
            journal = default_path()
        self.journal = Journal(journal) if journal and self._fleet.backends[0].journaled else None
        self._identity: Identity | None = None
        self._asking = threading.Lock()
        self._sender = Sender(self._fleet, self.target, outage)
        # Requests under way, by loop and key.
        self._pending: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Future[None]]]
        self._pending = weakref.WeakKeyDictionary()

    @property
    def counts(self) -> dict[str, int]:
        """What this process did. requests: everything sent, retries (after an error of the server) and second tries (asked_again)
        among them. prompt_tokens, completion_tokens: of the replies that it got."""
        own = {"asked_again": self._asked_again, "from_journal": self._from_journal}
        return {**self._sender.counts, **own}

    @property
    def load(self) -> tuple[int, int]:
        """Requests in flight, and how many at once the servers take now."""
        return self._fleet.in_flight, self._fleet.limit

    def identity(self) -> Identity:
        """Who answers, asked once. Raises TeacherUnreachable, TeacherAuthError or ConfigError."""
        with self._asking:
            if self._identity is None:
                found = self._fleet.identity()
                if found.max_total_tokens is not None and self.max_tokens >= found.max_total_tokens:
                    raise ConfigError(
                        f"max_tokens is {self.max_tokens:,}, and {self.target} takes {found.max_total_tokens:,} with the prompt.",
                        "Give fewer (--max_tokens), or start the server with a larger window.",
                    )
                self._identity = found
            return self._identity

    async def who(self) -> Identity:
        """`identity` for coroutines: asking for it the first time blocks."""
        return self._identity if self._identity is not None else await asyncio.to_thread(self.identity)

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
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        schema: dict[str, Any] | None = None,
        id: str = "",
        step: str = "",
        attempt: int = 0,
        draw: int = 0,
    ) -> Reply:
        """Send `messages` and return the reply: from the journal if this very request was answered before.

        schema: a JSON schema that the reply shall have; a server that cannot constrain rejects the request or ignores it.
        `id`, `step` and `attempt` only name the request in the journal and for replay; `draw` tells repeated draws apart, and
        those after the first are not greedy. Cancelled, it returns when the replies under way have come and are saved.
        Raises RequestFailed where this request fails for good, another TeacherError where the teacher does.
        """
        request = self._request(messages, max_tokens, schema, draw, id=id, step=step, attempt=attempt)
        identity = await self.who()
        if self.journal is None:
            self._asked_again += attempt > 0
            return _reply(await self._sender.send(request, identity, None))
        key = _key(request, identity, draw)
        # The same request may be under way for another row of the same text: one is enough.
        pending = self._pending.setdefault(asyncio.get_running_loop(), {})
        while key in pending:
            try:
                await asyncio.wait([pending[key]])
            except asyncio.CancelledError:
                await self.last_replies()
                raise
        record = self.journal.get(key)
        if record is not None:
            self._from_journal += 1
            await self.journal.put_also(key, id=id, step=step, attempt=attempt)
            return _reply(outcome_from_record(record))

        async def save(outcome: Outcome) -> None:
            assert self.journal is not None
            await self.journal.put(key, _record(outcome, identity), id=id, step=step, attempt=attempt)

        self._asked_again += attempt > 0
        pending[key] = asyncio.get_running_loop().create_future()
        try:
            return _reply(await self._sender.send(request, identity, save), identity)
        finally:
            pending.pop(key).cancel()

    def has(
        self, messages: Messages, *, max_tokens: int | None = None, schema: dict[str, Any] | None = None, draw: int = 0
    ) -> bool:
        """Whether the journal has the outcome of this very request."""
        request = self._request(messages, max_tokens, schema, draw)
        return self.journal is not None and self.journal.get(_key(request, self.identity(), draw)) is not None

    def _request(
        self, messages: Messages, max_tokens: int | None, schema: dict[str, Any] | None, draw: int, **names: Any
    ) -> Request:
        sampling = dict(self._sampling)
        if draw and not sampling["temperature"]:
            sampling["temperature"] = _FURTHER_DRAWS
        return Request(messages, max_tokens or self.max_tokens, **sampling, schema=schema, **names)

    async def last_replies(self) -> None:
        """Wait for the replies that the running loop has bought: for whatever ends a run there, so that they are saved."""
        await self._sender.last_replies()

    async def close(self) -> None:
        """Close the running loop's connections."""
        for backend in self._fleet.backends:
            await backend.close()


def _key(request: Request, identity: Identity, draw: int) -> str:
    content = {name: value for name, value in vars(request).items() if name not in ("id", "step", "attempt", "schema")}
    if request.schema is not None:  # left out where there is none, so that older journals still answer
        content["schema"] = request.schema
    return request_key({"model": identity.model, "revision": identity.revision, "draw": draw, **content})


def _check_values(*, max_tokens: int, temperature: float, top_p: float | None, timeout: float, outage: float) -> None:
    """Raise ConfigError for a number that no teacher takes."""
    for name, value, fits, allowed in (
        ("max_tokens", max_tokens, max_tokens >= 1, "at least 1"),
        ("temperature", temperature, temperature >= 0, "0 (greedy) or more"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "a number above 0 and at most 1"),
        ("timeout", timeout, timeout > 0, "a number of seconds above 0"),
        ("outage", outage, outage > 0, "a number of seconds above 0"),
    ):
        if not fits:
            raise ConfigError(f"{name} is {value}.", f"Give {allowed}.")


def _fleet(target: str, *access: Any) -> Fleet:
    """The servers of a target. access: what `_backend` needs besides."""
    if not target.startswith("@"):
        return Fleet([_backend(one, *access) for one in _servers(target)])
    roster = Roster(target.removeprefix("@"), lambda one: _backend(one, *access))
    return Fleet(list(roster.read().values()), roster)


def _backend(target: str, model: str | None, key: str | None, provider: str, timeout: float) -> Backend:
    if target.startswith("replay:"):
        return ReplayBackend(target.removeprefix("replay:"))
    if target.startswith("local:"):
        from srt_hf.teacher.local import LocalBackend

        return LocalBackend(target.removeprefix("local:"))
    from srt_hf.teacher.http import HttpBackend

    by_tgi = target.startswith(("tgi+http://", "tgi+https://"))
    address = target.removeprefix("tgi+") if by_tgi else target
    url = address if address.startswith(("http://", "https://")) else None
    if re.match(r"(\w+://)?[^/?]*@", address):
        raise ConfigError("The teacher's address holds a user name or password.", "Give the key apart (SRT_HF_TEACHER_KEY).")
    if url is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", target):
        raise ConfigError(
            f"{without_query(target)!r} is no teacher.",
            "Give http://HOST:PORT, @FILE of such, a Hub model id ORG/NAME, local:MODEL or replay:FILE-OR-REPO.",
        )
    if by_tgi:
        from srt_hf.teacher.tgi import TgiBackend

        return TgiBackend(address, model=model, key=key, timeout=timeout)
    return HttpBackend(url, model=model if url else target, key=key, provider=provider, timeout=timeout)


def _record(outcome: Outcome, identity: Identity) -> dict[str, Any]:
    """The outcome as the journal keeps it. Weather and outages leave none."""
    # With its writer, who is not the one that answers when the journal is replayed.
    if isinstance(outcome, RequestFailed):
        return {"error": outcome.code, "message": outcome.message, "teacher": str(identity)}
    return {**{name: value for name, value in vars(outcome).items() if value is not None}, "teacher": str(identity)}


def _reply(outcome: Outcome, writer: Identity | None = None) -> Reply:
    """The reply, named by who wrote it just now; a final failure is raised."""
    if isinstance(outcome, RequestFailed):
        raise outcome
    return outcome if writer is None else replace(outcome, teacher=str(writer))


def _servers(target: str) -> list[str]:
    """The addresses of a teacher on several servers; else the target alone.

    >>> _servers("http://a:80, http://b:80")
    ['http://a:80', 'http://b:80']
    """
    return [one.strip() for one in re.split(r",\s*(?=(?:tgi\+)?https?://)", target)]
