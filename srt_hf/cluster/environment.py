"""What the driver's environment tells the libraries: taken along, because somebody else started the cluster's processes.

Nothing is imported here that reads it before it is the driver's.
"""

from __future__ import annotations

import os
import re

_READ = re.compile(
    r"(HF|HUGGING_?FACE|SRT_HF)_.*|TRANSFORMERS_OFFLINE|(HTTPS?|ALL|NO)_PROXY|SSL_CERT_FILE|(REQUESTS|CURL)_CA_BUNDLE|XDG_CACHE_HOME",
    re.IGNORECASE,
)
_PLACE = re.compile(r".*(HOME|CACHE|PATH|FILE|BUNDLE|DIR)", re.IGNORECASE)  # on one machine, and nowhere else


def of_driver() -> dict[str, str]:
    """What this process reads, for another of this machine, which then has the same caches, logins and journal."""
    from huggingface_hub.constants import HF_HOME

    return {**{name: value for name, value in os.environ.items() if _READ.fullmatch(name)}, "HF_HOME": HF_HOME}


def for_other_nodes() -> dict[str, str]:
    """The same for a process anywhere: without this machine's folders, but with its login to the Hub."""
    from huggingface_hub import get_token

    token = get_token()
    found = {name: value for name, value in of_driver().items() if not _PLACE.fullmatch(name)}
    return {**found, **({"HF_TOKEN": token} if token else {})}


def take_over(environment: dict[str, str]) -> None:
    """Make it this process's own. Folders stay this machine's where none are named."""
    places = any(map(_PLACE.fullmatch, environment))
    for name in list(os.environ):
        if _READ.fullmatch(name) and (places or not _PLACE.fullmatch(name)):
            del os.environ[name]
    os.environ.update(environment)
