"""Teachers behind a network: any OpenAI-compatible server (TGI, vLLM, SGLang, llama.cpp, `transformers serve`) through its
Messages API, and Hub model ids through Inference Providers. Both use `huggingface_hub.AsyncInferenceClient`.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import AsyncInferenceClient, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from srt_hf.errors import ConfigError, SrtError, TeacherAuthError, TeacherError, TeacherUnreachable
from srt_hf.identity import brief
from srt_hf.network import DROPPED_QUIETLY, HUB_AWAY, httpx
from srt_hf.teacher.protocol import Backend, Identity, Reply, Request, without_query
from srt_hf.teacher.translation import translate

NO_KEY = "-"  # AsyncInferenceClient sends HF_TOKEN to any server unless the key is a non-empty string
# Requests that one client has in flight: it keeps 20 idle connections, and would close and open the others again and again.
_PER_CLIENT = 20
_PROBE_TIMEOUT = 10.0
_PROBE_PAUSES = (0.0, 0.5, 2.0)  # seconds before each try to find out who answers


def is_hugging_face(url: str) -> bool:
    """Whether `url` is an https address of Hugging Face's, the only kind that HF_TOKEN is sent to.

    >>> is_hugging_face("https://router.huggingface.co/v1"), is_hugging_face("https://huggingface.co.evil.example")
    (True, False)
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    return parts.scheme == "https" and (
        host == "huggingface.co" or host.endswith((".huggingface.co", ".hf.co", ".huggingface.cloud"))
    )


class _Clients:
    """HTTP clients of one event loop, as many as the requests in flight need at `_PER_CLIENT` each.

    A client belongs to the loop that first used it, and every `Dataset.map` makes a new loop.
    """

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[tuple[AsyncInferenceClient, list[int]]]]
        self._loops = weakref.WeakKeyDictionary()

    def take(self) -> tuple[AsyncInferenceClient, list[int]]:
        """A client with room, and its one-item count of requests in flight, for the caller to raise and lower."""
        loop = asyncio.get_running_loop()
        if loop not in self._loops and DROPPED_QUIETLY:
            # Clients refer to their loop, so that a weak key alone would keep their connections for ever.
            for ended in [old for old, known in self._loops.items() if not old.is_running() and not any(n for _, [n] in known)]:
                del self._loops[ended]
        clients = self._loops.setdefault(loop, [])
        for client, in_flight in clients:
            if in_flight[0] < _PER_CLIENT:
                return client, in_flight
        clients.append((AsyncInferenceClient(**self._arguments), [0]))
        return clients[-1]

    async def close(self) -> None:
        """Close the running loop's clients."""
        for client, _ in self._loops.pop(asyncio.get_running_loop(), []):
            await client.close()


class HttpBackend(Backend):
    """A server at `url` (`http://host:8080`, with or without `/v1`), or `model` through Inference Providers where url is None.

    `key` None means: HF_TOKEN for Hugging Face's own hosts, "-" for any other.
    """

    journaled = True

    def __init__(self, url: str | None, *, model: str | None, key: str | None, provider: str, timeout: float) -> None:
        if url:
            _check_address(url)
        self.url = url.rstrip("/") if url else None
        self.model = model
        self.shown = without_query(self.url) if self.url else str(model)
        own = url is None or is_hugging_face(url)
        self.key = (key or (get_token() if own else None) or NO_KEY).strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError("The teacher's key holds characters that no header takes.", "Check SRT_HF_TEACHER_KEY.")
        if self.url:
            self._clients = _Clients(base_url=self.url, api_key=self.key, timeout=timeout)
        else:
            self._clients = _Clients(model=model, provider=provider, api_key=self.key, timeout=timeout)

    def identity(self) -> Identity:
        if self.url is None:
            return self._find_on_the_hub()
        for pause in _PROBE_PAUSES:
            time.sleep(pause)
            try:
                return self._ask_who()
            except httpx.TransportError as error:
                last = error
            except SrtError:
                raise
            except Exception as error:  # what a proxy setting or an odd answer makes the HTTP library raise
                raise TeacherError(f"{self.shown} cannot be asked ({type(error).__name__}: {brief(error)}).") from error
        raise TeacherUnreachable(f"No teacher answers at {self.shown} ({type(last).__name__}: {last}).") from last

    def _find_on_the_hub(self) -> Identity:
        """Inference Providers do not report what they serve; whether the Hub knows the model is asked before any request."""
        assert self.model is not None
        try:
            HfApi().model_info(self.model, timeout=_PROBE_TIMEOUT)
        except HUB_AWAY as error:
            raise TeacherUnreachable(f"The Hub cannot be asked for {self.model} ({type(error).__name__}).") from error
        except (HfHubHTTPError, OfflineModeIsEnabled) as error:
            raise translate(error, self.shown) from error
        return Identity(self.model)

    def _ask_who(self) -> Identity:
        """TGI tells on /info, the others on /v1/models; a server that tells neither is known by its address."""
        assert self.url is not None
        info = self._get("/info")
        if isinstance(info, dict) and isinstance(info.get("model_id"), str):
            return Identity(
                info["model_id"],
                info.get("model_sha"),
                _whole(info.get("max_concurrent_requests")),
                _whole(info.get("max_total_tokens")),
                is_tgi=True,
                max_input_tokens=_whole(info.get("max_input_tokens")),
            )
        models = self._get("/v1/models")
        listed = models.get("data") if isinstance(models, dict) else None
        found = [entry for entry in listed or [] if isinstance(entry, dict)]
        # vLLM tells its window here.
        windows = {str(entry.get("id")): _whole(entry.get("max_model_len")) for entry in found}
        if self.model:
            return Identity(self.model, max_total_tokens=windows.get(self.model))
        names = list(windows)
        if len(names) > 1:
            raise TeacherError(
                f"The server at {self.shown} serves {len(names)} models.",
                f"Name one with teacher_model: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}.",
            )
        return Identity(names[0], max_total_tokens=windows[names[0]]) if names else Identity(self.shown, named=False)

    def _address(self, path: str) -> str:
        """Where the server has `path`, which is beside its Messages API."""
        address = urlsplit(self.url or "")
        root = address.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
        return address._replace(path=root + path).geturl()

    @property
    def _headers(self) -> dict[str, str]:
        return {} if self.key == NO_KEY else {"Authorization": f"Bearer {self.key}"}

    def _get(self, path: str) -> Any:
        response = httpx.get(self._address(path), headers=self._headers, timeout=_PROBE_TIMEOUT)
        if response.status_code in (401, 403):
            raise TeacherAuthError(f"The teacher at {self.shown} answered {response.status_code} to this key.")
        # A proxy while the server behind it is away, or a server that is full. (`transformers serve` has a 500 for /v1/models.)
        if response.status_code in (429, 502, 503, 504) or (response.status_code == 500 and path == "/info"):
            raise httpx.ConnectError(f"answered {response.status_code}")
        try:
            return response.json() if response.status_code == 200 else None
        except ValueError:
            return None

    async def generate(self, request: Request, identity: Identity) -> Reply:
        try:
            return _reply(await self._complete(request, identity))
        except Exception as error:  # the border: whatever the client raises is sorted here and nowhere else
            raise self._translate(error) from error

    async def _complete(self, request: Request, identity: Identity) -> Any:
        """The client's own object for the server's answer."""
        client, in_flight = self._clients.take()
        in_flight[0] += 1
        try:
            return await client.chat_completion(
                request.messages,
                # A server needs its own name for the model; where it told none, the client's default goes out.
                model=self.model or (identity.model if identity.model != self.shown else None),
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                extra_body={**_constraint(request.schema, self.url is not None, identity.is_tgi), **request.extra_body} or None,
            )
        finally:
            in_flight[0] -= 1

    def _translate(self, error: Exception) -> Exception:
        return translate(error, self.shown)

    async def close(self) -> None:
        await self._clients.close()


def _whole(value: Any) -> int | None:
    """A number that a server tells of itself, None where it is none."""
    return value if isinstance(value, int) and value > 0 else None


def _constraint(schema: dict[str, Any] | None, by_url: bool, tgi: bool) -> dict[str, Any]:
    """The field that constrains a reply to a schema, as this kind of server knows it.

    The client turns OpenAI's own form into TGI's for every URL. So servers other than TGI are asked for a JSON object, which all
    of them know, with the schema beside it for those that heed it; its fields are named in the prompt too.
    """
    if schema is None:
        return {}
    if not by_url:
        form = {"type": "json_schema", "json_schema": {"name": "reflection", "schema": schema, "strict": True}}
    else:
        form = {"type": "json", "value": schema} if tgi else {"type": "json_object", "schema": schema}
    return {"response_format": form}


def _check_address(url: str) -> None:
    """Raise ConfigError for an address without a host, or one that the client would not take."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # raises for "a..b", as a port that is none does
        complete = bool(host) and parts.port != 0
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        complete = False
    if not complete:
        raise ConfigError(f"{without_query(url)!r} is no address.", "Write it as http://HOST:PORT.")


def _reply(output: Any) -> Reply:
    """Our reply from a client's object for a completion. Raises ValueError when the answer held something else."""
    choices = getattr(output, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise ValueError("the answer holds no choices")
    content = choices[0].message.content
    if content is not None and not isinstance(content, str):
        raise ValueError("the answer's content is not text")
    usage = getattr(output, "usage", None)
    return Reply(
        text=content or "",
        finish_reason=choices[0].finish_reason,
        prompt_tokens=getattr(usage, "prompt_tokens", None),
        completion_tokens=getattr(usage, "completion_tokens", None),
    )
