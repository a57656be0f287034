"""The rows of a run in blocks, and what the stages made of them, durable in one folder: a run that lost its driver goes on there.

A block is what the local engine scores in one batch, so that a student's numbers are the same to the last bit. It travels through
the cluster as the bytes of one table: nothing there cuts blocks, joins them or guesses a column's type.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from srt_hf.schema import COLUMNS, TRIPLE, features

if TYPE_CHECKING:
    from datasets import Dataset


def pack(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> bytes:
    """These columns (schema.COLUMNS) of the rows, as a Parquet file's bytes."""
    schema = pa.schema([(name, COLUMNS[name]) for name in columns])
    buffer = io.BytesIO()
    pq.write_table(pa.table([[row[name] for row in rows] for name in schema.names], schema=schema), buffer)
    return buffer.getvalue()


def unpack(content: bytes) -> list[dict[str, Any]]:
    """The rows that were packed."""
    return pq.read_table(io.BytesIO(content)).to_pylist()


@dataclass(frozen=True)
class Blocks:
    """`size` rows a block, in `folder` on the driver's machine. `stage` is the name of what was made of them, such as "all"."""

    folder: Path
    size: int

    def keep(self, rows: Dataset) -> None:
        """Save the columns that the method reads, once, where every process of this machine can map them into its memory."""
        if (self.folder / "rows").exists():
            return
        fresh = _unfinished(self.folder / "rows")
        rows.select_columns(["id", *TRIPLE]).save_to_disk(fresh)
        try:
            os.replace(fresh, self.folder / "rows")
        except OSError:  # another process was faster
            if not (self.folder / "rows").exists():
                raise
            shutil.rmtree(fresh)

    @cached_property
    def _rows(self) -> Dataset:
        from datasets import load_from_disk

        return load_from_disk(str(self.folder / "rows"))

    def read(self, n: int, stage: str | None = None) -> list[dict[str, Any]]:
        """The rows of block n, with what an earlier stage made of them."""
        rows = list(self._rows.select(range(n * self.size, min((n + 1) * self.size, len(self._rows)))))
        found = unpack(self._path(stage, n).read_bytes()) if stage else [{} for _ in rows]
        return [{**row, **columns} for row, columns in zip(rows, found, strict=True)]

    def write(self, stage: str, n: int, content: bytes) -> None:
        """Save what a stage made of block n. When this returns it is on the disk, whole."""
        path = self._path(stage, n)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = _unfinished(path)
        with open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)

    def missing(self, stage: str, rows: int) -> list[int]:
        """The blocks of so many rows that a stage has not been through."""
        have = {int(path.stem) for path in (self.folder / stage).glob("*.parquet")}
        return [n for n in range(-(-rows // self.size)) if n not in have]

    def rows_in(self, n: int, rows: int) -> int:
        """How many of so many rows are in block n."""
        return min(self.size, rows - n * self.size)

    def join(self, rows: Dataset, stage: str) -> Dataset:
        """The rows with what a stage made of them beside, in their order, mapped into memory."""
        from datasets import Dataset, concatenate_datasets

        path = self.folder / f"{stage}.arrow"
        if not path.exists():
            self._join_into(path, stage, len(rows))
        return concatenate_datasets([rows, Dataset.from_file(str(path))], axis=1)

    def _join_into(self, path: Path, stage: str, rows: int) -> None:
        from datasets.arrow_writer import ArrowWriter

        files = [self._path(stage, n) for n in range(-(-rows // self.size))]
        fresh = _unfinished(path)
        with ArrowWriter(path=str(fresh), features=features(pq.read_schema(files[0]).names)) as writer:
            for file in files:
                writer.write_table(pq.read_table(file))
            writer.finalize()
        os.replace(fresh, path)

    def _path(self, stage: str, n: int) -> Path:
        return self.folder / stage / f"{n:08}.parquet"


def _unfinished(path: Path) -> Path:
    """Where this process writes what shall be at `path`: the same command may run twice at once."""
    return path.with_name(f".{path.name}.{os.getpid()}")
