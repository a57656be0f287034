"""Shared fixtures. The environment is set before any Hugging Face library is imported: nothing is downloaded, nothing is sent
anywhere but to loopback, and no test sees the caches or the token of the person who runs it."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

_HOME = tempfile.TemporaryDirectory(prefix="srt_hf-tests-")
SECRET = "hf_secretOfTheTests"
os.environ.update(
    HF_HOME=_HOME.name,
    HF_TOKEN=SECRET,
    HF_ENDPOINT="http://127.0.0.1:9",  # nobody listens there: whatever tries to reach the Hub fails at once
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
    HF_UPDATE_DOWNLOAD_COUNTS="0",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # tiny models: a second thread costs more than it gives, above all beside other processes
)
for name in [name for name in os.environ if name.startswith("SRT_HF_")]:
    del os.environ[name]
sys.path.insert(0, str(Path(__file__).parent))

import pytest  # noqa: E402
from hub_server import LocalHub, point_at  # noqa: E402
from tgi_server import LocalTGI  # noqa: E402

if TYPE_CHECKING:
    from argilla_server import LocalArgilla
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture
def tgi() -> Iterator[LocalTGI]:
    with LocalTGI() as server:
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A local Hub, and this process's clients pointed at it."""
    with LocalHub() as server:
        point_at(monkeypatch, server.url, tmp_path / "hub-home")
        yield server


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a script of scripts/ in this process: name, arguments -> (exit code, stdout, stderr)."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"scripts/{name}", *map(str, arguments)])
        monkeypatch.setattr("warnings.showwarning", None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        return (int(stop.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def local_argilla() -> Iterator[LocalArgilla]:
    from argilla_server import LocalArgilla

    with LocalArgilla() as server:
        yield server


@pytest.fixture
def argilla(local_argilla: LocalArgilla) -> LocalArgilla:
    """A real Argilla server, running: for the tests of `make test-review`."""
    return local_argilla.ready()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; without one, whatever needs it is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def teacher(tgi: LocalTGI, tmp_path: Path):  # type: ignore[no-untyped-def]
    from srt_hf import Teacher

    return Teacher(tgi.url, journal=tmp_path / "journal.sqlite")


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Llama with a Llama-like tokenizer."""
    from tiny_models import make_llama

    folder = tmp_path_factory.mktemp("student")
    make_llama(folder)
    return str(folder)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real rows and published scores, which is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not here")
    return SHARED
