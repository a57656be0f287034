"""The only code that writes to the Hub: a folder that is exactly the repo, and one commit that puts it there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_hf.errors import HubError
from srt_hf.schema import REPO_TAG

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import HfApi

_SHARD_BYTES = 500_000_000
_NOT_CONTENT = {".gitattributes", "README.md"}


def write_table(dataset: Dataset, folder: Path) -> None:
    """Write a dataset as Parquet shards of at most about 500 MB (in Arrow), replacing what the folder held."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    shards = max(1, math.ceil(dataset.data.nbytes / _SHARD_BYTES))
    for n in range(shards):
        shard = dataset.shard(num_shards=shards, index=n, contiguous=True)
        shard.to_parquet(str(folder / f"train-{n:05d}-of-{shards:05d}.parquet"))


def check_target(repo_id: str, *, private: bool = False, overwrite: bool = False) -> list[dict[str, Any]]:
    """Make sure that `repo_id` may be written to, before anything is paid for, and return the configs on its card.

    Raises HubError for a wrong or missing token, a repo that this tool did not make (unless `overwrite`), or `private` asked
    of a repo that exists and is public.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with _hub_errors(repo_id):
        api.whoami()
        try:
            info = api.dataset_info(repo_id)
        except RepositoryNotFoundError:
            return []
        if private and not info.private:
            raise HubError(f"{repo_id} exists and is public.", "Make it private in its settings, or leave --private out.")
        content = {file.rfilename for file in info.siblings or []} - _NOT_CONTENT
        card = info.card_data.to_dict() if info.card_data else {}
        if content and REPO_TAG not in (card.get("tags") or []) and not overwrite:
            raise HubError(f"{repo_id} exists and was not made by this tool.", "Name another repo, or pass --overwrite.")
        return [config for config in card.get("configs") or [] if isinstance(config, dict)]


def push_folder(folder: Path, repo_id: str, *, message: str, private: bool = False, create_pr: bool = False) -> str:
    """Put the folder's files into the dataset repo in one commit; shards of an earlier run in the same configs go with it.

    Creates the repo where it does not exist. Returns the commit's or pull request's URL. Raises HubError.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in files}
    with _hub_errors(repo_id):
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        stale = _stale(api, repo_id, names)
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=message,
            repo_type="dataset",
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


def _stale(api: HfApi, repo_id: str, names: set[str]) -> list[str]:
    """Parquet files on the Hub in the folders that are written now, which the new version does not have."""
    folders = {name.rpartition("/")[0] for name in names if name.endswith(".parquet")}
    present = api.list_repo_files(repo_id, repo_type="dataset")
    return [name for name in present if name.endswith(".parquet") and name.rpartition("/")[0] in folders and name not in names]


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """The border where the Hub client's errors become HubError."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import httpx

    login = "Log in with `hf auth login` or set HF_TOKEN to a token with write access."
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise HubError("There is no Hub token.", login) from error
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no repo name.", "Write it as USER/NAME or ORG/NAME.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise HubError(f"The Hub does not accept this token for {repo_id} ({status}).", login) from error
        if status == 412:
            raise HubError(f"{repo_id} was changed by somebody else at the same moment.", "Push again.") from error
        raise HubError(f"The Hub refused {repo_id}: {error.server_message or error}.") from error
    except httpx.TransportError as error:
        raise HubError(f"The Hub cannot be reached ({type(error).__name__}).", "Push again later; nothing is lost.") from error
