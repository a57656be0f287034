"""`replay:` teachers: replies that exist already, matched by row id and step, so that a run needs no server.

The source is JSONL ({id, step, attempt, reply} and optionally finish_reason, teacher and token counts, or {…, error, message} of
a request that failed; `write_replies` writes it), a journal, or a published candidates repo, also as the folder that
`Recycled.save_to_disk` wrote. What a recording tells of a reply stays with it: a replayed candidate names the teacher that wrote
it, and those of a repo come out as they are in it, failed ones too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from srt_hf import journal, prompts
from srt_hf.errors import ConfigError, RequestFailed
from srt_hf.identity import brief
from srt_hf.journal import Journal, is_journal
from srt_hf.parsing import Reflection
from srt_hf.schema import ERRORS, ORIGINAL
from srt_hf.teacher.protocol import Backend, Identity, Outcome, Reply, Request

_Key = tuple[str, str, int]

_CURE = "Give JSONL with id, step, attempt and reply, a journal, or a folder or repo with a `candidates` config."
# The fields of a JSONL entry; those with a value here may be missing.
_TYPES: dict[str, Any] = {
    "id": str | int,
    "step": str,
    "attempt": int,
    "reply": str,
    "finish_reason": str | None,
    "teacher": str | None,
    "prompt_tokens": int | None,
    "completion_tokens": int | None,
}
_DEFAULTS = {"attempt": 0, "finish_reason": "stop", "teacher": None, "prompt_tokens": None, "completion_tokens": None}


class ReplayBackend(Backend):
    """Answers from the file or folder, or the candidates repo on the Hub, called `source`."""

    journaled = False

    def __init__(self, source: str) -> None:
        self.source = source
        self._revision: str | None = None
        self._recorded: dict[_Key, Outcome] = {}

    def identity(self) -> Identity:
        """The recording and its digest or commit. Reads it where it is new or changed, so that a wrong one shows at once.

        Raises ConfigError where it cannot be read or holds no replies.
        """
        try:
            identity, files = self._find()
            if identity.revision == self._revision:
                return identity
            recorded = dict(_entries(files))
        # What a file of another kind, or a damaged one, makes its reader raise.
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ConfigError(f"replay:{self.source} cannot be read ({type(error).__name__}: {brief(error)}).", _CURE) from error
        if not recorded:
            raise ConfigError(f"replay:{self.source} holds no replies.", _CURE)
        self._recorded, self._revision = recorded, identity.revision
        return identity

    def _find(self) -> tuple[Identity, list[Path]]:
        """Who answers, and the files that hold what."""
        path = Path(self.source)
        files = [path] if path.is_file() else _tables(path)
        if files:
            # Beside a journal in use lies what it has not written into its main file yet.
            logs = [log for file in files if (log := file.with_name(file.name + "-wal")).is_file()]
            return Identity(f"replay:{path.absolute().name}", _digest([*files, *logs])), files
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        from srt_hf.network import HUB_AWAY

        try:
            sha = HfApi().dataset_info(self.source).sha
            folder = snapshot_download(self.source, repo_type="dataset", revision=sha, allow_patterns="candidates/*")
        except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, *HUB_AWAY) as error:
            raise ConfigError(
                f"replay:{self.source} is neither a file, nor an output folder, nor a dataset repo that this login may read.",
                _CURE,
            ) from error
        return Identity(f"replay:{self.source}", sha), _tables(Path(folder))

    async def generate(self, request: Request, identity: Identity) -> Reply:
        outcome = self._recorded.get((request.id, request.step, request.attempt))
        if outcome is None:
            raise RequestFailed(f"{self.source} holds no reply for {request.id}, {request.step}.", "not_attempted")
        if isinstance(outcome, RequestFailed):
            raise RequestFailed(outcome.message, outcome.code)
        return outcome


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while part := content.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()[:16]


def _entries(files: list[Path]) -> Iterator[tuple[_Key, Outcome]]:
    for file in files:
        if file.suffix == ".parquet":
            yield from _from_candidates(file)
        else:
            yield from _from_journal(file) if is_journal(file) else _from_jsonl(file)


def _from_jsonl(path: Path) -> Iterator[tuple[_Key, Outcome]]:
    with path.open("rb") as lines:  # as bytes: only a newline ends a line, whatever else a reply holds
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield _entry(line)
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigError(
                        f"Line {number} of {path} is no recorded reply ({type(error).__name__}: {error}).",
                        "Each line is a JSON object with id, step, attempt and reply.",
                    ) from error


def _entry(line: bytes) -> tuple[_Key, Outcome]:
    entry = {**_DEFAULTS, **json.loads(line)}
    failed = entry.get("error") in ERRORS and "reply" not in entry
    for name, kind in _TYPES.items():
        if not (failed and name == "reply") and not isinstance(entry[name], kind):
            raise TypeError(f"{name} is {entry[name]!r:.40}")
    key = (str(entry["id"]), entry["step"], entry["attempt"])
    if failed:
        return key, RequestFailed(str(entry.get("message", "")), entry["error"])
    names = ("finish_reason", "prompt_tokens", "completion_tokens", "teacher")
    return key, Reply(entry["reply"], **{name: entry[name] for name in names})


def write_replies(replies: Journal, ids: Collection[str], teachers: Collection[str], path: Path) -> None:
    """Write what the journal holds of these teachers for rows with these ids as JSONL that `replay:` reads, oldest first."""
    with path.open("w", encoding="utf-8") as lines:
        for id, step, attempt, record in replies.entries():
            if id in ids and record.get("teacher") in teachers:
                names = {("reply" if name == "text" else name): value for name, value in record.items()}
                lines.write(json.dumps({"id": id, "step": step, "attempt": attempt, **names}, ensure_ascii=False) + "\n")


def _from_journal(path: Path) -> Iterator[tuple[_Key, Outcome]]:
    for id, step, attempt, record in journal.read(path):
        yield (id, step, attempt), outcome_from_record(record)


def _tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("candidates/train-*.parquet"))


def _from_candidates(table: Path) -> Iterator[tuple[_Key, Outcome]]:
    # Not with `load_dataset`, whose cache knows a folder with a card by its name alone.
    for batch in parquet.ParquetFile(table).iter_batches():
        for row in batch.to_pylist():
            for candidate in row["candidates"]:
                if candidate["origin"] != ORIGINAL:
                    yield (row["id"], candidate["origin"], 0), _reply_of(candidate)


def _reply_of(candidate: dict[str, Any]) -> Reply:
    """The candidate as a reply that need not be parsed: a text put together from its parts may be read otherwise."""
    critique, instruction, output, error = (candidate[name] for name in ("critique", "instruction", "output", "error"))
    return Reply(
        "" if error else prompts.well_formed_reply(candidate["origin"], critique or "", instruction, output),
        candidate["finish_reason"],
        candidate["prompt_tokens"],
        candidate["completion_tokens"],
        candidate["teacher"],
        Reflection(critique, instruction, output, error),
    )


def outcome_from_record(record: dict[str, Any]) -> Outcome:
    """A journal record as the reply or the final failure that it holds."""
    if "error" in record:
        return RequestFailed(record.get("message", ""), record["error"])
    return Reply(**record)
