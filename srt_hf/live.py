"""The line that tells how the teacher is doing while a map runs: done, in flight, tokens a second, failures, time left, cost."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

from srt_hf.reflection import Reflector
from srt_hf.report import Prices, duration

_EVERY = 1.0  # seconds between lines on a terminal
_EVERY_LOG = 60.0  # and in a log file
_WINDOW = 30.0  # seconds that the rates are taken over


class Progress(NamedTuple):
    """What a reflector has done: as its `rows_done` and `outcomes`, and its teacher's `counts` and `load`."""

    rows_done: int
    outcomes: Counter[str | None]
    counts: dict[str, int]
    load: tuple[int, int]


def progress(reflector: Reflector) -> Progress:
    """A reflector's progress as of now."""
    return Progress(reflector.rows_done, reflector.outcomes.copy(), reflector.teacher.counts, reflector.teacher.load)


class _Moment(NamedTuple):
    time: float
    rows: int
    prompt_tokens: int
    completion_tokens: int


class Live:
    """`with Live(reflector, n_rows): dataset.map(reflector.reflect)` shows the line on stderr, below the progress bar.

    For a reflector in another process: a function that tells its progress. Nothing is shown where
    `datasets.disable_progress_bars()` was called.
    """

    def __init__(self, reflector: Reflector | Callable[[], Progress], total: int, prices: Prices | None = None) -> None:
        self._look = partial(progress, reflector) if isinstance(reflector, Reflector) else reflector
        self._total = total
        self._prices = prices
        self._before = self._look()
        self._moments: deque[_Moment] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="srt_hf-live", daemon=True)

    def __enter__(self) -> Live:
        from datasets import are_progress_bars_disabled

        if not are_progress_bars_disabled():
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        from tqdm import tqdm

        terminal = sys.stderr.isatty()
        bar: Any = tqdm(bar_format="{desc}", position=1, leave=False, file=sys.stderr) if terminal else None
        while not self._stop.wait(_EVERY if terminal else _EVERY_LOG):
            if bar is not None:
                bar.set_description_str(self.line())
            else:
                print(self.line(), file=sys.stderr, flush=True)
        if bar is not None:
            bar.close()

    def line(self) -> str:
        """The line as of now."""
        found, before = self._look(), self._before
        counts = {name: count - before.counts[name] for name, count in found.counts.items()}
        now = _Moment(time.monotonic(), found.rows_done - before.rows_done, counts["prompt_tokens"], counts["completion_tokens"])
        self._moments.append(now)
        while now.time - self._moments[0].time > _WINDOW:
            self._moments.popleft()
        then = self._moments[0]
        seconds = now.time - then.time
        in_flight, limit = found.load
        parts = [f"{now.rows:,} of {self._total:,} rows", f"{in_flight:,} of {limit:,} in flight"]
        if seconds > 0:
            rate_in, rate_out = ((new - old) / seconds for new, old in zip(now[2:], then[2:], strict=True))
            parts.append(f"{rate_in:,.0f} tokens/s in, {rate_out:,.0f} out")
        parts += [
            f"{counts[name]:,} {name.replace('_', ' ')}" for name in ("from_journal", "asked_again", "retries") if counts[name]
        ]
        failed = (found.outcomes - before.outcomes).most_common()
        parts += [f"{count:,} {code}" for code, count in failed if code is not None]
        if seconds > 0 and now.rows > then.rows:
            parts.append(f"{duration((self._total - now.rows) * seconds / (now.rows - then.rows))} left")
        if self._prices:
            # Of all that this teacher was asked so far, not of this map alone.
            bought = found.counts
            parts.append(f"cost {self._prices.cost(bought['prompt_tokens'], bought['completion_tokens']):,.2f}")
        return " · ".join(parts)
