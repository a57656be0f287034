"""What content stands behind a model name, so that a cached score is never a stale one.

A path is not its content: a model retrained in place must not be answered from the cache of `Dataset.map` or the journal.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import xxhash

from srt_hf.errors import StudentError

# What a loader reads. Logs, optimizer states and READMEs beside them say nothing about the scores.
_CONTENT = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".py", ".safetensors", ".bin"}
_CHUNK = 1 << 24  # bytes
_LOCAL = "xxh3:"

# (path, size, mtime in ns) -> digest of the file's content, so that asking again costs one stat a file.
_known: dict[tuple[str, int, int], bytes] = {}


def model_identity(model: str, revision: str | None = None) -> str:
    """The commit sha that `revision` of a Hub repo stands for now, or "xxh3:" and the digest of a local folder's content; of a
    PEFT adapter, this and its base model's.

    Works offline where the repo is in the Hub cache. Raises StudentError where there is no such folder or repo.
    """
    base = base_model(model, revision)
    if base is None:
        return _content(model, revision, "config.json")
    return f"{_content(model, revision, 'adapter_config.json')}+{_base_identity(base)}"


def revisions(identity: str) -> tuple[str | None, str | None]:
    """The Hub commits in an identity, of the model and of an adapter's base; None for local content."""
    own, _, base = identity.partition("+")
    return _revision(own), _revision(base)


def _revision(identity: str) -> str | None:
    return None if not identity or identity.startswith(_LOCAL) else identity


def _content(model: str, revision: str | None, file: str) -> str:
    folder = Path(model)
    return _folder_digest(folder) if folder.is_dir() else _commit(model, revision, file)


def _base_identity(base: str) -> str:
    # A commit is looked up once, since a student's identity is asked for with every batch.
    return _folder_digest(Path(base)) if Path(base).is_dir() else _base_commit(base)


@cache
def _base_commit(base: str) -> str:
    return _commit(base, None, "config.json")


def base_model(model: str, revision: str | None = None) -> str | None:
    """The name of the model that a PEFT adapter changes; None for what is no adapter."""
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        config = find_adapter_config_file(model, revision=revision)
    except (OSError, ValueError):  # no such repo: whoever loads it says so
        return None
    return json.loads(Path(config).read_text(encoding="utf-8")).get("base_model_name_or_path") if config else None


def shown_name(model: str) -> str:
    """The model's name for columns, cards and reports: a Hub id, or a folder's own name without the path to it."""
    folder = Path(model)
    return folder.resolve().name if folder.is_dir() else model


def _folder_digest(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.suffix in _CONTENT and path.is_file())
    digest = xxhash.xxh3_128()
    for path in files:
        digest.update(path.name.encode() + b"\0" + _file_digest(path))
    return f"{_LOCAL}{digest.hexdigest()}"


def _file_digest(path: Path) -> bytes:
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _known:
        digest = xxhash.xxh3_128()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        _known[key] = digest.digest()
    return _known[key]


def _commit(model: str, revision: str | None, file: str) -> str:
    from transformers.utils import cached_file

    # transformers 5 no longer notes the commit on the config; the folder of the cached file is named by it.
    try:
        config = cached_file(model, file, revision=revision)
    except (OSError, ValueError) as error:
        raise StudentError(f"The model {model} cannot be found: {brief(error)}") from error
    return Path(config).parent.name


def brief(error: BaseException) -> str:
    """The first line of a foreign error's message, as the cause in a message of ours."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
