"""`local:MODEL` teachers: a chat model that transformers runs in this process. For small jobs and offline machines; a server
batches far better."""

from __future__ import annotations

import asyncio
import threading
from functools import cached_property
from typing import Any

from srt_hf.errors import ConfigError, RequestFailed, TeacherError
from srt_hf.identity import brief, model_identity, shown_name
from srt_hf.teacher.protocol import Backend, Identity, Reply, Request


class LocalBackend(Backend):
    """The Hub model id or folder `model`, on the GPU where there is one. One request at a time."""

    journaled = True

    def __init__(self, model: str) -> None:
        self.model = model
        self._lock = threading.Lock()

    def identity(self) -> Identity:
        return Identity(shown_name(self.model), model_identity(self.model), max_concurrent_requests=1)

    async def generate(self, request: Request, identity: Identity) -> Reply:
        if request.extra_body:
            raise ConfigError("A local: teacher takes no extra_body.")
        if request.schema is not None:
            raise RequestFailed("A local: teacher cannot constrain its replies.", "rejected")
        return await asyncio.to_thread(self._generate, request)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model)
            model = AutoModelForCausalLM.from_pretrained(self.model, dtype="auto")
        # Foreign code of many authors: OSError, ValueError, ImportError, KeyError, a bare Exception of tokenizers and more.
        except Exception as error:
            raise TeacherError(f"The teacher {self.model} cannot be loaded: {brief(error)}") from error
        if not tokenizer.chat_template:
            raise ConfigError(f"The teacher {self.model} has no chat template.", "Give an instruction-tuned model.")
        return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer

    def _generate(self, request: Request) -> Reply:
        import torch

        with self._lock, torch.inference_mode():
            model, tokenizer = self._loaded
            prompt = self._prompt(tokenizer, request).to(model.device)
            n_prompt = prompt["input_ids"].shape[1]
            window = getattr(model.config, "max_position_embeddings", None)
            room = request.max_tokens if window is None else min(request.max_tokens, window - n_prompt)
            if room <= 0:
                raise RequestFailed(f"{n_prompt} prompt tokens fill the window of {self.model}.", "too_long")
            if request.seed is not None:
                torch.manual_seed(request.seed)
            ids = model.generate(**prompt, max_new_tokens=room, **_sampling(request))[0, n_prompt:]
        ended = bool(ids.numel()) and int(ids[-1]) in _end_ids(model)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return Reply(text, "stop" if ended else "length", n_prompt, int(ids.numel()))

    def _prompt(self, tokenizer: Any, request: Request) -> Any:
        import jinja2

        try:
            return tokenizer.apply_chat_template(
                request.messages,
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
                # Before transformers 5 some tokenizers make them, and few models take them.
                tokenizer_kwargs={"return_token_type_ids": False},
            )
        except jinja2.TemplateError as error:
            hint = "Some templates take no system turn: give prompts with an empty `system`."
            raise TeacherError(f"The chat template of {self.model} refuses the request: {error}.", hint) from error


def _sampling(request: Request) -> dict[str, Any]:
    if not request.temperature:
        # None where the checkpoint's own generation_config samples: a value beside do_sample=False is a warning.
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p}


def _end_ids(model: Any) -> set[int]:
    ids = model.generation_config.eos_token_id
    return set(ids) if isinstance(ids, list) else {ids}
