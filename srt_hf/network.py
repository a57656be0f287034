"""Which HTTP library huggingface_hub is built on, and what it raises: httpx2 (httpx in 1.x); before 1.0 requests for the Hub and
aiohttp for inference. The one place that knows.

`httpx` is the library for requests of our own. HUB_REFUSED: the Hub answered with an error's status, in `response`. HUB_AWAY: it
did not answer. Of an inference client: NOT_CONNECTED and CONNECT_TIMEOUT before a request was sent, BROKEN after it, and REFUSED,
an answer with an error's status that HfHubHTTPError does not stand for, in `status`. DROPPED_QUIETLY: an inference client whose
loop has ended can be let go, without a warning that it was not closed.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.errors import HfHubHTTPError

__all__ = ["BROKEN", "CONNECT_TIMEOUT", "DROPPED_QUIETLY", "HUB_AWAY", "HUB_REFUSED", "NOT_CONNECTED", "REFUSED", "httpx"]

Errors = tuple[Any, ...]  # whose attributes no stubs tell

try:
    from huggingface_hub.utils import httpx
except ImportError:  # before 1.0; datasets brings these three
    import aiohttp
    import httpx  # type: ignore[no-redef]
    import requests

    DROPPED_QUIETLY = False
    HUB_REFUSED: Errors = (requests.HTTPError,)  # `whoami` raises it bare
    HUB_AWAY: Errors = (requests.ConnectionError, requests.Timeout)
    REFUSED: Errors = (aiohttp.ClientResponseError,)
    NOT_CONNECTED: Errors = (aiohttp.ClientConnectorError, requests.ConnectionError, httpx.ConnectError)
    CONNECT_TIMEOUT: Errors = (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout, httpx.PoolTimeout)
    BROKEN: Errors = (aiohttp.ClientError, httpx.HTTPError)
else:
    DROPPED_QUIETLY = True
    HUB_REFUSED = (HfHubHTTPError,)
    HUB_AWAY = (httpx.TransportError,)
    REFUSED = ()
    NOT_CONNECTED = (httpx.ConnectError,)
    CONNECT_TIMEOUT = (httpx.ConnectTimeout, httpx.PoolTimeout)
    BROKEN = (httpx.HTTPError,)
