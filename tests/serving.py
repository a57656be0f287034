"""`transformers serve` of a model folder, a real server on a real socket."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import transformers


@contextmanager
def transformers_serve(folder: Path, log: Path) -> Iterator[str]:
    """Serve `folder` until the end of the block -> the server's URL. log: file of what it prints. Skips the test where the
    installed transformers cannot."""
    if transformers.__version__.startswith("4."):
        pytest.skip(f"`transformers serve FOLDER` needs transformers 5; this is {transformers.__version__}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    executable = str(Path(sys.executable).parent / "transformers")
    with log.open("wb") as file:
        command = [executable, "serve", str(folder), "--port", str(port), "--device", "cpu"]
        server = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        _wait(server, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(240):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, log.read_text()
        time.sleep(0.5)
    raise AssertionError("the server did not start")
