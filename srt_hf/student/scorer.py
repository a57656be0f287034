"""`Student`: the named losses of pairs, and the two functions for `Dataset.map` that make columns of them."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from srt_hf.errors import ConfigError, DataError
from srt_hf.identity import model_identity, shown_name
from srt_hf.metrics import ifd, r_ifd
from srt_hf.schema import COUNTS, NLLS, ORIGINAL, SCORE, Score, batch_columns
from srt_hf.student.forks import fork_safe
from srt_hf.student.loading import DTYPES, Loaded, load, pick_device, resolve_dtype
from srt_hf.student.plan import Pair, Plan, make_plan
from srt_hf.student.probe import free_memory
from srt_hf.student.text import check_template

# Raised whenever the same model and text begin to give other numbers: part of every map fingerprint.
CONVENTION = 1
# Scored originals after which most of them being above 1 says something about the template.
_ENOUGH_ORIGINALS = 50
_COUNT_OF = dict(zip(NLLS, COUNTS, strict=True))
_CONFIGURATION = (
    "model",
    "template",
    "dtype",
    "max_length",
    "device",
    "revision",
    "token_budget",
    "torch_compile",
    "trust_remote_code",
)


class Student:
    """A causal language model that scores pairs. Construction loads nothing; the first score does.

    model: a Hub id or a local folder. revision: of a Hub repo (branch, tag or commit).
    template: "auto" (the tokenizer's chat template where it has one, else "vicuna") or another of `prompts.TEMPLATE_NAMES`.
    dtype: "auto" (float32 on a CPU, bfloat16 on CUDA), "fastest" (bfloat16 where a quick probe by the process that starts the
        run finds its products clearly faster, else float32), "float32" (the parity mode), "bfloat16" or "float16". Logits and
        losses are float32 in each.
    max_length: window in tokens, start token included; the model's own where that is smaller.
    device: a torch device; None for the first GPU (under `map(with_rank=True)` the rank's own), or the CPU without one.
    token_budget: tokens a forward pass, padding included; None for what suits the device. Halved when memory runs out.
    torch_compile: fuse what the model's layers do between their matrix products. Takes up to half a minute once; on a CPU it
        needs a C++ compiler.
    trust_remote_code: let the repo's own Python code run.

    `count_passes` counts the model passes run so far, after de-duplication. Pickled, a Student is its configuration and its
    identity, never its weights, so each worker of `map(num_proc=...)` loads its own. That pays with one GPU a worker; on a
    CPU one process uses all cores already. The fingerprint of `map` follows the identity: a folder retrained in place is
    scored anew. Raises ConfigError for an argument that nothing here understands.
    """

    def __init__(
        self,
        model: str,
        *,
        template: str = "auto",
        dtype: str = "auto",
        max_length: int = 2048,
        device: str | None = None,
        revision: str | None = None,
        token_budget: int | None = None,
        torch_compile: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        check_template(template)
        if dtype not in DTYPES:
            raise ConfigError(f"There is no dtype {dtype!r}.", f"Choose from {', '.join(DTYPES)}.")
        if max_length < 2:
            raise ConfigError(f"max_length={max_length} leaves no room for a target token.", "Give at least 2.")
        if token_budget is not None and token_budget < 1:
            raise ConfigError(f"token_budget={token_budget} is not a number of tokens.", "Give at least 1, or None.")
        self.model = model
        self.template = template
        self.dtype = dtype
        self.max_length = max_length
        self.device = device
        self.revision = revision
        self.token_budget = token_budget
        self.torch_compile = torch_compile
        self.trust_remote_code = trust_remote_code
        self.count_passes = 0
        self._commit: str | None = None
        self._loaded: Loaded | None = None
        self._lock = threading.Lock()
        self._originals = self._originals_above_one = 0
        self._warned = False

    def __repr__(self) -> str:
        return f"Student({self.model!r}, template={self.template!r}, dtype={self.dtype!r}, max_length={self.max_length})"

    def like(self, model: str) -> Student:
        """Another model with this one's configuration, as a proxy that stands in for it."""
        return Student(model, **{name: getattr(self, name) for name in _CONFIGURATION if name not in ("model", "revision")})

    def in_float32(self) -> Student | str:
        """This very model, at the commit that scored so far, in the parity mode; or why it cannot be had.

        Frees this one's memory first; a later score loads it again.
        """
        loaded = self.load()
        if loaded.engine.quantised:
            return "its weights are quantised"
        weights = sum(weight.numel() for weight in loaded.engine.model.parameters())
        device, identity = loaded.engine.model.device, loaded.identity
        state = self.__getstate__()
        if state["identity"] != identity:
            return "the model's folder has changed meanwhile"
        with self._lock:
            self._loaded = None
        del loaded
        if 4 * weights > (room := free_memory(device)):
            return f"its {4 * weights / 2**30:.1f} GiB in float32 do not fit into {room / 2**30:.1f}"
        twin = Student(self.model)
        twin.__setstate__({**state, "dtype": "float32", "torch_compile": False})  # for a few pairs it does not pay
        return twin

    def identity(self) -> str:
        """The Hub commit (resolved once, then pinned), or the digest of the local folder as it is now.

        Raises StudentError where there is no such folder or repo.
        """
        if Path(self.model).is_dir():
            return model_identity(self.model)
        if self._commit is None:
            self._commit = model_identity(self.model, self.revision)
        return self._commit

    def __getstate__(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in _CONFIGURATION}
        # Resolved, because a CPU's scores must not be taken from the cache of a GPU's.
        state["dtype"] = resolve_dtype(self.dtype, pick_device(self.device, None))
        return {**state, "identity": self.identity(), "convention": CONVENTION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**{name: state[name] for name in _CONFIGURATION})  # type: ignore[misc]
        if not Path(self.model).is_dir():
            self._commit = state["identity"]

    def load(self, rank: int | None = None) -> Loaded:
        """The model in memory, loaded on the first call and again when the folder's content has changed since.

        Raises StudentError where it cannot be loaded, ConfigError where the template does not fit its tokenizer.
        """
        with self._lock:
            return fork_safe(lambda: self._ready(rank))

    def scored_by(self) -> dict[str, Any]:
        """Who scored, the value of the column `scored_by`: names and sizes as resolved, `revision` the identity."""
        loaded = self.load()
        return {
            "student": shown_name(self.model),
            "revision": loaded.identity,
            "template": loaded.texts.template,
            "max_length": loaded.max_length,
            "dtype": loaded.dtype,
        }

    def nlls(
        self,
        pairs: Sequence[tuple[str | None, str | None, str | None]],
        which: Sequence[str] | Sequence[Sequence[str]] = NLLS,
        rank: int | None = None,
    ) -> list[dict[str, Any]]:
        """Mean nlls of (instruction, input, output) pairs, nats per token; None in a pair is "".

        which: the losses to measure, one list for all pairs or one for each pair. Nothing else is run.
        Returns for each pair its losses, their token counts (`schema.COUNTS`) and `missing`: None, or the `schema.MISSING`
        code of the first loss that is None. Raises ConfigError for an unknown loss, and what `load` raises.
        """
        wanted = _per_pair(which, len(pairs))
        filled = [cast(Pair, tuple(text or "" for text in pair)) for pair in pairs]
        with self._lock:
            return fork_safe(lambda: self._measure(filled, wanted, rank))

    def score(self, batch: Mapping[str, list[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        """Flat columns instruction, input (may be absent), output -> flat columns of a score. For `map(batched=True)`.

        Raises DataError where a column is missing, and what `load` raises.
        """
        _need(batch, "instruction", "output")
        inputs = batch["input"] if "input" in batch else [""] * len(batch["output"])
        pairs = list(zip(batch["instruction"], inputs, batch["output"], strict=True))
        scores = [as_score(losses) for losses in self.nlls(pairs, rank=rank)]
        return batch_columns(batch, {field.name: [score[field.name] for score in scores] for field in SCORE})  # type: ignore[literal-required]

    def score_candidates(self, batch: Mapping[str, list[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        """Column candidates -> columns scores (parallel to it) and scored_by. For `map(batched=True)`, with_rank or not.

        A candidate with an `error` gets Nones. Raises DataError where the column is missing, and what `load` raises.
        """
        _need(batch, "candidates")
        rows = [row or [] for row in batch["candidates"]]
        usable = [candidate for row in rows for candidate in row if not candidate.get("error")]
        pairs = [(c.get("instruction"), c.get("input"), c.get("output")) for c in usable]
        losses = iter(self.nlls(pairs, rank=rank))
        failed = {"missing": "candidate_error"}
        scores = [[as_score(failed if c.get("error") else next(losses)) for c in row] for row in rows]
        self.watch_originals(rows, scores)
        return batch_columns(batch, {"scores": scores, "scored_by": [self.scored_by()] * len(rows)})

    def _measure(self, pairs: Sequence[Pair], which: Sequence[Sequence[str]], rank: int | None) -> list[dict[str, Any]]:
        """`nlls` for a caller that holds the lock."""
        loaded = self._ready(rank)
        plan = make_plan(pairs, which, loaded.texts, loaded.max_length)
        means = loaded.engine.mean_nlls(plan.passes)
        self.count_passes += len(plan.passes)
        return [_losses(found, plan, means) for found in plan.wanted]

    def _ready(self, rank: int | None) -> Loaded:
        """`load` for a caller that holds the lock."""
        identity = self.identity()
        if self._loaded is None or self._loaded.identity != identity:
            self._loaded = None  # first, so that two models are never in memory together
            device = pick_device(self.device, rank)
            self._loaded = load(
                self.model,
                identity,
                template=self.template,
                dtype=resolve_dtype(self.dtype, device),
                max_length=self.max_length,
                device=device,
                token_budget=self.token_budget,
                torch_compile=self.torch_compile,
                trust_remote_code=self.trust_remote_code,
            )
        return self._loaded

    def watch_originals(self, candidates: Sequence[Sequence[Mapping[str, Any]]], scores: Sequence[Sequence[Score]]) -> None:
        """Warn once where most originals are harder with their instruction than without (Cherry_LLM issue 22)."""
        for row, row_scores in zip(candidates, scores, strict=True):
            for candidate, score in zip(row, row_scores, strict=True):
                if candidate.get("origin") == ORIGINAL and score["ifd"] is not None:
                    self._originals += 1
                    self._originals_above_one += score["ifd"] > 1
        if self._warned or self._originals < _ENOUGH_ORIGINALS or 2 * self._originals_above_one <= self._originals:
            return
        self._warned = True
        warnings.warn(
            f"{self._originals_above_one} of {self._originals} originals have ifd > 1: {self.model} may not know the template "
            f"{self.scored_by()['template']!r}. Choose the one that it was trained with.",
            stacklevel=3,
        )


def as_score(losses: Mapping[str, Any]) -> Score:
    """A full score from any of its losses, counts and `missing`; what is not given is None, and so is what needs it.

    >>> as_score({"nll_y": 2.0, "nll_y_given_x": 2.0})["ifd"]
    1.0
    """
    given = {name: losses.get(name) for name in (*NLLS, *COUNTS)}
    return cast(
        Score,
        {
            **given,
            "ifd": ifd(given["nll_y_given_x"], given["nll_y"]),
            "r_ifd": r_ifd(given["nll_x_given_y"], given["nll_x"]),
            "missing": losses.get("missing"),
        },
    )


def _per_pair(which: Sequence[str] | Sequence[Sequence[str]], n_pairs: int) -> list[Sequence[str]]:
    for_all = all(isinstance(name, str) for name in which)
    wanted = [cast(Sequence[str], which)] * n_pairs if for_all else list(which)
    if len(wanted) != n_pairs:
        raise ConfigError(f"`which` names losses for {len(wanted)} pairs, but there are {n_pairs}.")
    unknown = sorted({name for names in wanted for name in names} - set(NLLS))
    if unknown:
        raise ConfigError(f"There is no loss {', '.join(unknown)}.", f"Choose from {', '.join(NLLS)}.")
    return wanted


def _losses(found: Mapping[str, int | str], plan: Plan, means: Sequence[float | None]) -> dict[str, Any]:
    """One pair's losses, counts and first `missing` code, from the means of the plan's passes."""
    losses: dict[str, Any] = {"missing": None}
    for name in (name for name in NLLS if name in found):
        losses[name], losses[_COUNT_OF[name]], code = _loss(found[name], plan, means)
        losses["missing"] = losses["missing"] or code
    return losses


def _loss(found: int | str, plan: Plan, means: Sequence[float | None]) -> tuple[float | None, int | None, str | None]:
    """(mean nll, target tokens, missing code) of one loss. A failure is never a number."""
    if isinstance(found, str):
        return None, None, found
    mean = means[found]
    if mean is None:
        return None, None, "too_long"
    if not math.isfinite(mean):
        return None, None, "not_finite"
    ids, start = plan.passes[found]
    return mean, len(ids) - start, None


def _need(batch: Mapping[str, list[Any]], *columns: str) -> None:
    absent = [name for name in columns if name not in batch]
    if absent:
        message = f"The student needs the column {' and '.join(absent)}; this dataset has {', '.join(batch) or 'none'}."
        raise DataError(message, "Rename columns with `Dataset.rename_columns`; candidates come from `ds.map(srt_hf.reflect)`.")
    first = batch[columns[0]]
    if isinstance(first, str) or any(isinstance(value, Mapping) for value in first[:1]):
        raise DataError("The student scores batches, not single rows.", "Map it with `batched=True`.")
