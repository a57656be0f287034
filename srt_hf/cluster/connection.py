"""The way to a Ray cluster, and what it holds. The border where Ray's errors become ours."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from srt_hf.errors import ClusterError, ConfigError
from srt_hf.identity import brief

_ANSWERS = 5.0  # seconds that a cluster may take to accept a connection
_LOOK, _FAILURES = 2.0, 5  # seconds between looks whether the head is there, and how often it may be away
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
logger = logging.getLogger("srt_hf")

LOCAL = "local"  # a cluster of this machine alone, started for the run


class Places(NamedTuple):
    """Where students run: so many, each with `resources` (options of a Ray actor)."""

    students: int
    resources: dict[str, int]


def check_installed() -> None:
    """Raises ConfigError where Ray is not installed."""
    if not find_spec("ray"):
        raise ConfigError("The engine ray needs Ray.", "Install it: pip install 'srt_hf[ray]'.")


def connect(address: str | None) -> bool:
    """Connect this process to a cluster, unless it is connected; whether it was not.

    address: HOST:PORT or "auto" (one that runs on this machine); None for what RAY_ADDRESS names, else "local", which starts one.
    Raises ConfigError or ClusterError.
    """
    check_installed()
    # Before the first import, since Ray reads them there: nothing is reported to anybody, its core is silent, and what listens
    # at the address and is no cluster is waited for once, not for ten minutes.
    for name, value in (("USAGE_STATS_ENABLED", "0"), ("BACKEND_LOG_LEVEL", "fatal"), ("gcs_server_port_wait_time_s", "1")):
        os.environ.setdefault(f"RAY_{name}", value)
    import ray

    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    _check_address(address)
    own: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == LOCAL else {}
    try:
        with _no_stderr():
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        ray.shutdown()  # it may be connected by half
        raise _failed(address, error) from error
    _silence()
    return True


def _check_address(address: str) -> None:
    if address.startswith("ray://"):
        raise ConfigError(
            f"{address} leads into a cluster from outside, and the journal would be there and not here.",
            "Run the command on a node of the cluster (`ray job submit` does) and give HOST:PORT or auto.",
        )
    host, colon, port = address.rpartition(":")
    if address in (LOCAL, "auto"):
        return
    if not colon or not port.isdigit():
        raise ConfigError(f"{address!r} is no address of a Ray cluster.", "Give HOST:PORT as `ray start` prints it, or auto.")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS).close()
    except (OSError, OverflowError) as error:
        cure = "Start one with `ray start --head`, or give its HOST:PORT (--ray_address)."
        raise ClusterError(f"No Ray cluster answers at {address}: {error}.", cure) from error


def _failed(address: str, error: Exception) -> ClusterError:
    said = " ".join(str(error).split()).rstrip(".")
    if said.startswith("Version mismatch"):
        return ClusterError(f"{said}.", "Run the command in the environment that the cluster was started from.")
    cure = "Start one with `ray start --head` on this machine, or give a node's HOST:PORT (--ray_address) there."
    if "RAY_AUTH_MODE" not in os.environ and Path("~/.ray/auth_token").expanduser().exists():
        cure += " If it was started with a token, as Ray does where ~/.ray/auth_token exists, set RAY_AUTH_MODE=token."
    return ClusterError(f"The Ray cluster at {address} cannot be used: {brief(error).rstrip('.')}.", cure)


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Ray's core, which is no Python, writes a line about its own log level there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _silence() -> None:
    """Ray Data tells of its plans, and Ray prints whatever it meets: what matters of it the run says itself."""
    import ray.data  # sets the levels that are changed here
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None  # there is no setting for it
    logging.getLogger(ray.data.__name__).setLevel(logging.CRITICAL + 1)


class HeadWatch(threading.Thread):
    """Tells where the cluster's head is gone: Ray waits for it, and then ends the process without a word. `stop` ends it."""

    def __init__(self) -> None:
        import ray

        super().__init__(daemon=True)
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._stopped = threading.Event()

    def run(self) -> None:
        failures = 0
        while failures < _FAILURES:
            if self._stopped.wait(_LOOK):
                return
            try:
                socket.create_connection(self._address, timeout=_ANSWERS).close()
                failures = 0
            except OSError:
                failures += 1
        where = ":".join(map(str, self._address))
        logger.error("The Ray cluster's head at %s is gone. What is saved stays; the same command goes on from there.", where)

    def stop(self) -> None:
        self._stopped.set()


def last_line(error: BaseException) -> str:
    """Of an error whose message is a traceback, maybe in colours: what it was."""
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def alive() -> dict[str, dict[str, float]]:
    """The cluster's nodes that live: id -> resources. Raises ClusterError where nobody tells any more."""
    import ray
    from ray.exceptions import RayError

    try:
        return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    except (RayError, RuntimeError, ConnectionError) as error:
        raise ClusterError(f"The Ray cluster does not answer any more: {brief(error)}", "The same command goes on.") from error


def places(device: str | None, wanted: int | None) -> Places:
    """Room for students: on GPUs, one each, where the cluster has any and `device` is not the CPU; else on CPUs.

    wanted: how many students, None for as many as there is room for. On CPUs that is one for each node, or several on nodes that
    are larger than the smallest. Raises ConfigError where there is no room.
    """
    nodes = alive()
    on_gpu = any(have.get("GPU") for have in nodes.values()) if device is None else device.startswith("cuda")
    resources = {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": _cores(nodes, wanted)}
    total = sum(room(resources).values())
    if not total:
        what = "GPU" if on_gpu else "CPU"
        raise ConfigError(f"The student needs a {what}, and no node of the Ray cluster has one.", f"Add a node with a {what}.")
    if wanted and wanted > total:
        raise ConfigError(f"The Ray cluster has room for {total} students, not for {wanted}.", "Give fewer (--students).")
    return Places(wanted or total, resources)


def _cores(nodes: dict[str, dict[str, float]], wanted: int | None) -> int:
    """The CPUs of one student: those of the smallest node, or fewer where more students are wanted than that leaves room for."""
    have = [int(resources.get("CPU", 0)) for resources in nodes.values()]
    size = min((count for count in have if count), default=1)
    while wanted and size > 1 and sum(count // size for count in have) < wanted:
        size -= 1
    return size


def room(resources: dict[str, int]) -> dict[str, int]:
    """Nodes with room for students that need so much -> for how many."""
    kind, size = ("GPU", 1) if "num_gpus" in resources else ("CPU", resources["num_cpus"])
    found = {node: int(have.get(kind, 0)) // size for node, have in alive().items()}
    return {node: count for node, count in found.items() if count}
