"""The options that several scripts share, and what is made of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from srt_hf.cli import changed, explained, json_object, option
from srt_hf.errors import ConfigError
from srt_hf.estimate import Fleet
from srt_hf.prompts import TEMPLATE_NAMES
from srt_hf.report import Prices
from srt_hf.selection import KEEPS, RULES, Selector
from srt_hf.student import Student
from srt_hf.teacher import Teacher


@dataclass
class TeacherArguments:
    """The model that reflects and rewrites"""

    teacher: str = option(
        "http://localhost:8080",
        "server URL (several with commas, or @FILE of them), Hub model id, local:MODEL, replay:FILE-OR-REPO, tgi+http://HOST",
    )
    teacher_model: str | None = option(None, "model name, for a server of several")
    provider: str = option("auto", "which Inference Provider, for a Hub model id")
    temperature: float = option(0.0, "0 is greedy, as in the paper")
    top_p: float | None = option(None, "nucleus sampling; TGI rejects 1.0")
    seed: int | None = option(None, "sampling seed, for temperatures above 0 [none is sent]")
    max_tokens: int = option(2048, "new tokens a reply may have")
    extra_body: str | None = option(None, "JSON object of further fields of each request, passed to the server as they are")
    timeout: float = option(600.0, "seconds one request may take")
    outage: float = option(900.0, "seconds without any reply after which the run stops")
    journal: str | None = option(None, "file of all replies (default: srt_hf/journal.sqlite under HF_HOME)")

    def make(self) -> Teacher:
        """The teacher; its key is read from SRT_HF_TEACHER_KEY. Raises ConfigError."""
        names = ("provider", "temperature", "top_p", "seed", "max_tokens", "timeout", "outage", "journal")
        chosen = {name: getattr(self, name) for name in names}
        key = os.environ.get("SRT_HF_TEACHER_KEY")
        return Teacher(
            self.teacher, model=self.teacher_model, key=key, extra_body=json_object(self.extra_body, "--extra_body"), **chosen
        )


@dataclass
class StudentArguments:
    """The model that will be trained, and decides"""

    student: str = option("meta-llama/Llama-2-7b-hf", "Hub id or folder of a causal LM")
    student_revision: str | None = option(None, "branch, tag or commit of the student")
    template: str = option("auto", f"the student's prompt format: {', '.join(TEMPLATE_NAMES)}")
    dtype: str = option("auto", "auto, fastest (bfloat16 where that is faster), float32 (the paper's numbers), bfloat16, float16")
    max_length: int = option(2048, "tokens of prompt and answer together")
    device: str | None = option(None, "where it scores: cuda, cuda:1, cpu, mps [a GPU where there is one]")
    torch_compile: bool = option(
        False, "compile the student's layers: faster on long runs, after up to half a minute at the start"
    )
    trust_remote_code: bool = option(False, "run code from the student's repo")
    proxy: str | None = option(None, "a smaller model that scores first and leaves only close calls to the student")
    margin: float = option(0.05, "what a close call is for --proxy: numbers nearer than this to each other, or to 1")

    def make(self) -> Student:
        """The student, not loaded yet. Raises ConfigError."""
        names = ("template", "dtype", "max_length", "device", "torch_compile", "trust_remote_code")
        return Student(self.student, revision=self.student_revision, **{name: getattr(self, name) for name in names})


@dataclass
class SelectionArguments:
    """How the pairs are chosen"""

    rule: str = option("paper", f"who wins: {explained(RULES)}")
    keep: str = option("reflected", f"which choices are kept: {explained(KEEPS)}")

    def make(self) -> Selector:
        """The selector. Raises ConfigError."""
        return Selector(rule=self.rule, keep=self.keep)


@dataclass
class RepoArguments:
    """Where the result goes on the Hub"""

    repo: str | None = option(None, "dataset repo on the Hub, such as org/srecycled-alpaca; without it nothing is pushed")
    private: bool = option(False, "make the new Hub repo private")
    create_pr: bool = option(False, "open a pull request on the Hub repo instead of writing to its main branch")
    revision: str | None = option(None, "branch of the Hub repo to write to, made where there is none [main]")
    overwrite: bool = option(False, "replace all tables of the Hub repo, even if this tool did not make it")

    def __post_init__(self) -> None:
        if not self.repo and any(self.where().values()):
            raise ConfigError("--private, --create_pr, --revision and --overwrite are about the repo.", "Name it with --repo.")

    def where(self) -> dict[str, Any]:
        """What hub.check_target and push_to_hub want to know besides the repo's name."""
        return {name: getattr(self, name) for name in ("private", "create_pr", "revision", "overwrite")}


@dataclass
class CostArguments:
    """What it costs"""

    estimate: bool = option(False, "print calls, tokens, time and cost that are to be expected, and call nobody")
    price_in: float | None = option(None, "price of a million prompt tokens, in any currency")
    price_out: float | None = option(None, "price of a million completion tokens")
    teacher_rate: float | None = option(None, "for --estimate: completion tokens a second of one teacher server")
    teacher_servers: int = option(1, "for --estimate: how many of them")
    teacher_price: float = option(0.0, "for --estimate: what one costs an hour")
    student_rate: float | None = option(None, "for --estimate: tokens a second that one device runs (scripts/bench_student.py)")
    student_devices: int = option(1, "for --estimate: how many of them")
    student_price: float = option(0.0, "for --estimate: what one costs an hour")

    def __post_init__(self) -> None:
        if (self.price_in is None) != (self.price_out is None):
            raise ConfigError("--price_in and --price_out belong together.", "Give both; 0 is a price too.")
        for name in ("teacher_rate", "student_rate"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise ConfigError(f"--{name} is {rate}.", "Give a number of tokens a second above 0.")
        for name in ("teacher_servers", "student_devices"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}.", "Give at least 1.")
        for name in ("teacher_price", "student_price"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--{name} is {getattr(self, name)}.", "Give a price of at least 0.")
        for whose in ("teacher", "student"):
            idle = [name for name in changed(self) if name.startswith(whose) and not name.endswith("_rate")]
            if idle and getattr(self, f"{whose}_rate") is None:
                raise ConfigError(f"Without --{whose}_rate, --{idle[0]} says nothing.", "Give the rate of one too.")

    @property
    def fleet(self) -> Fleet:
        """Who would do the work, for the estimate."""
        of_teacher = (self.teacher_rate, self.teacher_servers)
        return Fleet(*of_teacher, self.student_rate, self.student_devices, self.teacher_price, self.student_price)

    @property
    def prices(self) -> Prices | None:
        return None if self.price_in is None or self.price_out is None else Prices(self.price_in, self.price_out)
