"""A real Argilla on loopback for the tests of `make test-review`: argilla-server from `.venv-argilla`, SQLite, redis-server, and
elasticsearch_stand_in.py in place of the search index.

Nothing outlives the test run, however that ends: each process is held by a shell that kills it when its standard input closes. No
rq worker runs: argilla leaves to one only webhooks, the Hub, and the new status of records after a change of `min_submitted`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from elasticsearch_stand_in import ElasticsearchStandIn

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ENVIRONMENT = Path(__file__).parent.parent / ".venv-argilla"
WORKSPACE = "reviews"
OWNER, OWNER_KEY = "owner", "owner.apikey"
ANNOTATORS = {"ada": "ada.apikey", "bob": "bob.apikey", "eve": "eve.apikey"}  # username: API key
PASSWORD = "a password of the tests"  # everybody's, for the web page

# What `database migrate`, `database users create` and `start` do, in one process because it is the import that takes the time.
# All of it may be run again on the same database.
_SERVE = """
import asyncio, json, sys
import alembic.command, alembic.config, uvicorn
from argilla_server import app
from argilla_server.cli.database.users.create import _create
from argilla_server.database import async_engine
from argilla_server.models import UserRole

port, users, workspace, password = json.loads(sys.argv[1])

async def create_users():
    for name, role, key in users:
        await _create(name, name, UserRole(role), password, api_key=key, workspace=[workspace])
    await async_engine.dispose()  # its connections belong to this event loop

migrations = alembic.config.Config()
migrations.set_main_option("script_location", "argilla_server:alembic")
alembic.command.upgrade(migrations, "head")
asyncio.run(create_users())
uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
"""
# Ends with its command, and ends it when whoever holds the other end of standard input is gone.
_HELD = """
exec 3<&0
"$@" </dev/null 3<&- & held=$!
{ read -r _ <&3; kill -KILL $held; } 2>/dev/null & watch=$!
wait $held; code=$?
kill $watch 2>/dev/null
exit $code
"""


class LocalArgilla:
    """`with LocalArgilla() as argilla:` url, owner_key, annotator_keys (username: key), workspace; there are no datasets yet.

    `stop()` kills the server at once, `start()` brings it back at its address with its data; `stop_at_bulk(n)` kills it when it
    has committed the n-th batch of records from now on to its database, before it is indexed: the client gets no answer.
    """

    owner_key, annotator_keys, workspace = OWNER_KEY, ANNOTATORS, WORKSPACE

    def __enter__(self) -> LocalArgilla:
        self._folder = tempfile.TemporaryDirectory(prefix="srt_hf-argilla-")
        self._home = Path(self._folder.name)
        self._log = (self._home / "log.txt").open("ab")
        self._held: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self.search = ElasticsearchStandIn().__enter__()
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._held):
            self._end(name)
        self.search.__exit__()
        self._log.close()
        self._folder.cleanup()

    def _start_all(self) -> None:
        python, redis = ENVIRONMENT / "bin" / "python", shutil.which("redis-server")
        if not python.exists() or not redis:
            raise FileNotFoundError(f"{python if redis else 'redis-server'} is not here: `make test-review` installs it")
        self._python = str(python)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._hold(
            "redis", redis, "--port", "0", "--unixsocket", str(self._home / "redis"), "--save", "", "--dir", str(self._home)
        )
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers: a few seconds."""
        users = [(OWNER, "owner", OWNER_KEY), *((name, "annotator", key) for name, key in ANNOTATORS.items())]
        server = self._hold("server", self._python, "-c", _SERVE, json.dumps([self.port, users, WORKSPACE, PASSWORD]))
        until = time.monotonic() + 120
        while not self._answers():
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"argilla-server did not start:\n{self.log()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill the server, if it runs. Its database, the index and redis stay."""
        self._end("server")

    def stop_at_bulk(self, n: int) -> None:
        last = self.search.bulks + n

        def stop(bulk: int) -> None:
            if bulk == last:
                self.stop()
                raise ConnectionAbortedError("nobody waits for this batch to be indexed")

        self.search.on_bulk = stop

    def ready(self) -> LocalArgilla:
        """As a test wants to find it, whatever the test before has left: running, and not about to stop."""
        self.search.on_bulk = None
        if "server" not in self._held:
            self.start()
        return self

    def log(self) -> str:
        """The end of what its processes have printed."""
        return (self._home / "log.txt").read_text(errors="replace")[-8000:]

    def request(self, method: str, path: str, body: Any = None, *, key: str = OWNER_KEY) -> Any:
        """One call of its REST API as the user of `key`: method, path below /api/v1 -> what the JSON says."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Argilla-Api-Key": key, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read()
        return json.loads(text) if text else None

    def respond(self, record: object, user: str, values: dict[str, Any], status: str = "submitted") -> str:
        """A user's answer to a record (its id on the server): question name -> value. A second one changes the first.

        Returns the response's id. status: submitted, discarded or draft.
        """
        answer = {
            "values": {name: {"value": value} for name, value in values.items()},
            "status": status,
            "record_id": str(record),
        }
        (item,) = self.request("POST", "/me/responses/bulk", {"items": [answer]}, key=ANNOTATORS[user])["items"]
        if item["error"]:
            raise ValueError(item["error"]["detail"])
        return str(item["item"]["id"])

    def visit(self, browser: Browser, dataset: object, user: str) -> Page:
        """The page on which a user answers a dataset (its id on the server), in a fresh window, when the first record is there.
        Whatever of a record's text becomes a script may set `window.top.ran`."""
        page = browser.new_context(viewport={"width": 1500, "height": 1250}).new_page()
        page.goto(f"{self.url}/sign-in")
        page.fill("input[type=text]", user)
        page.fill("input[type=password]", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url: "sign-in" not in url)
        page.goto(f"{self.url}/dataset/{dataset}/annotation-mode")
        page.wait_for_selector("text=Submit")
        page.wait_for_selector(".markdown-render")
        return page

    def _answers(self) -> bool:
        try:
            return bool(self.request("GET", "/version"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def _environment(self) -> dict[str, str]:
        home = str(self._home)
        return {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "TMPDIR": home,  # it copies its web page there and leaves it
            "ARGILLA_HOME_PATH": home,
            "ARGILLA_ELASTICSEARCH": self.search.url,
            "ARGILLA_REDIS_URL": f"unix://{home}/redis",
            "ARGILLA_AUTH_SECRET_KEY": "the same after a restart, so that who is logged in stays so",
            "HF_HUB_DISABLE_TELEMETRY": "1",  # argilla asks this one too
            "HF_HUB_OFFLINE": "1",
        }

    def _hold(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        log: IO[bytes] = self._log
        self._held[name] = subprocess.Popen(
            ["sh", "-c", _HELD, "sh", *command],
            cwd=self._home,
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for pytest, which then ends the rest in order
        )
        return self._held[name]

    def _end(self, name: str) -> None:
        with self._lock:  # a test and `stop_at_bulk` may both want it
            if process := self._held.pop(name, None):
                assert process.stdin
                process.stdin.close()
                process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
