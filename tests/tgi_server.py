"""A TGI-like teacher on loopback for the tests: /info, /health and /v1/chat/completions as TGI's openapi.json publishes them,
429 at once when full, 422 for what TGI rejects (top_p = 1 included), and deterministic well-formed reflections.

`LocalTGI` runs in a thread of its own with its own event loop. `requests` holds (path, headers, body) of everything that came.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from collections.abc import Callable
from typing import Any

Answer = tuple[str, str]  # text, finish_reason
Fault = Callable[[int, dict[str, Any]], "tuple[int, bytes] | None"]

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


class LocalTGI:
    """`with LocalTGI() as tgi: Teacher(tgi.url)`. `fault(n, body)` may answer request number n with a status and raw bytes."""

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
        self.statuses: list[int] = []
        self.busy = self.peak = 0
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def chats(self) -> list[dict[str, Any]]:
        return [body for path, _, body in self.requests if path == "/v1/chat/completions"]

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
                status, answer = await self._respond(path, headers, json.loads(body) if body else {})
                self.statuses.append(status)
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n".encode()
                    + answer
                )
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _respond(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, bytes]:
        self.requests.append((path, headers, body))
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "Unauthorized", "auth")
        if path == "/info":
            return 200, json.dumps(self.info).encode()
        if path == "/health":
            return 200, b""
        if path != "/v1/chat/completions":
            return _error(404, "Not Found", "not_found")
        fault = self.fault(len(self.chats), body) if self.fault else None
        return fault or _invalid(body, self.info) or await self._chat(body)

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
        usage = {"prompt_tokens": _tokens(body), "completion_tokens": len(text.split())}
        completion = {
            "id": "",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model", "tgi"),
            "system_fingerprint": "3.3.5",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": finish_reason}
            ],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        }
        return 200, json.dumps(completion).encode()


def _tokens(body: dict[str, Any]) -> int:
    return sum(len(message["content"].split()) for message in body["messages"])


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
