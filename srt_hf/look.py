"""A first look at the data before a step is taken: one row with its loss mask, token lengths, and what is cut away. All of it is
read from what TRL's trainer has tokenised.

    class Trainer(WithLook, SFTTrainer): ...        # TRL's trainer, which counts what it cuts
    print(first_look(trainer, rows, "vicuna"))
"""

from __future__ import annotations

import copy
import math
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from srt_hf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from srt_hf.training import TrainingRows

_BATCH = 1000  # rows whose tokens are counted at once
_BARS, _WIDEST = 10, 40  # of the histogram: how many, and the characters of the longest
_PERCENTILES = (5, 25, 50, 75, 95, 99)
_SHOWN = 1200  # characters of the example's prompt and of its answer
_LINE = 110


@dataclass(frozen=True)
class Counts:
    """Rows as the trainer tokenised them. lengths: tokens of each (n,), uncut. learned: tokens of each (n,) that carry loss after
    the cut. limit: where rows are cut, None where they are not."""

    lengths: np.ndarray
    learned: np.ndarray
    limit: int | None

    @property
    def kept(self) -> np.ndarray:
        """Tokens of each row (n,) after the cut."""
        return np.minimum(self.lengths, self.limit) if self.limit else self.lengths

    @property
    def cut(self) -> int:
        """Rows that lose their end."""
        return int((self.lengths > self.limit).sum()) if self.limit else 0

    @property
    def lost(self) -> int:
        """Rows that lose their whole answer, and teach nothing."""
        return int((self.learned == 0).sum())


def count_tokens(rows: Dataset, limit: int | None = None, keep_end: bool = False) -> Counts:
    """Count the `labels` of tokenised rows, -100 where there is no loss, as they are and cut to their first (or last) `limit`."""
    import pyarrow.compute as pc

    lengths, learned = [], []
    for batch in rows.with_format("arrow").iter(batch_size=_BATCH):
        size = pc.list_value_length(batch["labels"]).to_numpy().astype(np.int64)
        carries = pc.list_flatten(batch["labels"]).to_numpy() != -100
        before = np.concatenate([[0], np.cumsum(carries)])  # how many of the first n tokens of the batch carry loss
        kept = np.minimum(size, limit) if limit else size
        ends = np.cumsum(size)
        first = ends - kept if keep_end else ends - size
        lengths.append(size)
        learned.append(before[first + kept] - before[first])
    return Counts(np.concatenate(lengths), np.concatenate(learned), limit)


class WithLook:
    """Before TRL's SFTTrainer among a class's bases, it counts the rows of each dataset as TRL tokenised them: `counts["train"]`,
    `counts["eval"]`. TRL itself drops a row that lost its whole answer and says nothing of it."""

    counts: dict[str, Counts]

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        uncut = copy.copy(args)
        uncut.max_length = None
        prepare: Any = super()._prepare_dataset  # type: ignore[misc]
        whole = prepare(dataset, processing_class, uncut, False, formatting_func, dataset_name)
        cuts = not packing or args.packing_strategy == "bfd"  # the other ways of packing carry the rest over to the next sequence
        counts = count_tokens(whole, args.max_length if cuts else None, args.truncation_mode == "keep_end")
        if not counts.learned.any():
            raise DataError(
                f"Every answer of the {dataset_name} rows lies beyond --max_length {args.max_length}: there is nothing to learn."
            )
        _check_end(whole[0], processing_class)
        self.counts = {**getattr(self, "counts", {}), dataset_name: counts}
        return prepare(whole, processing_class, args, packing, None, dataset_name)  # what is tokenised is only cut and packed


def _check_end(row: dict[str, Any], tokenizer: Any) -> None:
    """Warn where an answer, uncut, is taught without the token that ends it: a chat template that ends turns with another one."""
    if tokenizer.eos_token_id not in [label for label in row["labels"] if label != -100]:
        warnings.warn(
            f"The answers do not end with the EOS token {tokenizer.eos_token!r}, so the model may not learn to stop. "
            "Name what the chat template ends a turn with: --eos_token.",
            stacklevel=2,
        )


def planned_steps(trainer: Any) -> int:
    """Optimizer steps that a run from its beginning takes."""
    arguments = trainer.args
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    an_epoch = max(1, math.ceil(len(trainer.get_train_dataloader()) / arguments.gradient_accumulation_steps))
    return math.ceil(arguments.num_train_epochs * an_epoch)


def first_look(trainer: Any, rows: TrainingRows, template: str) -> str:
    """What the run is about to learn, as text for a terminal: one row with its mask, lengths, what is cut, and the steps to come.

    All of it is read from the trainer's own tokenised rows and its collator.
    """
    counts: Counts = trainer.counts["train"]
    asked = len(counts.lengths)
    held_out = f"; held out: {rows.kept_back}" if rows.kept_back else ""
    return "\n".join(
        [
            f"First look: {asked:,} rows{', ' + rows.chosen if rows.chosen else ''}; template {template}{held_out}",
            "",
            "One row as it is trained on, > what the model learns to write, | what it is only shown:",
            *_example(trainer),
            "",
            *_histogram(counts.lengths),
            *_cuts(counts, getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None)),
            f"Tokens of all rows, once: {int(counts.kept.sum()):,}, of which {int(counts.learned.sum()):,} are learned",
            _plan(trainer),
        ]
    )


def _plan(trainer: Any) -> str:
    arguments = trainer.args
    what = "packed sequences" if arguments.packing else "rows"
    batch = arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    return f"To come: {planned_steps(trainer):,} steps of {batch:,} {what}, of which there are {len(trainer.train_dataset):,}"


def _example(trainer: Any) -> Iterator[str]:
    """A row out of the collator, decoded: what carries no loss, then what does; of a packed sequence, its first row."""
    rows = trainer.train_dataset
    n = len(rows) // 2 if trainer.args.packing else 0  # packing puts the longest rows first
    batch = trainer.data_collator([rows[n]])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    first = next((n for n, label in enumerate(labels) if label != -100), len(labels))
    end = next((n for n in range(first, len(labels)) if labels[n] == -100), len(labels))
    shown, whole = (trainer.processing_class.decode(ids[:n], clean_up_tokenization_spaces=False) for n in (first, end))
    yield from _marked("| ", shown)
    yield from _marked("> ", whole[len(shown) :])


def _marked(mark: str, text: str) -> Iterator[str]:
    """`text` with `mark` before each line, without its middle where it is long. Unprintable characters are escaped: they are
    a stranger's, and could move the cursor."""
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]} […] {text[-_SHOWN // 2 :]}"
    for line in text.split("\n"):
        safe = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
        yield from (mark + part for part in textwrap.wrap(safe, _LINE, drop_whitespace=False) or [""])


def _histogram(lengths: np.ndarray) -> Iterator[str]:
    shortest = int(lengths.min())
    width = math.ceil((np.percentile(lengths, 99) - shortest + 1) / _BARS)  # the longest hundredth shall not squeeze the rest
    found = np.bincount(np.minimum((lengths - shortest) // width, _BARS - 1))
    yield "Tokens a row, uncut:"
    for n, count in enumerate(found.tolist()):
        low, high = shortest + n * width, shortest + (n + 1) * width - 1
        span = f"{low:>7,} to {high:,}" if n < _BARS - 1 or lengths.max() <= high else f"{low:>7,} and more"
        yield f"{span:<18} {count:>9,}  {'#' * math.ceil(_WIDEST * count / found.max())}".rstrip()
    values = np.percentile(lengths, _PERCENTILES)
    shares = ", ".join(f"{share} % {value:,.0f}" for share, value in zip(_PERCENTILES, values, strict=True))
    yield f"Percentiles: {shares}; longest {lengths.max():,}"


def _cuts(counts: Counts, window: int | None) -> Iterator[str]:
    def share(count: int) -> str:
        return f"{count:,} ({100 * count / len(counts.lengths):.1f} %)"

    if counts.limit is None:
        yield "Cut: none"
    else:
        yield f"Cut at {counts.limit:,} tokens: {share(counts.cut)}"
        yield f"Left without any of the answer, to teach nothing: {share(counts.lost)}"
    long = int((counts.kept > window).sum()) if window else 0
    if long:
        yield f"Longer than the {window:,} tokens that the model was made for: {share(long)}"
