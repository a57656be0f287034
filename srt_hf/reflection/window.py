"""What fits into the teacher's context: the answer that it is shown is shortened in tokens, from its middle, when it must be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srt_hf.teacher import Identity
from srt_hf.teacher.protocol import Messages

_GAP = "\n[… the middle of this answer is left out …]\n"
_TURN = 16  # tokens that a chat template may put around a turn, where the tokenizer has none
_LEAST = 16  # tokens of an answer under which showing it means nothing
_CHARACTERS = 2.5  # a token, where none can be counted: fewer than in most languages, so that the second try fits
_HUB_TIMEOUT = 10.0  # seconds to find the teacher's repo
_ROUNDS = 3  # cuts, because texts put together again may have other tokens

Build = Callable[[str], Messages]  # the request that shows this answer


class Window:
    """A teacher's context in tokens, and its tokenizer, loaded when a request first comes near the limit.

    Without a limit (the server tells none) everything is sent as it is, and the server judges.
    """

    def __init__(self) -> None:
        self._tokenizer: Any = None
        self._tried: Identity | None = None
        self._lock = threading.Lock()

    async def fit(self, teacher: Identity, build: Build, answer: str, max_tokens: int) -> str | None:
        """As much of `answer` as fits beside `max_tokens` new tokens, or None where nothing worth showing does."""
        room = _room(teacher, max_tokens)
        if room is None or _bytes(build(answer)) <= room:  # a token has at least one byte, so there is nothing to count
            return answer
        tokenizer = await asyncio.to_thread(self._of, teacher)
        if tokenizer is None:
            return answer
        ids = tokenizer.encode(answer, add_special_tokens=False)
        keep = len(ids)
        shown = answer
        for _ in range(_ROUNDS):
            over = _count(tokenizer, build(shown)) - room
            if over <= 0:
                return shown
            keep -= over + len(tokenizer.encode(_GAP, add_special_tokens=False))
            if keep < _LEAST:
                return None
            shown = _GAP.join(map(tokenizer.decode, _ends(ids, keep)))
        return None

    def guess(self, teacher: Identity, build: Build, answer: str, max_tokens: int) -> str | None:
        """`fit` by characters, after the server has refused a request whose tokens could not be counted."""
        tokens = _room(teacher, max_tokens)
        if tokens is None:
            return None
        room = int(_CHARACTERS * tokens) - sum(len(turn["content"]) for turn in build(_GAP))
        if not _CHARACTERS * _LEAST <= room < len(answer):
            return None
        return _GAP.join(_ends(answer, room))

    def _of(self, teacher: Identity) -> Any:
        """The teacher's tokenizer, None where its name leads to none: a server may call its model as it likes."""
        with self._lock:
            if self._tried != teacher:
                self._tried, self._tokenizer = teacher, _load(teacher)
        return self._tokenizer


def _room(teacher: Identity, max_tokens: int) -> int | None:
    """Tokens that a prompt may have, None where the server does not tell."""
    beside = None if teacher.max_total_tokens is None else teacher.max_total_tokens - max_tokens
    return min((told for told in (beside, teacher.max_input_tokens) if told is not None), default=None)


def _ends(whole: Any, keep: int) -> tuple[Any, Any]:
    """The first and the last of a sequence, `keep` in all."""
    head = -(-keep // 2)
    return whole[:head], whole[len(whole) - (keep - head) :]


def _load(teacher: Identity) -> Any:
    from huggingface_hub import HfApi
    from transformers import AutoTokenizer

    try:
        if not Path(teacher.model).is_dir():
            HfApi().model_info(teacher.model, revision=teacher.revision, timeout=_HUB_TIMEOUT)  # fails at once, where files retry
        return AutoTokenizer.from_pretrained(teacher.model, revision=teacher.revision)
    except Exception:  # foreign code, and a name that need not be a repo's: no network, no repo, no access, an odd tokenizer
        return None


def _bytes(messages: Messages) -> int:
    return sum(len(turn["content"].encode(errors="replace")) + _TURN for turn in messages)


def _count(tokenizer: Any, messages: Messages) -> int:
    if tokenizer.chat_template:
        try:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return len(tokenizer.encode(text, add_special_tokens=False))
        except Exception:  # a template that takes no system turn, say: the server has its own way with it
            pass
    return sum(len(tokenizer.encode(turn["content"])) + _TURN for turn in messages)
