"""The package as a whole: import time and laziness, the direction of imports, docstrings, the error tree, the wheel."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import pickle
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import srt_hf
from srt_hf import errors

# A module may import from the layers above its own line, never from its own or a later one.
LAYERS = [
    {"errors", "schema"},
    {"prompts", "parsing", "metrics", "journal", "identity", "network", "agreement"},
    {"teacher", "student", "selection", "rows"},
    {"reflection", "report", "scoring", "sources", "cli", "checks", "plots", "handwritten"},
    {"card", "hub", "live", "estimate", "training", "look", "annotation"},
    {"published", "viewer", "model_card", "arguments", "cluster"},
    {"result", "evaluation"},
    {"pipeline", "review"},
    {"ablation", "run_arguments", "shards"},
]


def test_import_is_lazy_and_quick() -> None:
    program = (
        "import sys, time; start = time.perf_counter(); import srt_hf; seconds = time.perf_counter() - start\n"
        "heavy = ('torch', 'datasets', 'trl', 'argilla', 'transformers')\n"
        "import json; print(json.dumps([seconds, [name for name in heavy if name in sys.modules]]))"
    )
    best, loaded = min(json.loads(subprocess.check_output([sys.executable, "-c", program])) for _ in range(3))
    assert best < 0.2 and loaded == []


def _imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, by their first name below srt_hf; typing-only imports left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "srt_hf":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("srt_hf.")}
    return found


def test_imports_go_downwards_only() -> None:
    package = Path(srt_hf.__file__).parent
    level = {name: n for n, names in enumerate(LAYERS) for name in names}
    for path in package.rglob("*.py"):
        name = path.relative_to(package).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        assert name in level, f"{name} has no layer"
        for imported in _imports(path) - {name}:
            assert level[imported] < level[name], f"{path.relative_to(package)} imports {imported}, which is not below it"


def test_scripts_do_not_import_each_other_and_stay_short() -> None:
    scripts = sorted((ROOT / "scripts").glob("*.py"))
    names = {script.stem for script in scripts}
    for script in scripts:
        text = script.read_text()
        imported = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names}
        assert not imported & names
        assert len(text.splitlines()) < 175, script.name


@pytest.mark.parametrize("name", sorted(info.name for info in pkgutil.walk_packages(srt_hf.__path__, "srt_hf.")))
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def _tree(cls: type) -> list[type]:
    return [cls, *(sub for child in cls.__subclasses__() for sub in _tree(child))]


@pytest.mark.parametrize("cls", _tree(errors.SrtError))
def test_every_error_survives_pickling_and_is_in_the_drawing(cls: type) -> None:
    error = cls("what is wrong.", "code") if cls is errors.RequestFailed else cls("what is wrong.", "The cure.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls and str(again) == str(error) and again.__dict__ == error.__dict__
    assert cls.__name__ in (errors.__doc__ or "")


@pytest.mark.slow
def test_the_wheel_works_outside_the_source_tree(tmp_path: Path) -> None:
    """Built with the project's own backend and unpacked elsewhere: templates and type marker are in it."""
    source = tmp_path / "source"  # a copy, so that nothing is left in the tree and nothing left there gets in
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "demo-output"))
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(tmp_path / "site"), str(wheel)], check=True
    )
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import srt_hf; from srt_hf.card import CardData, render, template_path\n"
        "from srt_hf.report import Report\n"
        "assert srt_hf.__file__.startswith(sys.argv[1]), srt_hf.__file__\n"
        "names = ('model_card.md', 'report.html', 'report.css', 'report.js', 'citation.bib')\n"
        "assert all(template_path(name).is_file() for name in names)\n"
        "print(render(CardData('rows', 'org/rows', [Report('selective', 'paper', 'reflected')])))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path / "site")], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0 and run.stdout.startswith("---") and "pretty_name: rows" in run.stdout, run.stderr
    assert (tmp_path / "site" / "srt_hf" / "py.typed").is_file()
