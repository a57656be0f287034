"""torch in a forked worker of `Dataset.map(num_proc=...)`."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_imported_in = os.getpid()


def fork_safe(function: Callable[[], T]) -> T:
    """`function()`, called in a thread of its own where this process is a fork.

    GNU OpenMP's threads do not survive a fork: the thread that forked waits for them for ever in its next parallel region, so
    that a worker hangs if torch has computed anything before `map`. A new thread starts threads of its own.
    """
    if os.getpid() == _imported_in:
        return function()
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(function).result()
