"""`local:` teachers: transformers in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from srt_hf import Teacher
from srt_hf.errors import ConfigError, RequestFailed, SrtError
from srt_hf.teacher import Reply

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
ASK = [{"role": "user", "content": "Hello."}]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_models import make_llama

    return str(make_llama(tmp_path_factory.mktemp("chat"), chat_template=CHAT))


def ask(teacher: Teacher, text: str = "Hello.", **options: int) -> Reply:
    return asyncio.run(teacher.chat([{"role": "user", "content": text}], **options))


def test_a_reply_with_its_counts(chat_model: str, tmp_path: Path) -> None:
    teacher = Teacher(f"local:{chat_model}", journal=tmp_path / "j", max_tokens=8)
    reply = ask(teacher)
    assert reply.completion_tokens is not None and 0 < reply.completion_tokens <= 8 and reply.prompt_tokens
    assert reply.finish_reason in ("stop", "length")
    assert ask(teacher) == reply and teacher.counts["from_journal"] == 1  # greedy, and bought once
    assert str(teacher.identity()).startswith(f"{Path(chat_model).name}@xxh3:")


def test_sampling_follows_the_seed(chat_model: str) -> None:
    replies = [ask(Teacher(f"local:{chat_model}", journal=False, max_tokens=8, temperature=1.0, seed=s)).text for s in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]


def test_a_prompt_that_fills_the_window(chat_model: str) -> None:
    with pytest.raises(RequestFailed) as failure:
        ask(Teacher(f"local:{chat_model}", journal=False), "word " * 5000)
    assert failure.value.code == "too_long"


def test_models_that_cannot_teach(student_folder: str) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        ask(Teacher(f"local:{student_folder}", journal=False))
    with pytest.raises(SrtError, match="/no/such/model"):
        ask(Teacher("local:/no/such/model", journal=False))
