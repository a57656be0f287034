"""What a student's speed is held against (scripts/bench_student.py): the two ways in use, and what the device itself can do.

The other ways use neither this project's plan nor its engine, so that the losses of both are checked too.
"""

from __future__ import annotations

import ctypes
import platform
import re
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srt_hf.prompts import guess_instruction
from srt_hf.schema import NLLS, TRIPLE
from srt_hf.student.plan import Pass
from srt_hf.student.probe import product_seconds
from srt_hf.student.scorer import as_score
from srt_hf.student.text import Texts

Candidate = Mapping[str, Any]  # instruction, input, output, origin, and the number of its row
Key = tuple[int, str, str]  # row, origin, name of the loss

_ATEN = torch.ops.aten
_PADDED_BATCH = 8


def by_key(candidates: Iterable[Candidate], found: Iterable[Mapping[str, Any]]) -> dict[Key, Any]:
    """What was found for each candidate by the name of the loss, as one flat mapping without the Nones."""
    pairs = zip(candidates, found, strict=True)
    return {(c["row"], c["origin"], name): by[name] for c, by in pairs for name in NLLS if by.get(name) is not None}


def four_candidates(rows: Sequence[Mapping[str, str]]) -> Iterator[tuple[Mapping[str, str], ...]]:
    """For rows without any: original, instruction, response and both of each, made from its text and the next row's. Longer, as a
    teacher's are, and begun otherwise, so that what they share in a run is what any rewriting shares."""
    for row, other in zip(rows, [*rows[1:], *rows[:1]], strict=True):
        asked = {"instruction": f"Explain each step. {row['instruction']} {row['input']}", "input": ""}
        first, better, best = (f"{_turned(row['output'], n)}\n\n{_turned(other['output'], n)}" for n in (2, 3, 4))
        yield row, {**asked, "output": first}, {**row, "output": better}, {**asked, "output": best}


def _turned(text: str, part: int) -> str:
    """The text with a part of its words moved to the end."""
    words = text.split()
    return " ".join(words[len(words) // part :] + words[: len(words) // part])


@dataclass(frozen=True)
class OtherWays:
    """Scoring in this project's convention as others do it: float32, logits everywhere, one text tokenised at a time.

    network: a causal LM as `from_pretrained` gives it. A loss whose target has no room in the window is left out.
    """

    network: Any
    texts: Texts
    max_length: int

    def passes(self, candidates: Iterable[Candidate]) -> dict[Key, Pass]:
        """The pass behind each loss."""
        candidates = list(candidates)
        return by_key(candidates, map(self._passes, candidates))

    @torch.no_grad()
    def published(self, candidates: Iterable[Candidate]) -> dict[Key, float]:
        """The published loop: batch 1, all hidden states, the cache that is the default."""
        return {key: self._loss(one) for key, one in self.passes(candidates).items()}

    @torch.no_grad()
    def padded(self, candidates: Iterable[Candidate]) -> dict[Key, float]:
        """lm-evaluation-harness's way: sorted, padded batches of a fixed size, log-softmax of all logits."""
        losses: dict[Key, float] = {}
        found = sorted(self.passes(candidates).items(), key=lambda item: -len(item[1].ids))
        for batch in (found[at : at + _PADDED_BATCH] for at in range(0, len(found), _PADDED_BATCH)):
            width = len(batch[0][1].ids) - 1
            inputs = self._tensor([[*ids[:-1], *[0] * (width + 1 - len(ids))] for _, (ids, _) in batch])
            log_probs = self.network(inputs).logits.log_softmax(-1)  # (batch, width, vocabulary)
            for (key, (ids, start)), own in zip(batch, log_probs, strict=True):
                targets = self._tensor(ids[start:]).unsqueeze(1)
                losses[key] = -own[start - 1 : len(ids) - 1].gather(1, targets).mean().item()
        return losses

    def _passes(self, candidate: Candidate) -> dict[str, Pass]:
        encode = partial(self.texts.tokenizer.encode, add_special_tokens=False)
        instruction, input, output = (candidate.get(name) or "" for name in TRIPLE)
        found = []
        for turn, target in (((instruction, input), output), ((guess_instruction(output), ""), instruction + input)):
            [prompt] = self.texts.prompts([turn])
            start = len(self.texts.lead) + len(encode(prompt))
            found.append(Pass((self.texts.start, *encode(target))[: max(0, self.max_length - start + 1)], 1))
            found.append(Pass((*self.texts.lead, *encode(prompt + target))[: self.max_length], start))
        return {name: one for name, one in zip(NLLS, found, strict=True) if len(one.ids) > one.start}

    def _loss(self, one: Pass) -> float:
        inputs = self._tensor([one.ids])
        labels = inputs.clone()
        labels[0, : one.start] = -100
        return self.network(inputs, labels=labels, output_hidden_states=True).loss.item()

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.network.device)


class Recorder(TorchDispatchMode):
    """While entered: the matrix products of linear layers and the positions embedded, whatever code asks for them.

    products: (rows, in, out, dtype) -> how often; attention's own are not among them. positions: padding included.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.products: Counter[tuple[int, int, int, torch.dtype]] = Counter()
        self.positions = 0
        self._table = network.get_input_embeddings().weight.shape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = func.overloadpacket
        if kind in (_ATEN.linear, _ATEN.mm, _ATEN.addmm):
            left = args[1] if kind is _ATEN.addmm else args[0]
            self.products[left.numel() // left.shape[-1], left.shape[-1], result.shape[-1], left.dtype] += 1
        elif kind is _ATEN.embedding and args[0].shape == self._table:
            self.positions += args[1].numel()
        return result


@dataclass
class Way:
    """One way to score some rows, and what was seen of it.

    score: the work; returns key -> loss. passes: the pass behind each key. ours: equal passes run once, and the products
    alone are timed too. work: what its rows weigh in rows of the whole data, by tokens.
    """

    score: Callable[[], Mapping[Key, float]]
    network: Any
    passes: Mapping[Key, Pass]
    ours: bool
    work: float
    losses: Mapping[Key, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # MiB above what was in use before
    alone: list[float] = field(default_factory=list)  # seconds of the matrix products and nothing else

    def watch(self) -> None:
        """Run once, untimed: what the network was asked, and what memory it takes that later runs find kept."""
        # What torch would compile under a Recorder it leaves uncompiled for ever.
        with self._noting_memory(), torch.compiler.set_stance("force_eager"), Recorder(self.network) as self.recorded:
            self.score()

    def time(self) -> None:
        """Run once more, as it is meant to run: time, losses, memory. Right after it its matrix products alone."""
        with self._noting_memory():
            start = time.perf_counter()
            self.losses = self.score()  # returns when the losses are on the host
            self.seconds.append(time.perf_counter() - start)
        if self.ours:
            device = self.network.device
            self.alone.append(
                sum(times * product_seconds(*shape, device=device) for shape, times in self.recorded.products.items())
            )

    @contextmanager
    def _noting_memory(self) -> Iterator[None]:
        before = peak_memory(self.network.device, reset=True)
        yield
        self.memory.append(peak_memory(self.network.device) - before)

    def figures(self, reference: Way) -> dict[str, Any]:
        """Medians over the repetitions and ratios to `reference`, repetition by repetition. None: not measured."""
        run, base = self._run(), reference._run()
        # The last token of a pass is no input: it predicts nothing that is asked for.
        tokens, base_tokens = (sum(len(one.ids) - 1 for one in passes) for passes in (run, base))
        positions = self.recorded.positions
        faster = [other / own for own, other in zip(self.seconds, reference.seconds, strict=True)]
        shares = [alone / own for alone, own in zip(self.alone, self.seconds, strict=bool(self.alone))]
        shared = self.losses.keys() & reference.losses.keys()
        return {
            "rows_per_second": self.work / statistics.median(self.seconds),
            "rows_ratio": statistics.median(faster) * self.work / reference.work,
            "tokens_per_second": min(tokens, positions) / statistics.median(self.seconds),
            "tokens_ratio": statistics.median(faster) * min(tokens, positions) / base_tokens,
            "padding_share": max(0.0, 1 - tokens / positions),
            "shared_share": max(0.0, 1 - positions / tokens),
            "duplicate_share": 1 - len(run) / len(self.losses),
            "largest_nll_difference": max((abs(self.losses[key] - reference.losses[key]) for key in shared), default=None),
            "memory_mib": max(self.memory),
            "matmul_share": statistics.median(shares) if shares else None,
            "passes_asked": len(self.losses),
            "passes": len(run),
            "tokens": tokens,
            "positions": positions,
            "seconds": self.seconds,
        }

    def _run(self) -> Sequence[Pass]:
        asked = [self.passes[key] for key in self.losses]
        return list(dict.fromkeys(asked)) if self.ours else asked


def interleave(ways: Sequence[Way], repetitions: int) -> None:
    """Measure them in turns, so that what else the device does meets all of them."""
    for way in ways:
        way.watch()
    for way in [*ways] * repetitions:
        way.time()


def peak_memory(device: torch.device, reset: bool = False) -> float:
    """Peak memory in MiB since the last `reset`, which returns what is in use: allocated on a GPU, else this process's RSS.

    Only Linux resets an RSS peak, and it never falls below that of the process that started this one.
    """
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / 2**20
    if reset and sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # what glibc holds back would hide what the next work needs
        Path("/proc/self/clear_refs").write_text("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def stand_in(
    rows: Sequence[Sequence[Candidate]], small: Mapping[Key, float], large: Mapping[Key, float], choose: Callable[..., Any]
) -> dict[str, float | None]:
    """How well one student's losses replace another's: rank correlation over all candidates, share of rows with the same choice.

    choose: a selector, rows with candidates and scores -> choice.
    """
    scores = [[[_score(losses, candidate) for candidate in row] for row in rows] for losses in (small, large)]
    found: dict[str, float | None] = {}
    for name in ("ifd", "r_ifd"):
        both = [(a[name], b[name]) for ours, theirs in zip(*scores, strict=True) for a, b in zip(ours, theirs, strict=True)]
        known = [pair for pair in both if None not in pair]
        found[f"spearman_{name}"] = spearman([a for a, _ in known], [b for _, b in known])
    choices = [[choose({"candidates": row, "scores": own})["choice"] for row, own in zip(rows, by, strict=True)] for by in scores]
    return {**found, "same_choice": sum(a == b for a, b in zip(*choices, strict=True)) / len(rows)}


def _score(losses: Mapping[Key, float], candidate: Candidate) -> Mapping[str, Any]:
    return as_score({name: losses.get((candidate["row"], candidate["origin"], name)) for name in NLLS})


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Rank correlation, ties at their mean rank. None where one side has a single value.

    >>> round(spearman([1.0, 2.0, 3.0], [0.1, 0.3, 0.2]), 3)
    0.5
    """
    if len(set(left)) < 2 or len(set(right)) < 2:
        return None
    return torch.corrcoef(torch.stack([_ranks(left), _ranks(right)]))[0, 1].item()


def _ranks(values: Sequence[float]) -> Tensor:
    _, place, counts = torch.tensor(values, dtype=torch.float64).unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures hold for: device, versions, threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    if device.type == "cpu" and Path("/proc/cpuinfo").exists():
        name = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text() + f"model name: {name}")[0]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": name, **versions, "threads": torch.get_num_threads()}
