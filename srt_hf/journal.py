"""The journal: every teacher reply on disk before its row is done, so that nothing is paid for twice.

One SQLite file in WAL mode. Each reply is keyed by the hash of its request (`request_key`), so a changed prompt, model or
sampling parameter never meets an old answer. Writes are grouped: one thread commits whatever has queued up while the last
commit ran, and a caller goes on only after the commit that holds its reply. Several processes may share one file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import queue
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from srt_hf.errors import JournalError

_TABLE = """CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    id TEXT, step TEXT, attempt INTEGER,
    record TEXT NOT NULL,
    created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
)"""
# Rows that were answered by a reply of another row's: the same text is paid for once.
_ALSO = """CREATE TABLE IF NOT EXISTS also (
    key TEXT, id TEXT, step TEXT, attempt INTEGER,
    PRIMARY KEY (key, id, step, attempt)
)"""
_INSERT_ALSO = "INSERT OR IGNORE INTO also (key, id, step, attempt) VALUES (?, ?, ?, ?)"
_INSERT = "INSERT OR REPLACE INTO replies (key, id, step, attempt, record) VALUES (?, ?, ?, ?, ?)"
_ENTRIES = "SELECT id, step, attempt, record FROM replies ORDER BY rowid"
_ENTRIES_ALSO = "SELECT also.id, also.step, also.attempt, record FROM also JOIN replies USING (key) ORDER BY replies.rowid"
_WHOLE = "SELECT key, id, step, attempt, record, created FROM replies ORDER BY rowid"
_ROWS = "SELECT key, id, step, attempt FROM replies"
_ROWS_ALSO = "SELECT key, id, step, attempt FROM also"
_INSERT_NEW = "INSERT OR IGNORE INTO replies (key, id, step, attempt, record, created) VALUES (?, ?, ?, ?, ?, ?)"
_INSERT_ALSO_OTHERS = (
    "INSERT OR IGNORE INTO also (key, id, step, attempt) SELECT ?, ?, ?, ? "
    "WHERE NOT EXISTS (SELECT 1 FROM replies WHERE key = ? AND id = ?)"
)
_AT_ONCE = 10_000  # replies that are read before they are written
_SQLITE_MAGIC = b"SQLite format 3\x00"
_PAUSE = 0.02  # seconds between commits, in which more replies come for the next one
_LOCK_TIMEOUT = 60.0  # seconds to wait for another process's commit


def default_path() -> Path:
    """`srt_hf/journal.sqlite` under HF_HOME, where the journal lives unless it is named."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "srt_hf" / "journal.sqlite"


def request_key(request: dict[str, Any]) -> str:
    """Tagged hash of the canonical request. The form is a contract: changing it makes every journal miss.

    >>> request_key({"a": 1, "b": 2}) == request_key({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(request, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(b"srt_hf/request/1\0" + canonical.encode()).hexdigest()


def is_journal(path: str | Path) -> bool:
    """Whether the file at `path` is an SQLite database."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError:
        return False


def read(path: Path) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """(id, step, attempt, record) of every reply in the file, oldest first, without changing it. Raises JournalError."""
    with _reading(path) as (connection, tables):
        for entries in (_ENTRIES, *([_ENTRIES_ALSO] if "also" in tables else [])):
            for id, step, attempt, record in connection.execute(entries):
                yield id, step, attempt, json.loads(record)


@contextmanager
def _reading(path: Path) -> Iterator[tuple[sqlite3.Connection, set[str]]]:
    """The file, which is not changed, and the names of its tables. Raises JournalError, for what is done with it too."""
    address = f"file:{quote(str(path.absolute()))}"
    connection = None
    try:
        try:
            connection = sqlite3.connect(f"{address}?mode=ro", uri=True, timeout=_LOCK_TIMEOUT)
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        except sqlite3.OperationalError:  # on a medium that takes no locks
            connection = sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True)
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        yield connection, tables
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    finally:
        if connection is not None:
            connection.close()


class Journal:
    """Replies by request key.

    Opened on first use, once per process (an SQLite handle must not cross a fork). A damaged file is set aside then, with a
    warning, and what can still be read of it is kept. Raises JournalError when the folder cannot be written or the file is no
    journal; a reply is never reported as saved before its commit.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._reader: sqlite3.Connection | None = None
        self._writer: _Writer | None = None
        self._pid = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> dict[str, Any] | None:
        """The record saved under `key`, or None."""
        with self._lock:
            reader = self._open()
            try:
                row = reader.execute("SELECT record FROM replies WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                raise _unusable(self.path, error) from error
        return json.loads(row[0]) if row else None

    async def put(self, key: str, record: dict[str, Any], *, id: str = "", step: str = "", attempt: int = 0) -> None:
        """Save `record` under `key` and return once it is committed. Raises JournalError when it cannot be."""
        with self._lock:
            self._open()
            assert self._writer is not None
            done = self._writer.submit(_INSERT, (key, id, step, attempt, json.dumps(record)))
        await asyncio.wrap_future(done)

    async def put_also(self, key: str, *, id: str, step: str, attempt: int) -> None:
        """Note that the reply under `key` is this row's too, so that a replay finds it by either name."""
        with self._lock:
            named = self._open().execute("SELECT 1 FROM replies WHERE key = ? AND id = ?", (key, id)).fetchone()
            if named:
                return
            assert self._writer is not None
            done = self._writer.submit(_INSERT_ALSO, (key, id, step, attempt))
        await asyncio.wrap_future(done)

    def entries(self) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
        """(id, step, attempt, record) of every reply, oldest first."""
        with self._lock:
            self._open()
        return read(self.path)

    def take_over(self, path: str | Path) -> int:
        """Add what another journal holds and this one lacks, with the rows that it was bought for. Returns how many replies.

        A reply that both have stays this one's; the other's row is noted beside it. The other file is not changed. Raises
        JournalError, with nothing added, where one of the two cannot be used.
        """
        other = Path(path)
        with self._lock:
            self._open()
        with _reading(other) as (source, tables), closing(_connect(self.path)) as target, target:
            before = target.total_changes
            for replies in _many(source.execute(_WHOLE)):
                target.executemany(_INSERT_NEW, replies)
            new = target.total_changes - before
            # Under the other's names too: the same text may have been bought by a row of each.
            for rows in (_ROWS, *([_ROWS_ALSO] if "also" in tables else [])):
                for named in _many(source.execute(rows)):
                    target.executemany(_INSERT_ALSO_OTHERS, [(*row, *row[:2]) for row in named])
        return new

    def close(self) -> None:
        """Commit what is queued and close the file."""
        with self._lock:
            if self._pid == os.getpid():
                if self._writer is not None:
                    self._writer.stop()
                if self._reader is not None:
                    self._reader.close()
            self._reader = self._writer = None

    def _open(self) -> sqlite3.Connection:
        if self._reader is None or self._pid != os.getpid():
            _set_aside_if_damaged(self.path)
            self._reader = _connect(self.path)
            self._writer = _Writer(self.path)
            self._pid = os.getpid()
        return self._reader


class _Writer:
    """The one thread of this process that commits. It takes whatever is queued into one transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[tuple[str, tuple[Any, ...], Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="srt_hf-journal", daemon=True)
        self._thread.start()

    def submit(self, insert: str, values: tuple[Any, ...]) -> Future[None]:
        done: Future[None] = Future()
        self._queue.put((insert, values, done))
        return done

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        running = True
        while running:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            running = None not in batch
            work = [item for item in batch if item is not None]
            try:
                connection = connection or _connect(self._path)
                with connection:
                    for insert, values, _ in work:
                        connection.execute(insert, values)
            except Exception as error:  # else the thread would end, and with it every row wait for ever
                problem = error if isinstance(error, JournalError) else _unusable(self._path, error)
                for *_, done in work:
                    _settle(done, problem)
            else:
                for *_, done in work:
                    _settle(done, None)
                time.sleep(_PAUSE)
        if connection is not None:
            connection.close()


def _many(cursor: sqlite3.Cursor) -> Iterator[list[Any]]:
    return iter(lambda: cursor.fetchmany(_AT_ONCE), [])


def _settle(done: Future[None], problem: JournalError | None) -> None:
    # A cancelled waiter (its map was aborted) has no use for the answer; its reply is saved all the same.
    if not done.set_running_or_notify_cancel():
        return
    if problem is None:
        done.set_result(None)
    else:
        done.set_exception(problem)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        # FULL: a committed reply survives a power cut too; group commit keeps that affordable.
        connection.execute("PRAGMA synchronous=FULL")
        with connection:
            connection.execute(_TABLE)
            connection.execute(_ALSO)
            # It writes, so that what cannot be written says so before a reply is bought.
            connection.execute("PRAGMA user_version = 1")
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error
    return connection


def _set_aside_if_damaged(path: Path) -> None:
    """Move a journal that SQLite finds damaged out of the way and begin a new one with its readable replies."""
    if not is_journal(path):
        return  # a new one, or a file that is none: that is for whoever opens it to say
    if not _damaged(path):
        return
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        for suffix in ("-wal", "-shm", ""):  # the main file last: until then the next try finds the damage again
            if (part := path.with_name(path.name + suffix)).exists():
                os.replace(part, aside.with_name(aside.name + suffix))
        saved = _salvage(aside, path)
    except OSError as error:
        raise _unusable(path, error) from error
    warnings.warn(
        f"The journal {path} was damaged: it is now {aside}, and {saved:,} replies that could be read went on into a new one.",
        stacklevel=5,
    )


def _damaged(path: Path) -> bool:
    connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT)
    try:
        return connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",)
    except sqlite3.OperationalError as error:  # locked, or not to be read: no damage
        raise _unusable(path, error) from error
    except sqlite3.DatabaseError:
        return True
    finally:
        connection.close()


def _salvage(damaged: Path, path: Path) -> int:
    """Copy what can be read, from the front up to the damage and from the end back to it. Returns how many replies."""
    found: dict[bytes, list[Any]] = {}
    connection = sqlite3.connect(damaged)
    connection.text_factory = bytes  # text that is none stops its own row only
    for order in ("ASC", "DESC"):
        try:
            for row in connection.execute(f"SELECT key, id, step, attempt, record FROM replies ORDER BY rowid {order}"):
                if row[0] not in found and (readable := _readable(row)):
                    found[row[0]] = readable
        except sqlite3.DatabaseError:
            continue
    connection.close()
    fresh = _connect(path)
    with fresh:
        fresh.executemany(_INSERT, found.values())
    fresh.close()
    return len(found)


def _readable(row: tuple[Any, ...]) -> list[Any] | None:
    try:
        values = [value.decode() if isinstance(value, bytes) else value for value in row]
        json.loads(values[-1])
    except (ValueError, TypeError):
        return None
    return values


def _unusable(path: Path, error: Exception) -> JournalError:
    return JournalError(
        f"The journal {path} cannot be used: {error}.", "Free or repair it, or name another file with --journal (SRT_HF_JOURNAL)."
    )
