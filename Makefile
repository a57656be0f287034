# Each target does all its own set-up. PYTHON picks the interpreter of the virtual environment.
PYTHON ?= python3
BIN := .venv/bin
TGI := .venv-tgi/bin
ARGILLA := .venv-argilla/bin

.PHONY: demo test test-tgi test-review check drills clean

demo: .venv/installed  ## the whole method on a toy, in two minutes
	$(BIN)/python scripts/demo.py

test: .venv/installed check  ## style, types and the fast tests
	$(BIN)/python -m pytest -m "not slow and not review"

test-tgi: .venv-tgi/installed  ## the fast tests on the oldest supported versions, which text-generation's client needs
	$(TGI)/python -m pytest -m "not slow and not review"

test-review: .venv/installed .venv-argilla/installed  ## review against a real Argilla server; as root it installs redis-server
	@command -v redis-server >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		{ apt-get update && apt-get install --yes --no-install-recommends redis-server; } >/dev/null; } || \
		{ echo "make test-review needs redis-server: install your system's package of it (Debian: redis-server)"; exit 1; }
	$(BIN)/python -m pytest -m review

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

.venv-argilla/installed: .ci/constraints-argilla.txt
	$(PYTHON) -m venv .venv-argilla
	$(ARGILLA)/python -m pip install --quiet --constraint .ci/constraints-argilla.txt argilla-server
	touch $@

clean:
	rm -rf .venv .venv-tgi .venv-argilla build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output
