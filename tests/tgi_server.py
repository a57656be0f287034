"""A TGI-like teacher on loopback for the tests: /info, /health and /v1/chat/completions as TGI's openapi.json publishes them,
429 at once when full, 422 for what TGI rejects (top_p = 1 included), and deterministic well-formed reflections.

`LocalTGI` runs in a thread of its own with its own event loop. `requests` holds (path, headers, body) of everything that came.

As a process of its own, which scripts/bench_teacher.py starts so that client and server share no interpreter:

    python tests/tgi_server.py '{"slots": 64, "mean": 0.5, "sigma": 0.8, "told": true, "faults": 0.3, "deaths": [1000]}'

It prints its address, tells on /counts what it was asked, and ends where its standard input does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import re
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Answer = tuple[str, str]  # text, finish_reason
# Status and body; RESET or STALL, which are no answers; None where nothing is wrong.
Fault = Callable[[int, dict[str, Any]], "tuple[int, bytes] | str | None"]
RESET, STALL = "reset", "stall"

_SECTION = re.compile(r"### (Instruction|Input|Answer)\n(.*?)(?=\n\n### |\n\nWork in )", re.S)


def reflect(body: dict[str, Any]) -> Answer:
    """A reflection that depends on the request alone: sometimes a better text, sometimes a worse one."""
    shown = dict(_SECTION.findall(body["messages"][-1]["content"]))
    if not shown:  # some other question
        return "Yes.", "stop"
    instruction, output = shown["Instruction"], shown["Answer"]
    given = "" if shown["Input"].startswith(("(none)", "The instruction above")) else " " + shown["Input"]
    draw = hashlib.sha256((instruction + output).encode()).digest()[0] % 3
    answer = (
        f"{output} In short, this is about: {instruction}",
        output[::-1],
        f"To begin with: {instruction}{given} {output}",
    )[draw]
    if "[New Instruction]" in body["messages"][-1]["content"]:
        asked = f"{instruction}{given} Explain your reasoning step by step."
        return f"A short analysis.\n\n[New Instruction]\n{asked}\n[End]\n[New Answer]\n{answer}\n[End]", "stop"
    return f"A short analysis.\n\n[Better Answer]\n{answer}\n[End]", "stop"


class Faults:
    """A `fault` that spoils `share` of all requests, whatever is asked and however often; `drawn` counts what it did."""

    def __init__(self, share: float, seed: int = 0) -> None:
        self.share = share
        self.drawn: Counter[str] = Counter()
        self._random = random.Random(seed)

    def __call__(self, n: int, body: dict[str, Any]) -> tuple[int, bytes] | str | None:
        if self._random.random() >= self.share:
            return None
        whole = completion(body, "[Better Answer]\nThe first half of", "length")[1]
        kind, fault = self._random.choice(
            [
                ("429", _error(429, "Model is overloaded", "overloaded")),
                ("500", _error(500, "Request failed during generation", "generation")),
                ("503", _error(503, "Service Unavailable", "unavailable")),
                ("reset", RESET),
                ("stall", STALL),
                ("half a JSON", (200, whole[: len(whole) // 2])),
                ("HTML", (200, b"<html><body><h1>502 Bad Gateway</h1></body></html>")),
                ("truncated", (200, whole)),
                ("unparsable", completion(body, "An answer that has none of the tags asked for.", "stop")),
            ]
        )
        self.drawn[kind] += 1
        return fault


class LocalTGI:
    """`with LocalTGI() as tgi: Teacher(tgi.url)`. `fault(n, body)` may answer request number n, or keep it from being answered.

    remember: whether `requests` and `chats` are kept; `counts` is right in any case.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], Answer] = reflect,
        *,
        slots: int = 128,
        delay: float | Callable[[dict[str, Any]], float] = 0.0,
        max_total_tokens: int = 100_000,
        model_id: str = "local/teacher",
        sha: str | None = "0123abcd",
        key: str | None = None,
        fault: Fault | None = None,
        remember: bool = True,
    ) -> None:
        self.answer, self.slots, self.delay, self.fault, self.key = answer, slots, delay, fault, key
        self.info = {
            "model_id": model_id,
            "model_sha": sha,
            "max_concurrent_requests": slots,
            "max_total_tokens": max_total_tokens,
            "max_input_tokens": max_total_tokens - 1,
            "max_client_batch_size": 4,
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "validation_workers": 2,
            "router": "text-generation-router",
            "version": "3.3.5",
        }
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.chats: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.busy = self.peak = 0
        self.retry_after: int | None = None  # what a 429 asks for
        self._remember = remember
        self._asked = self._probes = 0  # chat requests: all, and those that only look whether it works
        self._first: set[bytes] = set()  # the distinct others, by hash: first tries of a reflection, and second ones
        self._second: set[bytes] = set()
        self._hung = False
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._hanging: set[asyncio.StreamWriter] = set()  # those of them that wait for an answer which will not come

    def counts(self) -> dict[str, Any]:
        """What it was asked, under the names of `Teacher.counts`, and how it answered: known here by the requests alone."""
        retries = self._asked - self._probes - len(self._first) - len(self._second)
        own = {"requests": self._asked, "retries": retries, "asked_again": len(self._second)}
        drawn = self.fault.drawn if isinstance(self.fault, Faults) else {}
        return {**own, "statuses": Counter(map(str, self.statuses)), "peak": self.peak, "faults": drawn}

    def die_after(self, requests: int, away: float) -> None:
        """Wait for so many chat requests; then stand still for a moment, break all connections, and be back after `away` seconds.

        Whatever a client sends until the connections break is received and counted, so that no count is off by chance.
        """
        while self._asked < requests:
            time.sleep(0.005)
        self._hung = True
        time.sleep(0.2)
        self.__exit__()
        time.sleep(away)
        self._hung = False
        self.again().__enter__()

    def again(self) -> LocalTGI:
        """For another `with`, after the first one: the server back at its address, with its counts."""
        self._loop = asyncio.new_event_loop()
        self.busy = 0
        return self

    def __enter__(self) -> LocalTGI:
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def _run(self, started: threading.Event) -> None:
        self._loop.run_until_complete(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self._port)
        self._port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        started.set()
        await self._stop.wait()
        server.close()
        for writer in self._writers - self._hanging:
            writer.transport.abort()
        if self._hanging:
            await asyncio.sleep(0.05)  # else a request may go to an idle connection in the instant of its end, and not be counted
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                path = line.split()[1].decode().partition("?")[0]
                headers = {}
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                found = await self._respond(path, headers, json.loads(body) if body else {})
                if found == STALL or self._hung:
                    self._hanging.add(writer)
                    await reader.read()  # until the client hangs up
                    return
                if isinstance(found, str):
                    writer.transport.abort()
                    return
                status, answer = found
                self.statuses.append(status)
                more = f"Retry-After: {self.retry_after}\r\n" if status == 429 and self.retry_after else ""
                head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}Content-Length: {len(answer)}\r\n\r\n"
                writer.write(head.encode() + answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            self._hanging.discard(writer)
            writer.close()

    async def _respond(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, bytes] | str:
        if self._remember:
            self.requests.append((path, headers, body))
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "Unauthorized", "auth")
        if path == "/info":
            return 200, json.dumps(self.info).encode()
        if path == "/health":
            return 200, b""
        if path == "/counts":
            return 200, json.dumps(self.counts()).encode()
        if path != "/v1/chat/completions":
            return _error(404, "Not Found", "not_found")
        self._count(body)
        fault = self.fault(self._asked, body) if self.fault else None
        return fault or _invalid(body, self.info) or await self._chat(body)

    def _count(self, body: dict[str, Any]) -> None:
        if self._remember:
            self.chats.append(body)
        self._asked += 1
        if body["messages"][-1]["content"] == "Say yes.":
            self._probes += 1
        else:
            second = len(body["messages"]) > 2 or body.get("max_tokens", 0) > 2048  # reminded of the form, or given more tokens
            kind = self._second if second else self._first
            kind.add(hashlib.sha256(json.dumps(body).encode()).digest()[:8])

    async def _chat(self, body: dict[str, Any]) -> tuple[int, bytes]:
        if self.busy >= self.slots:
            return _error(429, "Model is overloaded", "overloaded")
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            await asyncio.sleep(self.delay(body) if callable(self.delay) else self.delay)
            text, finish_reason = self.answer(body)
        finally:
            self.busy -= 1
        return completion(body, text, finish_reason)


def _tokens(body: dict[str, Any]) -> int:
    return sum(len(message["content"].split()) for message in body["messages"])


def completion(body: dict[str, Any], text: str, finish_reason: str) -> tuple[int, bytes]:
    """TGI's answer to a chat request."""
    usage = {"prompt_tokens": _tokens(body), "completion_tokens": len(text.split())}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": finish_reason}
    answer = {
        "id": "",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", "tgi"),
        "system_fingerprint": "3.3.5",
        "choices": [choice],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }
    return 200, json.dumps(answer).encode()


def _invalid(body: dict[str, Any], info: dict[str, Any]) -> tuple[int, bytes] | None:
    top_p = body.get("top_p")
    if top_p is not None and not 0 < top_p < 1:
        return _error(422, "Input validation error: `top_p` must be > 0.0 and < 1.0", "validation")
    asked = _tokens(body) + body.get("max_tokens", 1024)
    if asked > info["max_total_tokens"]:
        limit = info["max_total_tokens"]
        return _error(422, f"Input validation error: `inputs` tokens + `max_new_tokens` must be <= {limit}", "validation")
    return None


def _error(status: int, message: str, kind: str) -> tuple[int, bytes]:
    return status, json.dumps({"error": message, "error_type": kind}).encode()


def reply_times(mean: float, sigma: float, seed: int = 0) -> Iterator[float]:
    """Log-normal seconds without end. Every 200 of them are the same quantiles, shuffled: a short run has the mean too."""
    normal, draw = statistics.NormalDist(0, sigma), random.Random(seed)
    times = [math.exp(normal.inv_cdf((n + 0.5) / 200)) if sigma else 1.0 for n in range(200)]
    while True:
        draw.shuffle(times)
        yield from (time * mean / statistics.fmean(times) for time in times)


def main(
    slots: int = 128, mean: float = 0.0, sigma: float = 0.8, told: bool = True, faults: float = 0.0, deaths: Sequence[int] = ()
) -> None:
    """The server as a process. told: whether /info says how many requests it takes. deaths: after how many it dies."""
    seconds = reply_times(mean, sigma)
    spoil = Faults(faults) if faults else None
    tgi = LocalTGI(slots=slots, delay=lambda body: next(seconds), fault=spoil, remember=False)
    if not told:
        del tgi.info["max_concurrent_requests"]
    tgi.__enter__()
    print(tgi.url, flush=True)
    for requests in deaths:
        tgi.die_after(requests, away=2.0)
    sys.stdin.read()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
