# Each target does all its own set-up. PYTHON picks the interpreter of the virtual environment.
PYTHON ?= python3
BIN := .venv/bin
TGI := .venv-tgi/bin

.PHONY: demo test test-tgi check drills clean

demo: .venv/installed  ## the whole method on a toy, in two minutes
	$(BIN)/python scripts/demo.py

test: .venv/installed check  ## style, types and the fast tests
	$(BIN)/python -m pytest -m "not slow"

test-tgi: .venv-tgi/installed  ## the fast tests on the oldest supported versions, which text-generation's client needs
	$(TGI)/python -m pytest -m "not slow"

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

drills: .venv/installed  ## the long tests
	$(BIN)/python -m pytest -m slow

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,eval,coherence,ray,review]'
	touch $@

.venv-tgi/installed: pyproject.toml .ci/constraints-tgi.txt
	$(PYTHON) -m venv .venv-tgi
	$(TGI)/python -m pip install --quiet --constraint .ci/constraints-tgi.txt --editable '.[dev,tgi]'
	touch $@

clean:
	rm -rf .venv .venv-tgi build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output
