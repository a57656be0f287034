"""A score that is not the student's: how near instruction and response are to each other for a sentence-embedding model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from srt_hf.errors import ConfigError
from srt_hf.identity import brief, model_identity, revisions, shown_name
from srt_hf.prompts import user_turn
from srt_hf.schema import row_columns
from srt_hf.selection import Selector

if TYPE_CHECKING:
    from datasets import Dataset

_TYPE = pa.list_(pa.float64())
_BATCH = 128  # rows


def is_installed() -> bool:
    """Whether sentence-transformers is here."""
    return find_spec("sentence_transformers") is not None


class Coherence:
    """Cosine similarity of each candidate's instruction (with its input) and output, for `Dataset.map(batched=True)`.

    model: a sentence-transformers model, a Hub id or a folder; it reads as many tokens of a text as it was made for
    (all-mpnet-base-v2: 384). It is loaded at once; ConfigError where that fails. Pickled are its name and what identifies its
    content, so that `map` never takes another model's numbers from its cache.
    """

    MODEL = "sentence-transformers/all-mpnet-base-v2"
    LACKING = "The arm coherence needs the package sentence-transformers."
    INSTALL = "pip install 'srt_hf[coherence]'."

    def __init__(self, model: str = MODEL) -> None:
        self.model = model
        self._encoder: Any = None
        try:
            self.identity = model_identity(model)
            self._load()
        # Foreign code of many authors, as for a student: OSError, ValueError, ImportError, KeyError and more.
        except Exception as error:
            raise ConfigError(
                f"The embedding model {model} cannot be loaded: {brief(error)}", "Name another with --coherence_model."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}

    def add_to(self, rows: Dataset) -> Dataset:
        """The rows with a column `coherence`, a list parallel to `candidates`."""
        return rows.map(self, batched=True, batch_size=_BATCH, desc="Embedding instructions and responses")

    def about(self) -> dict[str, str]:
        """Model, what identifies it, and the package's version, for the report."""
        return {"model": shown_name(self.model), "identity": self.identity, "version": version("sentence-transformers")}

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Column candidates -> coherence: for each candidate a number in [-1, 1], None where it failed or a text is empty."""
        pairs = [[_texts(candidate) for candidate in candidates] for candidates in batch["candidates"]]
        # Each text once, so that equal pairs have equal numbers: the last bits depend on what a text is batched with.
        texts = sorted({text for row in pairs for pair in row if pair for text in pair})
        vectors = dict(zip(texts, self._encode(texts), strict=True))
        found = [[_similarity(*(vectors[text] for text in pair)) if pair else None for pair in row] for row in pairs]
        return {"coherence": [pa.scalar(values, type=_TYPE) for values in found]}

    def _encode(self, texts: list[str]) -> Any:
        """One vector of length 1 a text, float32."""
        self._load()
        return self._encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False) if texts else []

    def _load(self) -> None:
        if self._encoder is None:
            from sentence_transformers import SentenceTransformer

            self._encoder = SentenceTransformer(self.model, revision=revisions(self.identity)[0])


def by_coherence(row: Mapping[str, Any]) -> dict[str, Any]:
    """Selection by the column `coherence`, the highest in both stages; kept is what `Selector()` keeps. For `Dataset.map`.

    The similarity, its sign turned, stands for this one decision in the place of the loss of which the rule `perplexity` takes
    the lowest; ifd and r_ifd stay the student's.
    """
    pairs = zip(row["scores"], row["coherence"], strict=True)
    scores = [{**score, "nll_y_given_x": None if value is None else -value} for score, value in pairs]
    return row_columns(row, Selector(rule="perplexity")({**row, "scores": scores}))


def _texts(candidate: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is compared, None where there is nothing to compare."""
    instruction = user_turn(candidate["instruction"] or "", candidate["input"] or "")
    output = candidate["output"] or ""
    return None if candidate["error"] or not instruction.strip() or not output.strip() else (instruction, output)


def _similarity(one: Any, other: Any) -> float | None:
    value = float(one.astype("float64") @ other.astype("float64"))
    return value if math.isfinite(value) else None
