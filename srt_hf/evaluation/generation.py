"""A model that answers in this process, with transformers: batches of equal length, each answer in the journal before the next
batch begins.

Answers of a 16-bit model can depend on their neighbours in a batch, in the last bit and then in a word; `--batch_size 1` rules
that out. Sampled answers do not depend on them otherwise: with --seed each question has random numbers of its own, so that a run
that was stopped ends as one that was not.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from srt_hf.errors import ConfigError, StudentError
from srt_hf.evaluation.answers import Answer, Answerer, ModelArguments
from srt_hf.evaluation.sets import Question
from srt_hf.identity import brief, model_identity, revisions, shown_name
from srt_hf.journal import Journal, default_path, request_key
from srt_hf.parsing import strip_reasoning
from srt_hf.prompts import TEMPLATE_NAMES, TEMPLATES

_DTYPES = ("auto", "float32", "bfloat16", "float16")


class Local(Answerer):
    """The Hub model id or folder `model` at `revision`, on the GPU where there is one. Loaded when the journal lacks an answer.

    template: as `Student`'s. journal: as `Teacher`'s.
    Raises ConfigError for a value that nothing here understands.
    """

    def __init__(self, model: str, revision: str | None, template: str, asked: ModelArguments, journal: str | None) -> None:
        if template not in TEMPLATE_NAMES:
            raise ConfigError(f"There is no template {template!r}.", f"Choose from {', '.join(TEMPLATE_NAMES)}.")
        if asked.dtype not in _DTYPES:
            raise ConfigError(f"--dtype is {asked.dtype!r}.", f"Choose from {', '.join(_DTYPES)}.")
        for name, least in (("batch_size", 1), ("max_tokens", 1), ("temperature", 0)):
            if not getattr(asked, name) >= least:
                raise ConfigError(f"--{name} is {getattr(asked, name)}.", f"Give at least {least}.")
        self._model, self._revision, self._template, self._asked = model, revision, template, asked
        self._batch_size = asked.batch_size
        self._journal = Journal(journal or default_path())

    def about(self) -> dict[str, Any]:
        _prompt(Question("", "Hello."), self._texts)  # a template that is not there or refuses must show before any work
        return {"name": shown_name(self._model), "revision": self._identity, "how": "transformers", **self._form}

    @cached_property
    def _identity(self) -> str:
        return model_identity(self._model, self._revision)

    @property
    def _form(self) -> dict[str, Any]:
        asked = {name: getattr(self._asked, name) for name in ("dtype", "max_tokens", "temperature", "seed")}
        return {"template": self._template, **asked}

    def answer(self, questions: Sequence[Question]) -> dict[str, Answer]:
        from tqdm import tqdm

        keys = {question.id: self._key(question) for question in questions}
        known = {id: record for id, key in keys.items() if (record := self._journal.get(key)) is not None}
        found = {id: Answer(**record["answer"]) for id, record in known.items()}
        rest = [question for question in questions if question.id not in found]
        with tqdm(total=len(questions), initial=len(found), desc=f"{shown_name(self._model)} answers", disable=None) as bar:
            for new in self._batches(rest) if rest else ():
                asyncio.run(self._save({keys[id]: (id, answer) for id, answer in new.items()}))
                found |= new
                bar.update(len(new))
        # Another model, or the judge, may want the memory next.
        self.__dict__.pop("_loaded", None)
        return {question.id: found[question.id] for question in questions}

    def _key(self, question: Question) -> str:
        asked = [question.instruction, question.input, *map(list, question.earlier)]
        return request_key({"evaluated": self._identity, "asked": asked, **self._form})

    async def _save(self, new: dict[str, tuple[str, Answer]]) -> None:
        saving = [self._journal.put(key, {"answer": vars(answer)}, id=id, step="answer") for key, (id, answer) in new.items()]
        await asyncio.gather(*saving)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The model, and `Texts` of its tokenizer and template."""
        import torch
        from transformers import AutoModelForCausalLM

        from srt_hf.student.loading import pick_device, resolve_dtype

        device = pick_device(None, None)
        where = {"revision": revisions(self._identity)[0]}
        try:
            dtype = getattr(torch, resolve_dtype(self._asked.dtype, device))
            how = {"dtype": dtype, "device_map": {"": device}, "output_loading_info": True}
            model, info = AutoModelForCausalLM.from_pretrained(self._model, **where, **how)
        # Foreign code of many authors: OSError, ValueError, ImportError, KeyError, a bare Exception of tokenizers and more.
        except Exception as error:
            raise StudentError(f"The model {self._model} cannot be loaded: {brief(error)}") from error
        if info["missing_keys"]:  # transformers fills them with random numbers
            raise StudentError(f"The model {self._model} lacks the weights {', '.join(sorted(info['missing_keys'])[:3])}.")
        return model.eval(), self._texts

    @cached_property
    def _texts(self) -> Any:
        """`Texts` of the tokenizer and the template. StudentError or ConfigError where one is missing or does not fit."""
        from transformers import AutoTokenizer

        from srt_hf.student.text import Texts

        revision = revisions(self._identity)[0]
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._model, revision=revision)
        except Exception as error:  # as in _loaded
            raise StudentError(f"The tokenizer of {self._model} cannot be loaded: {brief(error)}") from error
        return Texts(tokenizer, self._template)

    def _batches(self, questions: Sequence[Question]) -> Iterator[dict[str, Answer]]:
        """The answers, a batch at a time: questions of about one length, the longest first, so that memory runs out at once."""
        model, texts = self._loaded
        window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        lead = list(texts.lead)
        ids = [lead + own for own in texts.encode([_prompt(question, texts) for question in questions])]
        limit = self._asked.max_tokens
        rooms = [limit if window is None else min(limit, window - len(own)) for own in ids]
        yield {question.id: Answer("", error="too_long") for question, room in zip(questions, rooms, strict=True) if room <= 0}
        seeds = [self._seed(question) for question in questions]
        order = sorted((n for n, room in enumerate(rooms) if room > 0), key=lambda n: (-rooms[n], -len(ids[n])))
        # Only equal rooms together: a neighbour's token limit must not cut an answer.
        for room, members in groupby(order, key=rooms.__getitem__):
            rest = list(members)
            while rest:
                size = min(self._batch_size, len(rest))
                answers = self._fitting(model, texts, [ids[n] for n in rest[:size]], [seeds[n] for n in rest[:size]], room)
                yield {questions[n].id: answer for n, answer in zip(rest, answers, strict=False)}
                rest = rest[len(answers) :]

    def _seed(self, question: Question) -> int | None:
        """Of the random numbers that this question's answer is drawn with; None for any."""
        if self._asked.seed is None:
            return None
        return int.from_bytes(hashlib.sha256(self._key(question).encode()).digest()[:7], "big")

    def _fitting(self, model: Any, texts: Any, prompts: list[list[int]], seeds: list[int | None], room: int) -> list[Answer]:
        """The answers to as many of the first prompts as fit into memory, at least one."""
        import torch

        while True:
            try:
                return self._generate(model, texts, prompts, seeds, room)
            except torch.cuda.OutOfMemoryError as error:
                if len(prompts) == 1:
                    raise StudentError(f"Not even one answer of {self._model} fits into the memory that is free.") from error
            except Exception as error:  # foreign code of many authors
                raise StudentError(f"The model {self._model} failed: {brief(error)}") from error
            torch.cuda.empty_cache()
            prompts = prompts[: len(prompts) // 2]
            seeds = seeds[: len(prompts)]
            self._batch_size = len(prompts)

    def _generate(self, model: Any, texts: Any, prompts: list[list[int]], seeds: list[int | None], room: int) -> list[Answer]:
        import torch

        tokenizer = texts.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else texts.start
        width = max(map(len, prompts))
        inputs = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=model.device)  # (batch, width)
        seen = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
        ends = _ends(model, tokenizer)
        how: dict[str, Any] = {**_GREEDY, "eos_token_id": sorted(ends) or None}
        if self._asked.temperature:
            how["logits_processor"] = [_sampler(self._asked.temperature, seeds, model.device)]
        with torch.inference_mode():
            written = model.generate(
                input_ids=inputs, attention_mask=seen, max_new_tokens=room, pad_token_id=pad, num_beams=1, **how
            )
        return [_read(tokenizer, ids, ends) for ids in written[:, width:].tolist()]


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the model's, and the tokenizer's, which a fine-tuned model's own config may not know."""
    own = model.generation_config.eos_token_id
    found = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    return {token for token in found if token is not None}


def _read(tokenizer: Any, ids: list[int], ends: set[int]) -> Answer:
    end = next((n for n, token in enumerate(ids) if token in ends), None)
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return Answer(strip_reasoning(text).strip(), cut=end is None)


# None where the checkpoint's own generation_config samples: a value beside do_sample=False is a warning.
_GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def _sampler(temperature: float, seeds: Sequence[int | None], device: Any) -> Callable[[Any, Any], Any]:
    """A logits processor behind which the likeliest token is a sampled one: logits / temperature with Gumbel noise on them (the
    Gumbel-max trick). Each row's noise is its seed's, whoever shares its batch."""
    import torch

    draws = [torch.Generator(device) for _ in seeds]
    for draw, seed in zip(draws, seeds, strict=True):
        draw.seed() if seed is None else draw.manual_seed(seed)

    def noisy(ids: Any, logits: Any) -> Any:
        # -log of an exponential draw is a Gumbel one. (batch, vocabulary)
        drawn = [torch.empty(logits.shape[1], device=device).exponential_(generator=draw) for draw in draws]
        return logits.float() / temperature - torch.stack(drawn).log()

    return noisy


def _prompt(question: Question, texts: Any) -> str:
    """The conversation in the model's format, up to where its answer begins. StudentError where a chat template refuses it."""
    import jinja2

    if texts.template == "chat":
        try:
            return texts.tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False)
        except jinja2.TemplateError as error:
            name = texts.tokenizer.name_or_path
            raise StudentError(f"The chat template of {name} refuses: {error}.", "Choose another --template.") from error
    template, end = TEMPLATES[texts.template], texts.tokenizer.eos_token or ""
    if not question.earlier:
        return template.prompt(question.instruction, question.input)
    asked = [*(turn for turn, _ in question.earlier), template.turn(question.instruction, question.input)]
    before_answer = template.no_input.split("{instruction}")[1]
    text = template.prompt(asked[0])
    for (_, answer), following in zip(question.earlier, asked[1:], strict=True):
        text += f"{template.answer_prefix}{answer}{end}{template.next_turn}{following}{before_answer}"
    return text
