# Targets: quickstart, docs, test, test-all, test-faults, test-gpu, test-matrix, coverage, mutants, parity, lint, format, clean.
# PYTHON chooses the interpreter, VENV the folder.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Large pages for XLA's buffers in the tests, on Linux: docs/performance.md. Commands set it themselves.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart docs test test-all test-faults test-gpu test-matrix coverage mutants parity lint format clean

quickstart: $(VENV)/installed
	$(BIN)/python experiments/reproduce.py --table=quickstart

# Linters and the fast tests: five minutes on two cores from an empty compilation cache.
test: lint
	$(BIN)/pytest

# Every test, and the docs. Tests whose references are not installed are skipped: see `make parity`; Chromium is the system's.
test-all: lint docs
	$(BIN)/pytest -m ''

# Builds the pages in docs as a site in build/site; a broken link is an error. `mkdocs serve` shows it.
docs: $(VENV)/installed-test
	$(BIN)/mkdocs build --strict --quiet

# Fault, kill and fuzz tests with long budgets; about ten minutes.
test-faults: $(VENV)/installed-test
	$(BIN)/pytest -m faults --long

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Installs PyTorch, torchvision and timm, which `make test-all` compares with.
parity: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,docs,parity]'

# Line and branch coverage, including subprocesses, of `make test` and of `make test-all`.
coverage: $(VENV)/installed-test
	rm -rf build/coverage && mkdir -p build/coverage
	COVERAGE_FILE=build/coverage/fast $(BIN)/pytest --cov --cov-report=
	COVERAGE_FILE=build/coverage/slow $(BIN)/pytest -m slow --cov --cov-report=
	$(BIN)/coverage combine --keep --quiet --data-file=build/coverage/all build/coverage/fast build/coverage/slow
	for tier in fast all; do echo $$tier; $(BIN)/coverage report --data-file=build/coverage/$$tier | tail -n 1; done

# Inserts faults into the code, one at a time; the fast tests must detect them.
mutants: $(VENV)/installed-test
	$(BIN)/python tests/mutants.py

# The numerical tests on one accelerator, with the JAX of PYTHON; no TensorFlow needed.
ON_ACCELERATOR = losses queue_losses losses_sharded memory metrics neighbors clustering evaluation image_ops auto_augment augment \
  models train_step train_step_queue
test-gpu:
	GRAFIT_TEST_ACCELERATOR=1 XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=--xla_gpu_deterministic_ops=true \
	  $(PYTHON) -m pytest --numprocesses=8 \
	  -m 'not eight_devices and not faults' $(ON_ACCELERATOR:%=tests/test_%.py)

# The fast tests on every supported Python of pyenv, each in its own virtual environment.
test-matrix:
	for v in 3.11 3.12 3.13; do \
	  $(MAKE) test PYTHON=$$(ls -d $$HOME/.pyenv/versions/$$v.*/bin/python | tail -n 1) VENV=.venv-$$v || exit 1; \
	done

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* build *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-test: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,docs]'
	touch $(VENV)/installed $@
