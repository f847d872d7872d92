# `make train` and `make test` are all a newcomer needs; both work from a bare Python 3.11.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/math.toml
READY := $(VENV)/.ready
VLLM_VENV ?= .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready

.PHONY: train test test-vllm check format figures bench install clean

train: install
	$(BIN)/tpcli train $(RECIPE)

# One test at a time a core; most of the time goes into training runs of one thread.
test: install
	$(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist worksteal

# vLLM for CPUs in an environment of its own: 4 GB, and some minutes the first time. Compilation
# costs more than it saves on models this small.
test-vllm: $(VLLM_READY)
	TORCHDYNAMO_DISABLE=1 $(VLLM_VENV)/bin/python -m pytest tests/vllm_real tests/rollout/test_vllm_requests.py tests/rollout/test_vllm_client.py

check: install
	$(BIN)/ruff check src tests docs
	$(BIN)/ruff format --check src tests docs/examples docs/speed docs/figures.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/cli/test_app.py tests/recipe

format: install
	$(BIN)/ruff check --fix src tests docs
	$(BIN)/ruff format src tests docs/examples docs/speed docs/figures.py

figures: install
	$(BIN)/python docs/figures.py

bench: install
	$(BIN)/python docs/speed/measure.py

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tpcli needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

$(VLLM_READY): tests/vllm_real/build.sh tests/vllm_real/constraints.txt
	PYTHON=$(PYTHON) tests/vllm_real/build.sh $(VLLM_VENV)
	touch $(VLLM_READY)

clean:
	rm -rf $(VENV) $(VLLM_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
