"""The one border where foreign errors become ours: what a client raises is the request's fault, the server's, or the weather."""

from __future__ import annotations

import asyncio
import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

from srt_hf.errors import RequestFailed, TeacherAuthError, TeacherError
from srt_hf.network import BROKEN, CONNECT_TIMEOUT, NOT_CONNECTED, REFUSED
from srt_hf.teacher.protocol import Stumble, Weather

_TOO_LONG = re.compile(
    r"max_(new|total|input)_tokens|context (length|window|size)|too (long|many tokens)|"
    r"(maximum|less than|longer than).{0,40}tokens",
    re.I,
)


def translate(error: Exception, where: str) -> Exception:
    """A foreign error as one of ours: RequestFailed, Stumble, Weather, or a TeacherError that stops the run."""
    answer = _answer(error)
    if answer is not None:
        return translate_status(*answer, where)
    if isinstance(error, CONNECT_TIMEOUT) or isinstance(error.__cause__, CONNECT_TIMEOUT):
        return Weather(f"no connection to {where} in time")
    if isinstance(error, (InferenceTimeoutError, asyncio.TimeoutError)):
        return Stumble(f"no answer from {where} in time", "timeout")
    if isinstance(error, NOT_CONNECTED):
        return Weather(f"no connection to {where}: {error}")
    if isinstance(error, (ValueError, KeyError, TypeError, AttributeError, *REFUSED)) and not _is_provider_complaint(error):
        return Stumble(f"{where} sent an answer that is no chat completion: {type(error).__name__}", "server_error")
    if isinstance(error, BROKEN):
        return Stumble(f"the connection to {where} broke: {type(error).__name__}", "server_error")
    if isinstance(error, OfflineModeIsEnabled):
        return TeacherError(
            f"HF_HUB_OFFLINE is set, which keeps huggingface_hub's client from {where} too.", "Unset it for this run."
        )
    return TeacherError(f"The teacher {where} cannot be used: {error}.", "Check the model id, the provider and the login.")


def _is_provider_complaint(error: Exception) -> bool:
    """Inference Providers' client raises bare ValueErrors for an unsupported model or a missing login, before any request."""
    return (
        isinstance(error, ValueError)
        and not isinstance(error, (json.JSONDecodeError, UnicodeDecodeError))
        and bool(re.search(r"provider|api_key|not supported|log in", str(error), re.I))
    )


def _answer(error: Exception) -> tuple[int, Any, Mapping[str, str]] | None:
    """Status, body and headers of the answer that `error` stands for, None where it stands for none."""
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code, _body(error.response), error.response.headers
    # With a 200 it is about the answer's form, and no refusal.
    if isinstance(error, REFUSED) and (status := error.status) != 200:
        return status, getattr(error, "response_error_payload", None), getattr(error, "headers", None) or {}
    return None


def translate_status(status: int, body: Any, headers: Mapping[str, str], where: str) -> Exception:
    """What an answer of `where` with an error's status is, as `translate` tells it."""
    text = _error_text(body)
    answered = f"{where} answered {status}: {text}" if text else f"{where} answered {status}"
    if status in (429, 503):
        return Weather(f"{where} answered {status}", overloaded=True, retry_after=_retry_after(headers))
    if status in (408, 504):
        return Stumble(f"{where} answered {status}", "timeout")
    if status in (400, 413, 422):
        code = "too_long" if _TOO_LONG.search(text) else "rejected"
        return RequestFailed(f"{where} rejected the request: {text or status}.", code)
    if status in (401, 403):
        return TeacherAuthError(f"The teacher {where} answered {status} to this key.")
    if status < 400 or status in (402, 404, 405):
        return TeacherError(f"The teacher {answered}.", "Check the address, the model's name and the plan.")
    return Stumble(answered, "server_error")


def _body(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


def _error_text(body: Any) -> str:
    """The server's own words, without their full stop, and bounded: they are a stranger's text."""
    text = body.get("error", body) if isinstance(body, dict) else body or ""
    return " ".join(str(text).split())[:300].rstrip(".")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from a Retry-After header in either of its forms."""
    value = headers.get("retry-after")
    if not value:
        return None
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
