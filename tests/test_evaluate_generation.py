"""Models that answer in this process: what they are asked, batches, windows, and the journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, POSITIONS, make_gpt2, make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from srt_hf.errors import ConfigError, StudentError
from srt_hf.evaluation.answers import Answer, ModelArguments, Question, ServerArguments
from srt_hf.evaluation.generation import Local, _prompt, _sampler
from srt_hf.prompts import TEMPLATES
from srt_hf.student.text import Texts

QUESTIONS = [Question(f"q/{n}", "Tell me more. " * (n % 5 + 1) + str(n)) for n in range(11)]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_llama(tmp_path_factory.mktemp("chat"), chat_template=CHAT_TEMPLATE))


def local(model: str, journal: Path, **options: object) -> Local:
    asked = ModelArguments(model=model, **{"max_tokens": 12, **options})  # type: ignore[arg-type]
    made = asked.make(ServerArguments(journal=str(journal)))
    assert isinstance(made, Local)
    return made


def test_batches_change_no_answer(chat_model: str, tmp_path: Path) -> None:
    alone, together = (local(chat_model, tmp_path / str(size), batch_size=size).answer(QUESTIONS) for size in (1, 16))
    assert alone == together and list(alone) == [question.id for question in QUESTIONS]
    assert len({answer.text for answer in alone.values()}) > 1


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_the_answer_is_what_the_model_says_to_the_template(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = make(tmp_path / "model")
    question = Question("q/1", "Give three tips.", "For staying healthy.")
    answer = local(str(folder), tmp_path / "j", template="alpaca").answer([question])["q/1"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = TEMPLATES["alpaca"].prompt(question.instruction, question.input)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[start, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=start)
    assert answer.text == tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True).strip() != ""


def test_conversations_of_several_turns(chat_model: str, tmp_path: Path) -> None:
    turn = Question("q/1", "And then?", earlier=(("Begin.", "Once."),))
    assert [message["role"] for message in turn.messages] == ["user", "assistant", "user"]
    first = Question("q/2", "And then?")
    for template in ("chat", "vicuna", "alpaca"):
        answers = local(chat_model, tmp_path / "j", template=template).answer([turn, first])
        assert answers["q/1"] != answers["q/2"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_several_turns_read_as_in_the_chat_template_of_trained_models(name: str, tmp_path: Path) -> None:
    """A served model and the same model here see the same text."""
    make_llama(tmp_path / "model", chat_template=TEMPLATES[name].chat_template("bos_token"))
    question = Question("q/1", "And then?", "", (("Begin.", "Once."), ("Go on.", "Upon a time.")))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    served = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False)
    assert (
        tokenizer.bos_token + _prompt(question, Texts(tokenizer, name)) == served == _prompt(question, Texts(tokenizer, "chat"))
    )


def test_a_chat_template_that_refuses_is_one_clear_error(tmp_path: Path) -> None:
    make_llama(tmp_path / "model", chat_template="{{ raise_exception('not today') }}")
    with pytest.raises(StudentError, match=r"refuses: not today\. Choose another --template"):
        local(str(tmp_path / "model"), tmp_path / "j").answer(QUESTIONS)


def test_values_that_nothing_understands(chat_model: str, tmp_path: Path) -> None:
    for options, complaint in (({"template": "chatml"}, "no template"), ({"batch_size": 0}, "--batch_size is 0")):
        with pytest.raises(ConfigError, match=complaint):
            local(chat_model, tmp_path / "j", **options)


def test_the_window_bounds_each_answer_by_itself(chat_model: str, tmp_path: Path) -> None:
    full, tight = Question("q/full", "<unk>" * 2 * POSITIONS), Question("q/tight", "<unk>" * (POSITIONS - 20))
    answers = local(chat_model, tmp_path / "j", max_tokens=40).answer([full, tight, *QUESTIONS])
    assert answers["q/full"] == Answer("", error="too_long") and answers["q/tight"].cut
    assert {id: answers[id] for id in (question.id for question in QUESTIONS)} == local(
        chat_model, tmp_path / "other", max_tokens=40
    ).answer(QUESTIONS)


def test_what_is_in_the_journal_loads_no_model(chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = local(chat_model, tmp_path / "j").answer(QUESTIONS)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    assert local(chat_model, tmp_path / "j").answer(QUESTIONS) == before
    with pytest.raises(StudentError, match="cannot be loaded"):
        local(chat_model, tmp_path / "j", max_tokens=13).answer(QUESTIONS)


def test_a_broken_generation_keeps_what_was_answered(chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, asked = Local._generate, []

    def twice(self: Local, model: object, texts: object, prompts: list[list[int]], *more: Any) -> list[Answer]:
        asked.append(len(prompts))
        if len(asked) == 3:
            raise RuntimeError("something broke")
        return generate(self, model, texts, prompts, *more)

    monkeypatch.setattr(Local, "_generate", twice)
    with pytest.raises(StudentError, match="failed: something broke"):
        local(chat_model, tmp_path / "j", batch_size=4).answer(QUESTIONS)
    answers = local(chat_model, tmp_path / "j", batch_size=4).answer(QUESTIONS)
    assert asked == [4, 4, 3, 3] and len(answers) == 11


def test_less_memory_means_smaller_batches(chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, asked = Local._generate, []

    def tight(self: Local, model: object, texts: object, prompts: list[list[int]], *more: Any) -> list[Answer]:
        asked.append(len(prompts))
        if len(prompts) > 3:
            raise torch.cuda.OutOfMemoryError
        return generate(self, model, texts, prompts, *more)

    monkeypatch.setattr(Local, "_generate", tight)
    answers = local(chat_model, tmp_path / "j", batch_size=8).answer(QUESTIONS)
    assert asked == [8, 4, 2, 2, 2, 2, 2, 1] and len(answers) == 11


def test_sampling_is_seeded_by_question(chat_model: str, tmp_path: Path) -> None:
    def drawn(name: str, seed: int | None, size: int = 4, asked: list[Question] = QUESTIONS) -> dict[str, Answer]:
        return local(chat_model, tmp_path / name, temperature=1.5, seed=seed, batch_size=size).answer(asked)

    whole = drawn("a", 1)
    assert whole == drawn("b", 1, size=3) and whole != drawn("c", 2) and drawn("d", None) != drawn("e", None)
    drawn("f", 1, asked=QUESTIONS[3:6])  # a run that was stopped, and the rest of it
    assert drawn("f", 1) == whole


def test_samples_have_the_models_probabilities() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    draw = _sampler(2.0, [0], "cpu")
    counts = torch.bincount(torch.stack([draw(None, logits).argmax() for _ in range(5000)]), minlength=3)
    assert counts / 5000 == pytest.approx((logits[0] / 2).softmax(0), abs=0.03)


def test_what_cannot_be_asked_shows_before_any_work(chat_model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--dtype is 'float7'"):
        local(chat_model, tmp_path / "j", dtype="float7")
    bare = str(make_llama(tmp_path / "bare"))
    with pytest.raises(ConfigError, match="has no chat template"):
        local(bare, tmp_path / "j", template="chat").about()
    refusing = str(make_llama(tmp_path / "refusing", chat_template="{{ raise_exception('not today') }}"))
    with pytest.raises(StudentError, match="not today"):
        local(refusing, tmp_path / "j").about()
