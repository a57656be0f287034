"""One server of a teacher's fleet: how much it takes, and whether it answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from srt_hf.teacher.pacing import AdaptiveLimit
from srt_hf.teacher.protocol import Backend, Identity


class Endpoint:
    """One server: how to ask it, how much it takes, and whether it answers."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.away = False
        self.gone = False  # it is named no more: it gets no work, and is forgotten with its last reply
        self.limit = AdaptiveLimit()
        self.last_reply = 0.0  # time.monotonic
        self.not_before = 0.0  # it is left alone until then
        self.failures = self.rests = 0  # in a row, without a reply between them
        self._told: int | None = None
        # Slots by the loop that holds them: a map that fails leaves its loop standing, and slots that nobody will give back.
        self.held: Counter[asyncio.AbstractEventLoop] = Counter()

    def answers(self, identity: Identity) -> None:
        """It said who it is, and maybe how much it takes."""
        self.away = False
        if identity.max_concurrent_requests != self._told:
            self._told = identity.max_concurrent_requests
            self.limit = AdaptiveLimit(self._told)

    @property
    def free(self) -> int:
        """Requests that it takes more; 0 while it is away or left alone, and when it is gone."""
        resting = self.away or self.gone or time.monotonic() < self.not_before
        return 0 if resting else int(self.limit.value) - self.held.total()
