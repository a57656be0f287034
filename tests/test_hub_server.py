"""The local Hub against the real clients: what `huggingface_hub` and `datasets` push is what they get back."""

import http.client
import io
import subprocess
import sys
import threading

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import UPLOAD_WARNING, LocalHub, hub_environment, point_at
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub import errors as hf

from srt_hf.network import HUB_REFUSED

pytestmark = pytest.mark.filterwarnings(UPLOAD_WARNING)

REPO = "org/recycled"
CARD = """---
license: cc-by-nc-4.0
tags: [instruction-tuning]
configs:
- config_name: candidates
  data_files:
  - {split: train, path: candidates/train-*}
- config_name: student
  default: true
  data_files:
  - {split: train, path: student/train-*}
---
# Récycled — ünïcode, trailing blanks  \r
no newline at the end"""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LocalHub() as hub:
        point_at(monkeypatch, hub.url, tmp_path / "home")
        yield hub


def parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def add(**files):
    return [CommitOperationAdd(name.replace("__", "/").replace("_dot_", "."), data) for name, data in files.items()]


def commit(repo, operations, repo_type="dataset", **options):
    return HfApi().create_commit(repo, operations, commit_message="m", repo_type=repo_type, **options)


def test_two_configs_and_the_card_come_back(hub):
    candidates = [{"id": f"{i}", "candidates": [{"origin": "both", "text": "é" * i}]} for i in range(30)]
    student = [{"id": f"{i}", "instruction": "Say it.", "ifd": i / 7} for i in range(20)]
    files = {
        "README.md": CARD.encode(),
        "candidates/train-00000-of-00002.parquet": parquet(candidates[:15]),
        "candidates/train-00001-of-00002.parquet": parquet(candidates[15:]),
        "student/train-00000-of-00001.parquet": parquet(student),
    }
    api = HfApi()
    url = api.create_repo(REPO, repo_type="dataset")
    assert (url, url.repo_id, url.repo_type) == (f"{hub.url}/datasets/{REPO}", REPO, "dataset")
    info = commit(REPO, [CommitOperationAdd(path, data) for path, data in files.items()])
    repo = hub.repos["dataset", REPO]
    assert info.oid == repo.head().oid == api.dataset_info(REPO).sha
    assert {path: data for path, data in repo.files().items() if path != ".gitattributes"} == files
    assert [path for path, file in repo.head().files.items() if file.lfs] == list(files)[1:]

    assert datasets.get_dataset_config_names(REPO) == ["candidates", "student"]
    assert datasets.load_dataset(REPO, "candidates", split="train").to_list() == candidates
    assert datasets.load_dataset(REPO, "student", split="train").to_list() == student
    assert datasets.load_dataset(REPO, split="train", revision=info.oid).to_list() == student
    streamed = datasets.load_dataset(REPO, "candidates", split="train", streaming=True)
    assert list(streamed) == candidates
    with open(api.hf_hub_download(REPO, "README.md", repo_type="dataset"), "rb") as card:
        assert card.read() == CARD.encode()
    assert {request.headers.get("authorization") for request in hub.requests if "/lfs/" not in request.path} == {"Bearer hf_test"}


def test_push_to_hub(hub):
    first, second = datasets.Dataset.from_dict({"a": [1, 2, 3]}), datasets.Dataset.from_dict({"b": ["x", None]})
    first.push_to_hub(REPO, "one")
    second.push_to_hub(REPO, "two", private=True)
    assert not hub.repos["dataset", REPO].private  # as on the real Hub: an existing repo stays as it is
    assert datasets.get_dataset_config_names(REPO) == ["one", "two"]
    assert datasets.load_dataset(REPO, "one", split="train").to_list() == first.to_list()
    assert datasets.load_dataset(REPO, "two", split="train").to_list() == second.to_list()
    first.select([0]).push_to_hub(REPO, "one", num_shards=1)
    assert datasets.load_dataset(REPO, "one", split="train").to_list() == [{"a": 1}]
    assert len(hub.repos["dataset", REPO].commits) == 4  # the Hub's own first one, then one a push
    first.push_to_hub("unqualified")
    assert ("dataset", "tester/unqualified") in hub.repos


@pytest.mark.filterwarnings("ignore:It seems that you are about to commit a data file")  # Parquet in a model repo
def test_commits_refs_and_pull_requests(hub):
    api = HfApi()
    api.create_repo("org/model")
    api.create_repo("org/model", exist_ok=True)
    with pytest.raises(hf.HfHubHTTPError, match="409"):
        api.create_repo("org/model")
    base = commit("org/model", add(a_dot_txt=b"a", d__b_dot_txt=b"b", d__e__c_dot_parquet=b"PAR1\0"), "model").oid
    api.create_tag("org/model", tag="v1")
    api.create_branch("org/model", branch="wip/1", revision="v1")
    head = commit("org/model", [CommitOperationDelete("d/"), CommitOperationDelete("a.txt")], "model").oid
    assert api.list_repo_files("org/model") == [".gitattributes"]
    assert [c.commit_id for c in api.list_repo_commits("org/model")][:2] == [head, base]
    assert api.list_repo_files("org/model", revision="v1") == [".gitattributes", "a.txt", "d/b.txt", "d/e/c.parquet"]
    tree = api.list_repo_tree("org/model", "d", revision="wip/1", recursive=True, expand=True)
    assert [(e.path, e.last_commit.oid) for e in tree] == [(p, base) for p in ("d/b.txt", "d/e", "d/e/c.parquet")]
    assert [e.path for e in api.list_repo_tree("org/model", revision="v1")] == [".gitattributes", "a.txt", "d"]
    known = api.get_paths_info("org/model", ["d/e", "d/e/c.parquet", "none"], revision=base)
    assert [e.path for e in known] == ["d/e", "d/e/c.parquet"]
    assert known[1].lfs.size == 5

    with pytest.raises(hf.HfHubHTTPError, match="412"):
        commit("org/model", add(x=b"x"), "model", parent_commit=base)
    with pytest.raises(hf.EntryNotFoundError):
        commit("org/model", [CommitOperationDelete("none.txt")], "model")
    made = commit("org/model", add(x=b"x"), "model", create_pr=True)
    assert made.pr_revision == "refs/pr/1"
    assert made.pr_url == f"{hub.url}/org/model/discussions/1"
    commit("org/model", add(y=b"y"), "model", revision="refs/pr/1")
    assert api.list_repo_files("org/model", revision="refs/pr/1") == [".gitattributes", "x", "y"]
    assert api.list_repo_files("org/model") == [".gitattributes"]
    assert (
        commit("org/model", add(y=b"y"), "model", revision="refs/pr/1").oid
        == hub.repos["model", "org/model"].head("refs/pr/1").oid
    )  # nothing changed, nothing sent
    refs = api.list_repo_refs("org/model", include_pull_requests=True)
    names = [[ref.name for ref in kind] for kind in (refs.branches, refs.tags, refs.pull_requests)]
    assert names == [["main", "wip/1"], ["v1"], ["1"]]
    api.delete_branch("org/model", branch="wip/1")
    api.delete_tag("org/model", tag="v1")
    with pytest.raises(hf.RevisionNotFoundError):
        api.model_info("org/model", revision="v1")
    api.delete_repo("org/model")
    api.delete_repo("org/model", missing_ok=True)
    with pytest.raises(hf.RepositoryNotFoundError):
        api.model_info("org/model")


def test_who_may_do_what(hub):
    api, nobody, wrong = HfApi(), HfApi(token=False), HfApi(token="hf_wrong")
    assert api.whoami()["name"] == huggingface_hub.whoami()["name"] == "tester"
    api.create_repo(REPO, repo_type="dataset", private=True)
    assert api.dataset_info(REPO).private
    for stranger, error in (nobody, hf.RepositoryNotFoundError), (wrong, hf.HfHubHTTPError):
        with pytest.raises(error, match="401"):
            stranger.dataset_info(REPO)
        with pytest.raises(error, match="401"):
            stranger.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=REPO, repo_type="dataset")
        with pytest.raises(hf.HfHubHTTPError, match="401"):
            stranger.create_repo("org/other")
    with pytest.raises(HUB_REFUSED, match="Invalid user token"):
        wrong.whoami()
    with pytest.raises(datasets.exceptions.DatasetNotFoundError):
        datasets.load_dataset(REPO, token=False)
    api.update_repo_settings(REPO, repo_type="dataset", private=False)
    assert nobody.dataset_info(REPO).private is False
    with pytest.raises(hf.HfHubHTTPError, match="401"):
        nobody.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=REPO, repo_type="dataset")
    hub.forbidden.add("org")
    with pytest.raises(hf.HfHubHTTPError, match="403"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=REPO, repo_type="dataset")
    assert len(hub.repos["dataset", REPO].commits) == 1


def test_cards_are_validated(hub):
    HfApi().create_repo(REPO, repo_type="dataset")
    with pytest.raises(ValueError, match="Invalid metadata"):
        commit(REPO, add(README_dot_md=b"---\na: [1\n---\n"))
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        commit(REPO, add(README_dot_md=b"# No metadata\n"))
    commit(REPO, add(README_dot_md=CARD.encode()))
    info = HfApi().dataset_info(REPO, files_metadata=True)
    assert info.card_data.license == "cc-by-nc-4.0"
    assert info.tags == ["instruction-tuning", "license:cc-by-nc-4.0"]
    assert info.siblings[1].size == len(CARD.encode())


def test_reading_parts_and_what_is_missing(hub):
    api = HfApi()
    api.create_repo(REPO, repo_type="dataset")
    with pytest.raises(datasets.exceptions.DatasetNotFoundError):
        datasets.load_dataset("org/absent")
    with pytest.raises(datasets.exceptions.DatasetNotFoundError, match="Revision"):
        datasets.load_dataset(REPO, revision="absent")
    with pytest.raises(getattr(hf, "RemoteEntryNotFoundError", hf.EntryNotFoundError)):  # one class, before 1.0
        api.hf_hub_download(REPO, "absent.txt", repo_type="dataset")
    data = bytes(range(256)) * 100
    commit(REPO, add(d__x_dot_bin=data, empty=b""))
    files = HfFileSystem()
    assert files.cat_file(f"datasets/{REPO}/d/x.bin", start=1000, end=3000) == data[1000:3000]
    assert files.ls(f"datasets/{REPO}/d", detail=False) == [f"datasets/{REPO}/d/x.bin"]
    assert files.read_bytes(f"datasets/{REPO}/empty") == b""
    with pytest.raises(FileNotFoundError):
        files.ls(f"datasets/{REPO}/absent")
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))  # one connection, kept alive
    for method, asked, status, part in (
        ("GET", "bytes=-10", 206, data[-10:]),
        ("HEAD", "bytes=0-", 206, b""),
        ("GET", "bytes=25600-", 416, None),
        ("GET", "bytes=9-9", 206, data[9:10]),
    ):
        connection.request(method, f"/datasets/{REPO}/resolve/main/d/x.bin", headers={"Range": asked})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == status
        assert part is None or body == part
    connection.close()


def test_faults(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    HfApi().create_repo(REPO, repo_type="dataset")
    hub.fail_next("POST", "/commit/", 503)
    with pytest.raises(hf.HfHubHTTPError, match="503"):
        commit(REPO, add(x=b"x"))
    hub.fail_next("PUT", "/lfs/", 500, times=2)
    if not huggingface_hub.__version__.startswith("0."):  # which tries no POST again
        hub.fail_next("POST", "/preupload/", None)
    commit(REPO, add(x_dot_parquet=b"PAR1"))  # the client tries these again by itself
    assert sum(request.method == "PUT" for request in hub.requests) == 3
    hub.fail_next("POST", "/commit/", None, after=True)
    with pytest.raises(Exception, match=r"[Dd]isconnected"):
        commit(REPO, add(y=b"y"))
    before = len(hub.repos["dataset", REPO].commits)
    commit(REPO, add(y=b"y"))
    assert len(hub.repos["dataset", REPO].commits) == before  # it had arrived


def test_commits_at_once_lose_nothing(hub):
    HfApi().create_repo(REPO, repo_type="dataset")
    threads = [threading.Thread(target=commit, args=(REPO, add(**{f"f{i}_dot_parquet": b"%d" % i}))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"f{i}.parquet": b"%d" % i for i in range(8)}.items() <= hub.repos["dataset", REPO].files().items()


def test_subprocess(tmp_path, monkeypatch):
    """The same by environment alone, warnings as errors, and closing leaves no thread behind."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # must not reach the child
    code = """
import huggingface_hub as h
h.create_repo("org/p", private=True, repo_type="dataset")
h.upload_file(path_or_fileobj=b"PAR1", path_in_repo="a.parquet", repo_id="org/p", repo_type="dataset")
print(open(h.hf_hub_download("org/p", "a.parquet", repo_type="dataset")).read())
"""
    before = set(threading.enumerate())
    with LocalHub() as hub:
        command = [sys.executable, "-W", "error", "-W", UPLOAD_WARNING, "-c", code]
        run = subprocess.run(command, env=hub_environment(hub.url, tmp_path), capture_output=True, text=True)
        assert (run.stdout, run.returncode) == ("PAR1\n", 0), run.stderr
        assert hub.repos["dataset", "org/p"].private
        idle = http.client.HTTPConnection(hub.url.removeprefix("http://"))
        idle.connect()
    idle.close()
    assert set(threading.enumerate()) <= before
