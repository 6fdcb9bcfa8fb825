# Targets: quickstart, docs, test, test-all, test-faults, test-gpu, test-matrix, coverage, mutants, parity, lint, format, clean.
# PYTHON chooses the interpreter, VENV the folder.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Huge pages for XLA's buffers, on Linux: docs/performance.md.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart docs test test-all test-faults test-gpu test-matrix coverage mutants parity lint format clean

quickstart: $(VENV)/installed
	$(BIN)/python experiments/reproduce.py --table=quickstart

# The fast tier: five minutes on two cores from an empty compilation cache.
test: lint
	$(BIN)/pytest

# Every test, with short budgets. Oracles that are not installed are skipped: `make parity`, and Chromium from the system.
test-all: lint docs
	$(BIN)/pytest -m ''

# The pages in docs as a site, in build/site; a broken link or reference is an error. To read it: mkdocs serve.
docs: $(VENV)/installed-test
	$(BIN)/mkdocs build --strict --quiet

# Faults, kills and damaged inputs, with long budgets: by hand, some ten minutes.
test-faults: $(VENV)/installed-test
	$(BIN)/pytest -m faults --long

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# PyTorch, torchvision and timm, which `make test-all` compares with.
parity: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,docs,parity]'

# Line and branch coverage of grafit_jax and of experiments' study and sweeps, subprocesses included: of `make test`, then of `make test-all`.
coverage: $(VENV)/installed-test
	rm -rf build/coverage && mkdir -p build/coverage
	COVERAGE_FILE=build/coverage/fast $(BIN)/pytest --cov --cov-report=
	COVERAGE_FILE=build/coverage/slow $(BIN)/pytest -m slow --cov --cov-report=
	$(BIN)/coverage combine --keep --quiet --data-file=build/coverage/all build/coverage/fast build/coverage/slow
	$(BIN)/python tests/coverage_totals.py build/coverage/fast build/coverage/all

# Small faults put into the product, one at a time: the fast tier has to notice them.
mutants: $(VENV)/installed-test
	$(BIN)/python tests/mutants.py

# What one accelerator computes, against the same oracles, in the environment that has JAX for it (PYTHON): no TensorFlow.
ON_ACCELERATOR = losses losses_queue losses_sharded memory metrics neighbors clustering evaluation image_ops auto_augment augment \
  models train_step train_step_queue
test-gpu:
	GRAFIT_TEST_ACCELERATOR=1 XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=--xla_gpu_deterministic_ops=true \
	  $(PYTHON) -m pytest --numprocesses=8 \
	  -m 'not eight_devices and not faults' $(ON_ACCELERATOR:%=tests/test_%.py)

# Every supported Python that pyenv has; each in a virtual environment of its own.
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
