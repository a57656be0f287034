"""A small Hugging Face Hub over HTTP for tests: in memory, on 127.0.0.1, for the real `datasets` and `huggingface_hub`.

    with LocalHub() as hub:
        env = hub_environment(hub.url, home)      # for a subprocess, or
        point_at(monkeypatch, hub.url, home)      # for the clients imported in this process

Uploads take the LFS road (`HF_HUB_DISABLE_XET=1`). Statuses and X-Error-Code headers are those from which the client
makes its exception classes. Over https a bare 401 makes a RepositoryNotFoundError; over http only the code does.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import yaml

FOREIGN = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_OFFLINE")
TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
LFS_NAME = re.compile(r"\.(parquet|arrow|bin|gz|zip|npy|npz|pt|safetensors|sqlite)$")
# For pytest.mark.filterwarnings: huggingface_hub 2.4 uploads LFS files in a way that its HTTP client calls deprecated.
UPLOAD_WARNING = "ignore:Use 'content=:DeprecationWarning"
BLOCK = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---(\r?\n|$)", re.DOTALL)  # the client's own idea of it


class Request(NamedTuple):
    method: str
    path: str  # with the query
    headers: HTTPMessage  # a mapping; names in any case


class Response(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        message = message.encode("ascii", "replace").decode().replace("\n", " ")  # as a header can hold it
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """git's name of what git would hold: the content, or the LFS pointer."""
        blob = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def pointer(self) -> bytes:
        spec = "version https://git-lfs.github.com/spec/v1"
        return f"{spec}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    def describe(self, id_key: str, sha_key: str) -> dict[str, Any]:
        """Size and ids; `tree` and the repo's info spell the keys differently."""
        lfs = {sha_key: self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return {"size": len(self.content), id_key: self.blob_id, **({"lfs": lfs} if self.lfs else {})}


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: Commit | None
    title: str
    message: str
    date: str
    files: dict[str, File] = field(repr=False)


@dataclass
class Repo:
    type: str
    id: str
    private: bool = False
    commits: list[Commit] = field(default_factory=list)  # of all branches, in order of arrival
    refs: dict[str, str] = field(default_factory=dict)  # refs/heads/main -> commit oid

    def head(self, revision: str = "main") -> Commit:
        """The commit that a branch, a tag, a full ref or a commit id names."""
        oid = next((self.refs[r] for p in ("", "refs/heads/", "refs/tags/") if (r := p + revision) in self.refs), None)
        for commit in self.commits:
            if commit.oid == oid or (oid is None and len(revision) >= 7 and commit.oid.startswith(revision)):
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: file.content for path, file in self.head(revision).files.items()}

    def commit(self, ref: str, parent: Commit | None, title: str, message: str, files: dict[str, File]) -> Commit:
        state = [self.type, self.id, len(self.commits), parent and parent.oid, title, message]
        state.append(sorted((path, file.blob_id) for path, file in files.items()))
        oid = hashlib.sha1(json.dumps(state).encode()).hexdigest()
        date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        self.commits.append(Commit(oid, parent, title, message, date, files))
        self.refs[ref] = oid
        return self.commits[-1]


def metadata(readme: bytes) -> dict[str, Any] | None:
    """The card's YAML block; None where there is none, 400 where it is broken."""
    block = BLOCK.match(readme.decode())
    try:
        data = yaml.safe_load(block[1]) if block else None
        if data is not None and not isinstance(data, dict):
            raise yaml.YAMLError("the metadata is not a mapping")
    except yaml.YAMLError as error:
        raise HubError(400, f"Invalid metadata in README.md: {error}") from error
    return data


def entry(path: str, commit: Commit, expand: bool) -> dict[str, Any]:
    """One file or folder as `tree` and `paths-info` show it."""

    def under(where: Commit) -> list[tuple[str, str]]:
        return [(p, f.blob_id) for p, f in sorted(where.files.items()) if p == path or p.startswith(f"{path}/")]

    if path in commit.files:
        answer = {"type": "file", "path": path, **commit.files[path].describe("oid", "oid")}
    else:
        oid = hashlib.sha1(json.dumps(under(commit)).encode()).hexdigest()
        answer = {"type": "directory", "path": path, "oid": oid, "size": 0}
    if expand:
        while commit.parent and under(commit.parent) == under(commit):
            commit = commit.parent
        answer["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": commit.date}
    return answer


def folders(files: Iterable[str]) -> set[str]:
    return {path[:i] for path in files for i, letter in enumerate(path) if letter == "/"}


def revision_and_path(rest: list[str]) -> tuple[str, str]:
    """refs/pr/1 may come as one quoted segment or as three."""
    n = 3 if len(rest) >= 3 and rest[0] == "refs" and rest[1] in ("pr", "convert") else 1
    return "/".join(rest[:n]), "/".join(rest[n:]).strip("/")


def reply(data: Any, status: int = 200, **headers: str) -> Response:
    return Response(status, json.dumps(data, default=str).encode(), {"Content-Type": "application/json", **headers})


class LocalHub:
    """`tokens`: those accepted, all of them `user`'s. `forbidden`: namespaces where `user` may not write (403).
    `requests`: everything received, in order. `repos`: {(type, id): Repo}. `url`: no slash at the end."""

    def __init__(self) -> None:
        self.user = "tester"
        self.tokens = {"hf_test"}
        self.forbidden: set[str] = set()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Request] = []
        self.lfs: dict[str, bytes] = {}  # uploaded objects by sha256
        self._faults: list[tuple[str, str, int | None, bool]] = []
        self._lock = threading.RLock()

    def __enter__(self) -> LocalHub:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fail_next(self, method: str, path_substring: str, status: int | None, times: int = 1, *, after: bool = False) -> None:
        """Answer the next `times` matching requests with `status`, or drop the connection where it is None.
        With `after` the request is first carried out, and only its answer is lost."""
        with self._lock:
            self._faults += [(method, path_substring, status, after)] * times

    def answer(self, request: Request, body: bytes) -> Response | None:
        """None: close the connection without a word."""
        with self._lock:
            self.requests.append(request)
            fault = next((f for f in self._faults if f[0] == request.method and f[1] in request.path), None)
            if not fault:
                return self._respond(request, body)
            self._faults.remove(fault)
            if fault[3]:
                self._respond(request, body)
            return reply({"error": "fail_next"}, fault[2]) if fault[2] else None

    def _respond(self, request: Request, body: bytes) -> Response:
        try:
            return self._route(request, body)
        except HubError as error:
            errors = {"error": str(error), "errors": [{"message": str(error)}], "warnings": []}
            return reply(errors, error.status, **error.headers)
        except Exception:  # a mistake in this file, or a request that it does not expect: the client shows it
            return reply({"error": traceback.format_exc()}, 501)  # and, unlike a 500, does not try it again

    def _route(self, request: Request, body: bytes) -> Response:
        raw, _, query = request.path.partition("?")
        parts = [unquote(part) for part in raw.strip("/").split("/")]
        if request.method == "PUT" and parts[0] == "lfs":  # like a presigned storage URL: no token
            if hashlib.sha256(body).hexdigest() != parts[1]:
                raise HubError(400, "The content does not have the sha256 it was announced with")
            self.lfs[parts[1]] = body
            return reply({})
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.tokens:  # for public repos too, as on the real Hub
            raise HubError(401, "Invalid credentials in Authorization header")
        known = bool(token)
        kind = parts.pop(0) if parts[0] in TYPES else "models"
        match [request.method, *parts]:
            case ["GET", "api", "whoami-v2"]:
                self._require(known)
                access = {"displayName": "test", "role": "write"}
                auth = {"type": "access_token", "accessToken": access}
                return reply({"type": "user", "name": self.user, "fullname": self.user, "orgs": [], "auth": auth})
            case ["POST", "api", "validate-yaml"]:
                warning = {"message": "empty or missing yaml metadata in repo card"}
                found = metadata(json.loads(body)["content"].encode())
                return reply({"errors": [], "warnings": [] if found else [warning]})
            case ["POST", "api", "repos", "create"] | ["DELETE", "api", "repos", "delete"]:
                self._require(known)
                return self._create_or_delete(request.method, json.loads(body))
            case [_, "api", plural, owner, name, *rest] if plural in TYPES:
                action, *rest = rest or ["revision", "main"]
                write = request.method != "GET" and action != "paths-info"
                repo = self._repo((TYPES[plural], f"{owner}/{name}"), known, write)
                return self._repo_api(request.method, repo, action, rest, query, body)
            case [_, "api", plural, _] if plural in TYPES:
                raise HubError(404, "Repository not found", "RepoNotFound")
            case ["POST", owner, name, "info", "lfs", "objects", "batch"]:
                self._repo((TYPES[kind], f"{owner}/{name.removesuffix('.git')}"), known, write=True)
                objects = [{"oid": o["oid"], "size": o["size"]} for o in json.loads(body)["objects"]]
                for o in (o for o in objects if o["oid"] not in self.lfs):
                    o["actions"] = {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}
                return reply({"transfer": "basic", "objects": objects})
            case ["GET" | "HEAD", owner, name, "resolve", *rest] if rest:
                repo = self._repo((TYPES[kind], f"{owner}/{name}"), known)
                return self._resolve(repo, *revision_and_path(rest), request.headers.get("Range"))
        raise HubError(404, f"Sorry, no such endpoint here: {request.method} {raw}")

    def _require(self, known: bool, code: str | None = None) -> None:
        if not known:
            raise HubError(401, "Invalid username or password.", code)

    def _require_rights(self, namespace: str) -> None:
        if namespace in self.forbidden:
            raise HubError(403, f"You don't have the rights to write under the namespace {namespace}")

    def _repo(self, key: tuple[str, str], known: bool, write: bool = False) -> Repo:
        repo = self.repos.get(key)
        if repo is None or repo.private or write:
            self._require(known, "RepoNotFound")
        if repo is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write:
            self._require_rights(repo.id.split("/")[0])
        return repo

    def _web(self, repo: Repo) -> str:
        return f"{self.url}/{'' if repo.type == 'model' else repo.type + 's/'}{repo.id}"

    def _create_or_delete(self, method: str, asked: dict[str, Any]) -> Response:
        namespace = asked.get("organization") or self.user
        key = (asked.get("type") or "model", f"{namespace}/{asked['name']}")
        self._require_rights(namespace)
        if method == "DELETE":
            self._repo(key, True)
            del self.repos[key]
            return reply({})
        if key in self.repos:
            said = f"You already created this {key[0]} repo"
            return reply({"error": said, "url": self._web(self.repos[key])}, 409, **{"X-Error-Message": said})
        private = asked.get("private") or asked.get("visibility") == "private"
        repo = self.repos[key] = Repo(*key, private=bool(private))
        attributes = File(b"*.parquet filter=lfs diff=lfs merge=lfs -text\n")
        repo.commit("refs/heads/main", None, "initial commit", "", {".gitattributes": attributes})
        return reply({"url": self._web(repo), "name": repo.id})

    def _repo_api(self, method: str, repo: Repo, action: str, rest: list[str], query: str, body: bytes) -> Response:
        options = {name: values[-1].lower() in ("true", "1") for name, values in parse_qs(query).items()}
        revision, path = revision_and_path(rest)
        match method, action:
            case "GET", "revision":
                return self._info(repo, repo.head(revision), options.get("blobs", False))
            case "GET", "tree":
                commit = repo.head(revision)
                inside = folders(commit.files)
                if path and path not in inside:
                    raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
                found = sorted(p for p in inside | set(commit.files) if not path or p.startswith(f"{path}/"))
                if not options.get("recursive"):
                    found = [p for p in found if p.rpartition("/")[0] == path]
                return reply([entry(p, commit, options.get("expand", False)) for p in found])
            case "POST", "paths-info":
                commit = repo.head(revision)
                form = parse_qs(body.decode())
                found = [p for p in form.get("paths", []) if p in commit.files or p in folders(commit.files)]
                return reply([entry(p, commit, form.get("expand") == ["true"]) for p in found])
            case "GET", "commits":
                commit, history = repo.head(revision), []
                while commit:
                    said = {"title": commit.title, "message": commit.message, "date": commit.date}
                    history.append({"id": commit.oid, "authors": [{"user": self.user}], **said})
                    commit = commit.parent
                return reply(history)
            case "GET", "refs":
                kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/", "converts": " "}
                answer: dict[str, list[Any]] = {kind: [] for kind in kinds}
                for kind, (ref, oid) in itertools.product(kinds, repo.refs.items()):
                    if ref.startswith(kinds[kind]):
                        answer[kind].append({"name": ref.removeprefix(kinds[kind]), "ref": ref, "targetCommit": oid})
                return reply(answer)
            case "POST", "branch" | "tag":
                asked = json.loads(body)
                name = f"refs/heads/{rest[0]}" if action == "branch" else f"refs/tags/{asked['tag']}"
                if name in repo.refs:
                    raise HubError(409, f"Reference {name} already exists")
                repo.refs[name] = repo.head(asked.get("startingPoint", "main") if action == "branch" else revision).oid
                return reply({})
            case "DELETE", "branch" | "tag":
                if not repo.refs.pop(f"refs/{'heads' if action == 'branch' else 'tags'}/{rest[0]}", None):
                    raise HubError(404, f"No {action} {rest[0]}", "RevisionNotFound")
                return reply({})
            case "PUT", "settings":
                asked = json.loads(body)
                repo.private = asked.get("private", asked.get("visibility", repo.private)) in (True, "private")
                return reply({"private": repo.private})
            case "POST", "preupload":
                return reply({"files": self._upload_modes(repo.head(revision), json.loads(body)["files"])})
            case "POST", "commit":
                lines = [json.loads(line) for line in body.split(b"\n") if line.strip()]
                return self._commit(repo, revision, lines, options.get("create_pr", False))
        raise HubError(404, f"Sorry, no such endpoint here: {method} {action}")

    def _info(self, repo: Repo, commit: Commit, blobs: bool) -> Response:
        card = metadata(commit.files["README.md"].content) if "README.md" in commit.files else None
        tags = list((card or {}).get("tags") or [])
        for key in ("license", "language", "size_categories", "task_categories"):
            values = (card or {}).get(key) or []
            tags += [f"{key}:{value}" for value in (values if isinstance(values, list) else [values])]
        details = {path: file.describe("blobId", "sha256") if blobs else {} for path, file in commit.files.items()}
        siblings = [{"rfilename": path, **details[path]} for path in sorted(details)]
        facts = {"id": repo.id, "author": repo.id.split("/")[0], "sha": commit.oid, "private": repo.private}
        dates = {"createdAt": repo.commits[0].date, "lastModified": commit.date}
        counts = {"gated": False, "disabled": False, "downloads": 0, "likes": 0}
        return reply({**facts, **dates, **counts, "tags": tags, "cardData": card or {}, "siblings": siblings})

    def _upload_modes(self, head: Commit, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answer = []
        for file in files:
            large = file["size"] > 10_000_000 or b"\0" in base64.b64decode(file["sample"])
            mode = "lfs" if large or LFS_NAME.search(file["path"]) else "regular"
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            if file["path"] in head.files:
                answer[-1]["oid"] = head.files[file["path"]].etag
        return answer

    def _commit(self, repo: Repo, revision: str, lines: list[dict[str, Any]], create_pr: bool) -> Response:
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = repo.head(revision)
        ref = revision if revision in repo.refs else f"refs/heads/{revision}"
        if ref not in repo.refs and not create_pr:
            raise HubError(400, f"{revision} is not a branch")
        if header.get("parentCommit") not in (None, parent.oid):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines:
            key, value = line["key"], line["value"]
            path = value.get("path", "")
            if key == "file":
                files[path] = File(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.lfs:
                    raise HubError(400, f"LFS pointer of {path} points to a file that does not exist")
                files[path] = File(self.lfs[value["oid"]], lfs=True)
            elif key in ("deletedFile", "deletedFolder"):
                folder = path.rstrip("/") + "/"
                gone = [p for p in files if p == path or (key == "deletedFolder" and p.startswith(folder))]
                if not gone:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                for p in gone:
                    del files[p]
        if "README.md" in files:
            metadata(files["README.md"].content)
        number = 1 + sum(r.startswith("refs/pr/") for r in repo.refs)
        ref = f"refs/pr/{number}" if create_pr else ref
        commit = repo.commit(ref, parent, header["summary"], header.get("description", ""), files)
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{self._web(repo)}/commit/{commit.oid}"}
        if create_pr:
            answer["pullRequestUrl"] = f"{self._web(repo)}/discussions/{number}"
        return reply(answer)

    def _resolve(self, repo: Repo, revision: str, path: str, wanted: str | None) -> Response:
        commit = repo.head(revision)
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit.oid})
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(file.content))}
        size = len(file.content)
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
        if not span or not any(span.groups()):
            return Response(200, file.content, headers)
        first, last = (int(n) if n else None for n in span.groups())
        first, last = (max(size - last, 0), size - 1) if first is None else (first, last)
        last = size - 1 if last is None else min(last, size - 1)
        if first > last:
            raise HubError(416, "Range not satisfiable", **{"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return Response(206, file.content[first : last + 1], headers)


class _Server(ThreadingHTTPServer):
    """Knows its open keep-alive connections, so that closing ends them and their threads at once."""

    hub: LocalHub
    request_queue_size = 64

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connections: dict[socket.socket, threading.Thread] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self.connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        self.connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not news."""

    def server_close(self) -> None:
        super().server_close()
        for connection, thread in list(self.connections.items()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for head and body
    disable_nagle_algorithm = True
    server: _Server

    def serve(self) -> None:
        request = Request(self.command, self.path, self.headers)
        response = self.server.hub.answer(request, self.body())
        if response is None:
            self.close_connection = True
            return
        self.send_response_only(response.status)
        for name, value in {**response.headers, "Content-Length": str(len(response.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `LocalHub.requests` is the log."""


def settings(url: str, home: str | os.PathLike[str]) -> dict[str, str]:
    ours = {"HF_ENDPOINT": url, "HF_TOKEN": "hf_test", "HF_HOME": os.fspath(home), "HF_HUB_DISABLE_XET": "1"}
    ours |= {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    ours |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    return ours | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def hub_environment(url: str, home: str | os.PathLike[str]) -> dict[str, str]:
    """The whole environment of a subprocess whose Hub is `url`; the caller's own HF_ variables do not reach it."""
    return {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)} | settings(url, home)


def point_at(monkeypatch: Any, url: str, home: str | os.PathLike[str]) -> None:
    """Make the clients of this process talk to `url` and keep everything under `home`, until monkeypatch undoes it.

    Both libraries read the environment at import and their own module attributes at every call, so these attributes are
    enough; the module-level functions of huggingface_hub share the one HfApi made at import."""
    import datasets.config
    import huggingface_hub
    from huggingface_hub import constants, file_download, hf_api

    home = os.fspath(home)
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)
    for name, value in settings(url, home).items():
        monkeypatch.setenv(name, value)
    hosts = getattr(constants, "HF_URL_HOSTS", frozenset()) | {"127.0.0.1"}
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    ours = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_URL_HOSTS": hosts, "HF_HOME": home}
    ours |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True}
    ours |= {"HF_HUB_CACHE": f"{home}/hub", "HUGGINGFACE_HUB_CACHE": f"{home}/hub", "HF_ASSETS_CACHE": f"{home}/assets"}
    ours |= {"HF_XET_CACHE": f"{home}/xet", "AGENT_HARNESSES_PATH": f"{home}/.agent_harnesses.json"}
    ours |= {"HF_TOKEN_PATH": f"{home}/token", "HF_STORED_TOKENS_PATH": f"{home}/stored_tokens"}
    for name, value in ours.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)  # a copy, before 1.0
    template = url + "/datasets/{repo_id}/resolve/{revision}/{path}"
    downloads = f"{home}/datasets/downloads"
    ours = {"HF_ENDPOINT": url, "HUB_DATASETS_URL": template, "HF_CACHE_HOME": home, "HF_MODULES_CACHE": f"{home}/modules"}
    ours |= {"HF_HUB_OFFLINE": False, "HF_DATASETS_OFFLINE": False, "HF_UPDATE_DOWNLOAD_COUNTS": False}
    ours |= {"USE_PARQUET_EXPORT": False}  # else it looks for the host datasets-server.127.0.0.1
    ours |= {"HF_DATASETS_CACHE": f"{home}/datasets", "DOWNLOADED_DATASETS_PATH": downloads}
    ours |= {"EXTRACTED_DATASETS_PATH": f"{downloads}/extracted"}
    for name, value in ours.items():
        monkeypatch.setattr(datasets.config, name, value, raising=False)
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    if hub := sys.modules.get("transformers.utils.hub"):  # transformers 5 keeps a client with the endpoint of its first use
        monkeypatch.setattr(hub, "_hf_api", None, raising=False)
    huggingface_hub.HfFileSystem.clear_instance_cache()  # it remembers listings by endpoint, and a port comes again
    getattr(huggingface_hub, "close_session", lambda: None)()  # a session keeps the proxies of when it was made
