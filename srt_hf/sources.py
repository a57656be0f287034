"""Where rows come from: a Hub dataset, a file, a saved dataset; brought to the three text columns and an id."""

from __future__ import annotations

import glob
import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from srt_hf.errors import DataError
from srt_hf.rows import CHAT_LAYOUTS, check_columns, single_turn, triple, with_ids
from srt_hf.schema import STAGE_COLUMNS, TRIPLE

if TYPE_CHECKING:
    from datasets import Dataset

# File suffix -> builder and its options. A CSV cell "NA" or "None" is text, and an empty one is empty, not a number.
_FILES: dict[str, tuple[str, dict[str, Any]]] = {
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", {"keep_default_na": False}),
}
# What `datasets` says of a table without rows: of any, and of a Parquet file.
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")


def load_rows(source: str, *, name: str | None = None, split: str = "train", revision: str | None = None) -> Dataset:
    """The rows of `source`: a local JSON, JSONL, Parquet or CSV file, a folder of `Dataset.save_to_disk`, or a Hub dataset.

    `name` is the config of a Hub dataset or of a local dataset folder. Raises DataError with the cause in one line.
    """
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        return _load(source, name, split, revision)
    except DatasetNotFoundError as error:
        raise DataError(f"{source} is neither a local file nor a dataset on the Hub that this login may read.") from error
    # KeyError, TypeError: a damaged folder of `save_to_disk`.
    except (DatasetGenerationError, ValueError, KeyError, TypeError, OSError, pa.ArrowException) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        said = " ".join(str(cause).split())[:300]
        if any(words in said for words in _NO_ROWS):
            raise DataError(f"{source} has no rows in its split {split!r}.") from error
        raise DataError(f"{source} cannot be read: {said}") from error


def _load(source: str, name: str | None, split: str, revision: str | None) -> Dataset:
    from datasets import DatasetDict, load_dataset, load_from_disk

    if not source:
        raise DataError("No dataset is named.", "Give a Hub id, a file or a folder.")
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_file():
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        if suffix not in _FILES:
            raise ValueError(f"the suffix {path.suffix!r} is none of {', '.join(_FILES)}")
        builder, options = _FILES[suffix]
        return load_dataset(builder, data_files=glob.escape(str(path)), split=split, **options)
    if not path.exists() and (suffix in _FILES or path.is_absolute() or source.startswith((".", "~"))):
        # The Hub, which `load_dataset` would ask for long, has no dataset of such a name.
        raise DataError(f"There is no file or folder {source}.")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = load_from_disk(source)
        if isinstance(saved, DatasetDict):
            if split not in saved:
                raise ValueError(f"there is no split {split!r}, only {', '.join(saved)}")
            return saved[split]
        if split not in ("train", str(saved.split)):
            raise ValueError(f"it is saved without splits, so there is no {split!r}")
        return saved
    cache = _cache_of_folder(path) if path.is_dir() else None
    return load_dataset(source, name, split=split, revision=revision, cache_dir=cache)


def _cache_of_folder(folder: Path) -> str:
    """A cache for the folder as it is now: `load_dataset` knows a folder with a card by its name alone, and would return what an
    earlier run saved in it, or in another folder of the same name."""
    from datasets import config

    files = [(str(path), path.stat()) for path in sorted(folder.resolve().rglob("*")) if path.is_file()]
    state = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
    return str(Path(config.HF_DATASETS_CACHE) / "folders" / hashlib.sha256(state.encode()).hexdigest()[:16])


def prepare(dataset: Dataset, *, columns: dict[str, str] | None = None, id_column: str | None = None) -> Dataset:
    """The dataset with text columns instruction, input, output and an `id`; its other columns stay, but for what an earlier run
    of the method added, which would be taken for this run's.

    `columns` maps a name of the triple to the dataset's own name for it. A dataset without `input` gets an empty one; rows of
    `messages` or `conversations` that are not one question and one answer are left out, with a warning that counts them.
    Raises DataError for missing columns, no rows, or cells that are no text.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, Value

    if not isinstance(dataset, Dataset):
        raise DataError(
            f"A Dataset is needed, and this is of type {type(dataset).__name__}.",
            "Choose a split; a stream goes through `map` step by step."
            if isinstance(dataset, (DatasetDict, IterableDataset, IterableDatasetDict))
            else "Load it with `srt_hf.load_rows`, or make it of rows with `Dataset.from_list`.",
        )
    dataset = _rename(dataset, columns or {})
    if {"candidates", "scores"} & set(dataset.column_names):
        dataset = dataset.remove_columns([name for name in dataset.column_names if name in STAGE_COLUMNS])
    check_columns(dataset)
    if not {"instruction", "output"} <= set(dataset.column_names):
        dataset = _from_chat(dataset)
    elif "input" not in dataset.column_names:
        dataset = dataset.add_column("input", [""] * len(dataset))
    for name in TRIPLE:  # null throughout, or large_string: one type everywhere
        if dataset.features[name] != Value("string"):
            dataset = dataset.cast_column(name, Value("string"))
    return with_ids(dataset, id_column)


def _rename(dataset: Dataset, columns: dict[str, str]) -> Dataset:
    wanted = {theirs: ours for ours, theirs in columns.items() if theirs and theirs != ours}
    absent = [theirs for theirs in wanted if theirs not in dataset.column_names]
    if absent:
        raise DataError(f"The dataset has no column {', '.join(absent)}; it has {', '.join(dataset.column_names)}.")
    taken = [ours for ours in wanted.values() if ours in dataset.column_names and ours not in wanted]
    if taken:
        raise DataError(f"The dataset has a column {', '.join(taken)} of its own.", "Rename or remove it first.")
    return dataset.rename_columns(wanted) if wanted else dataset


def _from_chat(dataset: Dataset) -> Dataset:
    single = dataset.filter(_is_single_turn, desc="Reading chats")
    left_out = len(dataset) - len(single)
    if not len(single):
        raise DataError("No row is a single question and answer.", "Selective Reflection-Tuning works on single turns.")
    if left_out:
        layout = next(name for name in CHAT_LAYOUTS if name in dataset.column_names)
        warnings.warn(
            f"{left_out} of {len(dataset)} rows left out: their `{layout}` is not one question and one answer.", stacklevel=3
        )
    return single.map(_triple_columns, desc="Reading chats")


def _is_single_turn(row: dict[str, Any]) -> bool:
    return single_turn(row) is not None


def _triple_columns(row: dict[str, Any]) -> dict[str, str]:
    return dict(zip(TRIPLE, triple(row), strict=True))
