"""The only code that writes to the Hub: a folder that is exactly the repo, and one commit that puts it there."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from srt_hf.errors import ConfigError, HubError
from srt_hf.schema import REPO_TAG, REVIEWED

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import HfApi

# Beginning of the name of a folder in the output folder that is being written, or was when its run was killed.
UNFINISHED = ".unfinished-"
_SHARD_BYTES = 500_000_000


def check_folder(folder: Path) -> None:
    """Make sure that results can be written to `folder`, and make it. Raises ConfigError: not writable, or other things in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        finished = [entry for entry in folder.iterdir() if not entry.name.startswith(UNFINISHED)]
        foreign = finished and not any(folder.glob("reports/*/report.json"))
        # An earlier result is moved to a folder beside it.
        writable = os.access(folder, os.W_OK) and (not finished or os.access(folder.parent, os.W_OK))
    except OSError as error:
        raise ConfigError(f"The output folder {folder} cannot be made: {error.strerror}.", "Name another.") from error
    if foreign:
        raise ConfigError(f"The output folder {folder} holds files that are not a result of this tool.", "Name another.")
    if not writable:
        raise ConfigError(f"The output folder {folder}, or what it lies in, cannot be written to.", "Name another.")


def replace_result(folder: Path, fresh: Path) -> None:
    """Move the files of `fresh` into `folder`. An earlier result with other tables is moved to a numbered folder beside it, with
    a warning, so that no run costs another one's result; a review of the same tables stays. Raises ConfigError where it cannot
    be moved."""
    for entry in folder.glob(f"{UNFINISHED}*"):
        if entry != fresh:
            shutil.rmtree(entry)
    earlier = [entry for entry in folder.iterdir() if entry != fresh]
    tables = _tables(folder, without=fresh)
    reviewed = {path for path in tables if path.split("/")[0].endswith(REVIEWED)}
    if tables and {path: tables[path] for path in tables.keys() - reviewed} != _tables(fresh):
        aside = next(path for n in count(1) if not (path := folder.with_name(f"{folder.name}.{n}")).exists())
        try:
            aside.mkdir()
            for entry in earlier:
                shutil.move(entry, aside)
        except OSError as error:
            raise ConfigError(f"The earlier result in {folder} cannot be moved to {aside}: {error.strerror}.") from error
        warnings.warn(f"The earlier result in {folder} is now in {aside}.", stacklevel=3)
    for entry in fresh.iterdir():
        old = folder / entry.name
        if old.is_dir():
            shutil.rmtree(old)  # the same tables
        os.replace(entry, old)


def _tables(folder: Path, without: Path | None = None) -> dict[str, str]:
    """Digests of the Parquet files in the folder, by their path in it."""
    paths = [path for path in folder.glob("*/*.parquet") if path.parent != without]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def write_table(dataset: Dataset, folder: Path) -> None:
    """Write a dataset as Parquet shards of at most about 500 MB (in Arrow)."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = max(1, math.ceil(dataset.data.nbytes / _SHARD_BYTES))
    for n in range(shards):
        shard = dataset.shard(num_shards=shards, index=n, contiguous=True)
        shard.to_parquet(str(folder / f"train-{n:05d}-of-{shards:05d}.parquet"))


class Existing(NamedTuple):
    """What is on the Hub already and stays. commit: the state that was looked at, None where there is no repo. card: its text.
    reports: local copies of its report.json files."""

    commit: str | None = None
    card: str = ""
    reports: tuple[Path, ...] = ()


def check_target(
    repo_id: str, *, private: bool = False, overwrite: bool = False, revision: str | None = None, create_pr: bool = False
) -> Existing:
    """Make sure that `repo_id` may be written to, before anything is paid for, and return what is there and stays.

    With `overwrite` only what people wrote on the card stays. Raises HubError for a wrong or missing token, a repo that this tool
    did not make (unless `overwrite`), or `private` asked of a repo that exists and is public; ConfigError for a pull request to
    another branch.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if revision and create_pr:
        raise ConfigError("A pull request goes to the main branch.", "Give either --revision or --create_pr.")
    api = HfApi()
    with _hub_errors(repo_id):
        api.whoami()
        try:
            info = api.dataset_info(repo_id, revision=revision)
        except RevisionNotFoundError:
            info = api.dataset_info(repo_id)  # where the new branch will begin
        except RepositoryNotFoundError:
            return Existing()
        if private and not info.private:
            raise HubError(f"{repo_id} exists and is public.", "Make it private in its settings, or leave --private out.")
        content = {file.rfilename for file in info.siblings or []} - {".gitattributes"}
        card = info.card_data.to_dict() if info.card_data else {}
        if content and REPO_TAG not in (card.get("tags") or []) and not overwrite:
            raise HubError(f"{repo_id} exists and was not made by this tool.", "Name another repo, or pass --overwrite.")
        if REPO_TAG not in (card.get("tags") or []):
            return Existing(info.sha)
        return _existing(api, repo_id, str(info.sha), content, overwrite)


def _existing(api: HfApi, repo_id: str, commit: str, content: set[str], overwrite: bool) -> Existing:
    """Card and, unless they go, reports of a repo of this tool at a commit."""

    card = ""
    if "README.md" in content:
        readme = api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=commit)
        card = Path(readme).read_text(encoding="utf-8", errors="replace")
    return Existing(commit, card, () if overwrite else _reports(api, repo_id, content, commit))


def about_source(repo_id: str, revision: str | None = None) -> dict[str, Any]:
    """What the card of a source dataset says of its licence and language, and its commit; {} where the Hub does not answer."""
    from huggingface_hub import HfApi

    try:
        with _hub_errors(repo_id):
            info = HfApi().dataset_info(repo_id, revision=revision)
    except HubError:
        return {}
    card = info.card_data.to_dict() if info.card_data else {}
    return {"license": card.get("license"), "language": card.get("language"), "revision": info.sha}


def fetch_reports(repo_id: str, revision: str | None = None) -> tuple[Path, ...]:
    """Local copies of the reports in a dataset repo; () where it has none, or the Hub does not answer."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        with _hub_errors(repo_id):
            names = set(api.list_repo_files(repo_id, repo_type="dataset", revision=revision))
            return _reports(api, repo_id, names, revision)
    except HubError:
        return ()


def _reports(api: HfApi, repo_id: str, names: set[str], revision: str | None) -> tuple[Path, ...]:
    found = sorted(name for name in names if re.fullmatch(r"reports/[^/]+/report\.json", name))
    return tuple(Path(api.hf_hub_download(repo_id, name, repo_type="dataset", revision=revision)) for name in found)


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    tag: str,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    parent_commit: str | None = None,
    other_students: bool = False,
    added_to: str = "",
    stale: Sequence[str] = (),
) -> str:
    """Put the folder's files into the dataset repo in one commit, and tag it; files of an earlier run in the same folders go
    with it, but for those in `added_to`, the folders `stale` too, and with `overwrite` all other tables and reports.

    Creates the repo and the branch `revision` where they do not exist. Returns the commit's or pull request's URL. Raises
    HubError, also where the repo is no longer at `parent_commit`, or where `other_students` selected from other candidates than
    the folder's: their scores would be parallel to nothing.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in files}
    with _hub_errors(repo_id):
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if revision:
            api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
        if other_students and not _same_candidates(api, repo_id, folder, revision):
            raise HubError(
                f"{repo_id} holds the selection of another student from other candidates.",
                "Push to another repo, or pass --overwrite to replace everything in it.",
            )
        folders = {name.rpartition("/")[0] for name in names if "/" in name} - {added_to} | set(stale)
        gone = _gone(api, repo_id, names, None if overwrite else folders, revision)
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files),
                *(CommitOperationDelete(name) for name in gone),
            ],
            commit_message=message,
            repo_type="dataset",
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent_commit,
        )
    if not commit.pr_url:
        _tag(api, repo_id, tag, commit.oid)
    return commit.pr_url or commit.commit_url


def _tag(api: HfApi, repo_id: str, name: str, commit: str) -> None:
    """Tag a commit, the second of this name with "-2" at its end. Where that fails the data is there, so it is only said."""
    try:
        with _hub_errors(repo_id):
            tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id, repo_type="dataset").tags}
            if commit in tags.values():
                return  # nothing had changed, so this is an earlier push's commit
            free = next(tag for n in count(1) if (tag := name if n == 1 else f"{name}-{n}") not in tags)
            api.create_tag(repo_id, repo_type="dataset", tag=free, revision=commit)
    except HubError as error:
        warnings.warn(f"The push is done but has no tag: {error}", stacklevel=2)


def _same_candidates(api: HfApi, repo_id: str, folder: Path, revision: str | None) -> bool:
    """Whether the repo's candidates are, byte for byte, the folder's."""
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(repo_id, "candidates", repo_type="dataset", revision=revision)
    remote = {entry.path: entry.lfs.sha256 for entry in entries if isinstance(entry, RepoFile) and entry.lfs}
    local = {path: digest for path, digest in _tables(folder).items() if path.startswith("candidates/")}
    return remote == local


def _gone(api: HfApi, repo_id: str, names: set[str], folders: set[str] | None, revision: str | None) -> list[str]:
    """Tables and reports on the Hub that the new version does not have: in these folders, or with None anywhere."""
    present = api.list_repo_files(repo_id, repo_type="dataset", revision=revision)
    ours = [name for name in present if name.endswith(".parquet") or name.startswith("reports/")]
    return [name for name in ours if name not in names and (folders is None or name.rpartition("/")[0] in folders)]


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """The border where the Hub client's errors become HubError."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    from srt_hf.network import HUB_AWAY, HUB_REFUSED

    login = "Log in with `hf auth login` or set HF_TOKEN to a token with write access."
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise HubError("There is no Hub token.", login) from error
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no repo name.", "Write it as USER/NAME or ORG/NAME.") from error
    except HUB_REFUSED as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise HubError(f"The Hub does not accept this token for {repo_id} ({status}).", login) from error
        if status == 412:
            raise HubError(f"{repo_id} was changed by somebody else at the same moment.", "Push again.") from error
        words = getattr(error, "server_message", None) or error
        raise HubError(f"The Hub refused {repo_id}: {words}.") from error
    except OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be pushed.", "Unset it for this run.") from error
    except RuntimeError as error:  # before 1.0 the client wraps what the upload of a file met
        if not isinstance(error.__cause__, (*HUB_REFUSED, *HUB_AWAY)):
            raise
        raise HubError(f"The upload to {repo_id} broke off: {error}", "Push again; nothing is lost.") from error
    except HUB_AWAY as error:
        raise HubError(f"The Hub cannot be reached ({type(error).__name__}).", "Push again later; nothing is lost.") from error
