"""`replay:` teachers: replies that exist already, matched by row id and step, so that a run needs no server.

The source is JSONL ({id, step, attempt, reply} and optionally finish_reason), a journal, or a published candidates repo, also
as the folder that `Recycled.save_to_disk` wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pyarrow import parquet

from srt_hf import prompts
from srt_hf.errors import ConfigError, RequestFailed
from srt_hf.journal import Journal, is_journal
from srt_hf.schema import ORIGINAL
from srt_hf.teacher.protocol import Identity, Reply, Request

_Key = tuple[str, str, int]
_Outcome = Reply | RequestFailed


class ReplayBackend:
    """Answers from the file or folder, or the candidates repo on the Hub, called `source`.

    Raises ConfigError when it holds no replies.
    """

    journaled = False

    def __init__(self, source: str) -> None:
        self.source = source
        self._revision: str | None = None
        self._recorded: dict[_Key, _Outcome] = {}

    def identity(self) -> Identity:
        path = Path(self.source)
        files = [path] if path.is_file() else _tables(path)
        if files:
            digest = hashlib.sha256()
            for file in files:
                digest.update(file.read_bytes())
            return Identity(f"replay:{path.absolute().name}", digest.hexdigest()[:16])
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
        from huggingface_hub.utils import httpx

        try:
            return Identity(f"replay:{self.source}", HfApi().dataset_info(self.source).sha)
        except (HfHubHTTPError, HFValidationError, httpx.TransportError, OfflineModeIsEnabled) as error:
            raise ConfigError(
                f"replay:{self.source} is neither a file, nor an output folder, nor a dataset repo that this login may read.",
                "Give JSONL with id, step, attempt and reply, a journal, or a folder or repo with a `candidates` config.",
            ) from error

    async def generate(self, request: Request, identity: Identity) -> Reply:
        outcome = self._load(identity).get((request.id, request.step, request.attempt))
        if outcome is None:
            raise RequestFailed(f"{self.source} holds no reply for {request.id}, {request.step}.", "not_attempted")
        if isinstance(outcome, RequestFailed):
            raise RequestFailed(outcome.message, outcome.code)
        return outcome

    def _load(self, identity: Identity) -> dict[_Key, _Outcome]:
        """The replies as of `identity`, read anew when the file or the repo has changed."""
        if self._revision != identity.revision:
            self._recorded, self._revision = self._read(), identity.revision
        return self._recorded

    def _read(self) -> dict[_Key, _Outcome]:
        path = Path(self.source)
        if not path.is_file():
            entries = _from_candidates(_rows_of_folder(path) if _tables(path) else _rows_of_repo(self.source))
        elif is_journal(path):
            entries = _from_journal(path)
        else:
            entries = _from_jsonl(path)
        recorded = dict(entries)
        if not recorded:
            raise ConfigError(f"replay:{self.source} holds no replies.")
        return recorded


def _from_jsonl(path: Path) -> Iterator[tuple[_Key, _Outcome]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            key = (str(entry["id"]), entry["step"], int(entry.get("attempt", 0)))
            yield key, Reply(entry["reply"], entry.get("finish_reason", "stop"))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"Line {number} of {path} is no recorded reply ({type(error).__name__}: {error}).",
                "Each line is a JSON object with id, step, attempt and reply.",
            ) from error


def _from_journal(path: Path) -> Iterator[tuple[_Key, _Outcome]]:
    journal = Journal(path)
    try:
        for id, step, attempt, record in journal.entries():
            yield (id, step, attempt), outcome_from_record(record)
    finally:
        journal.close()


def _tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("candidates/train-*.parquet"))


def _rows_of_folder(folder: Path) -> Iterator[dict[str, Any]]:
    # Not with `load_dataset`, whose cache knows a folder with a card by its name alone.
    for table in _tables(folder):
        for batch in parquet.ParquetFile(table).iter_batches():
            yield from batch.to_pylist()


def _rows_of_repo(repo: str) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    return load_dataset(repo, "candidates", split="train")


def _from_candidates(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[_Key, _Outcome]]:
    for row in rows:
        for candidate in row["candidates"]:
            if candidate["origin"] != ORIGINAL:
                yield (row["id"], candidate["origin"], 0), _outcome_of(candidate)


def _outcome_of(candidate: dict[str, Any]) -> _Outcome:
    if candidate["error"]:
        return RequestFailed("recorded as failed", candidate["error"])
    text = prompts.well_formed_reply(
        candidate["origin"], candidate["critique"] or "", candidate["instruction"], candidate["output"]
    )
    return Reply(text, "stop", candidate["prompt_tokens"], candidate["completion_tokens"])


def outcome_from_record(record: dict[str, Any]) -> _Outcome:
    """A journal record as the reply or the final failure that it holds."""
    if "error" in record:
        return RequestFailed(record.get("message", ""), record["error"])
    return Reply(**record)
