"""The inline metadata (PEP 723) of every script: what `uv run` and `hf jobs uv run` read, held against pyproject.toml."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
# The reference expression of PEP 723, https://peps.python.org/pep-0723/
BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
# Where a package is imported by another name than it is installed by.
IMPORTED_AS = {"pyyaml": "yaml", "huggingface-hub": "huggingface_hub"}
# What they bring with them and we use: datasets, transformers, trl, jinja2, and huggingface_hub, which changed its HTTP library.
BROUGHT = {"pyarrow", "tqdm", "multiprocess", "aiohttp", "tokenizers", "accelerate", "markupsafe", "httpx", "requests"}
# Its client needs an environment of its own (huggingface_hub < 1), which no header can have beside the rest.
APART = {"text_generation"}


def metadata(script: Path) -> dict[str, Any]:
    blocks = [match for match in BLOCK.finditer(script.read_text()) if match["type"] == "script"]
    assert len(blocks) == 1, f"{script.name} has {len(blocks)} blocks of inline metadata"
    lines = blocks[0]["content"].splitlines()
    return tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def import_names(requirements: list[str]) -> set[str]:
    names = {re.split(r"[\[<>=;~! ]", one)[0].lower() for one in requirements}
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def extras_of(script: Path) -> set[str]:
    [requirement] = metadata(script)["dependencies"]
    found = re.fullmatch(r"srt_hf(?:\[([\w,]+)\])?", requirement)
    assert found, requirement
    return set(filter(None, (found[1] or "").split(",")))


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Modules that a file imports: foreign packages anywhere in it, and of ours those that are imported with it."""
    tree = ast.parse(path.read_text())
    apart = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(node) for block in apart for node in ast.walk(block)}
    foreign, ours = set(), set()
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        if names[0].split(".")[0] != "srt_hf":
            foreign |= {name.split(".")[0] for name in names}
        elif node.col_offset == 0:
            more = [f"{names[0]}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            ours |= {*names, *more}
    return foreign, ours


def source_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def needed(script: Path) -> set[str]:
    """Foreign packages that a script and what it imports of ours import, the modules of its subcommands among them."""
    text = script.read_text()
    dispatched = re.findall(r'import_module\(f"(srt_hf\.\w+)\.', text)
    waiting = [script, *(file for package in dispatched for file in (ROOT / package.replace(".", "/")).glob("*.py"))]
    # Names of the package itself are imported on first use: `srt_hf.recycle` is that of srt_hf.pipeline.
    import srt_hf

    used = set(re.findall(r"\bsrt_hf\.(\w+)", text)) & set(srt_hf._HOME)
    waiting += [file for name in used if (file := source_of(f"srt_hf.{srt_hf._HOME[name]}"))]
    seen, found = set(), set()
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            foreign, ours = imports(file)
            found |= foreign
            waiting += [source for module in ours if (source := source_of(module))]
    return found - set(sys.stdlib_module_names) - {"srt_hf", "__future__"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_header_says_what_pyproject_says(script: Path) -> None:
    found, about = metadata(script), project()
    assert set(found) == {"requires-python", "dependencies"}
    assert found["requires-python"] == about["requires-python"]
    assert about["name"] == "srt_hf" and extras_of(script) <= set(about["optional-dependencies"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_header_has_what_the_script_imports(script: Path) -> None:
    about = project()
    installed = import_names(about["dependencies"]) | BROUGHT | APART
    for extra in extras_of(script):
        installed |= import_names(about["optional-dependencies"][extra])
    assert needed(script) - installed == set()


def test_the_closure_of_imports_finds_what_it_should() -> None:
    """Else the test above would pass for anything."""
    by_name = {script.stem: needed(script) for script in SCRIPTS}
    assert "lm_eval" in by_name["evaluate"] and "sentence_transformers" in by_name["ablate"] and "trl" in by_name["train_sft"]
    assert {"torch", "datasets"} <= by_name["recycle_and_push"] & by_name["merge"]
    assert "ray" in extras_of(ROOT / "scripts" / "recycle_and_push.py")  # for --engine ray, which is imported when it is chosen


def test_a_job_gets_script_dependencies_secrets_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `hf jobs uv run` sends, as the README types it: the installed huggingface_hub's own dry run, which submits nothing."""
    pytest.importorskip("huggingface_hub.cli._uv_script_header", reason="huggingface_hub < 2 has no such jobs")
    command = [
        *("jobs", "uv", "run", "--dry-run", "--flavor", "a100-large", "--secrets", "HF_TOKEN", "--timeout", "8h"),
        *(str(ROOT / "scripts" / "recycle_and_push.py"), "--", "--dataset", "org/rows", "--timeout", "60"),
    ]
    run = subprocess.run(
        [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", *command], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    told = dict(line.split(None, 1) for line in run.stdout.splitlines() if line.startswith("  "))
    assert told["flavor"] == "a100-large" and told["timeout"] == "8h" and told["secrets"] == "HF_TOKEN=***"
    # Without the two dashes the job would take the script's --timeout for its own.
    assert told["args"] == "--dataset org/rows --timeout 60" and json.dumps(run.stdout).count("hf_") == 0


def test_a_job_before_a_release_runs_python_on_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package from its repository: a plain name in a header that no index knows would stop uv, --with or not."""
    from huggingface_hub import HfApi

    if not hasattr(HfApi, "_upload_scripts_to_bucket"):
        pytest.skip("this huggingface_hub sends a job's files in another way")
    make: Any = HfApi._create_uv_command_env_and_secrets
    sent: dict[str, Any] = {}
    monkeypatch.setattr(HfApi, "_upload_scripts_to_bucket", lambda self, **options: sent.update(options) or [])
    script, package = str(ROOT / "scripts" / "recycle_and_push.py"), "srt_hf @ git+https://github.com/ORG/REPO"
    options: dict[str, Any] = dict.fromkeys(("python", "env", "token", "volumes"))
    command, *_ = make(
        HfApi(),
        script="python",
        script_args=[script, "--dataset", "org/rows"],
        dependencies=[package],
        secrets={"HF_TOKEN": "x"},
        namespace="me",
        **options,
    )
    assert command == ["uv", "run", "--with", package, "python", "/data/recycle_and_push.py", "--dataset", "org/rows"]
    assert sent["remote_to_local_file_names"] == {"recycle_and_push.py": script}
