# Everything one does with this project. `make help` lists it.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench
ARGS ?=
# Of make chaos; CONTROL= leaves the control arms out.
MINUTES ?= 10
CONTROL ?= all
chaos: SEEDS ?= 1,2,3
# Of make simulate: how many seeds, and from which one on.
simulate: SEEDS ?= 5000
FIRST ?= 0
# No address of a registry in any file; wheels only, so that nobody needs a compiler.
LOCK := --quiet --universal --python-version 3.11 --generate-hashes --no-build --no-header

.PHONY: help setup demo up down status test check lint types contracts unit simulate readme bench chaos format lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with everything needed (once)

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 or newer is needed as '$(PYTHON)': install the Debian package python3, or name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "Python's venv module is needed: install the Debian package python3-venv (apt install python3-venv)" >&2; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing Python packages into $(VENV) (once) ..."
	@$(PIP) install --quiet --require-hashes --only-binary :all: -r requirements/dev.txt
	@$(PIP) install --quiet --no-deps --no-index --no-build-isolation --editable .
	@touch $@

$(BENCH_READY): requirements/bench.txt $(READY)
	@echo "Installing the systems to compare with into $(VENV) (once) ..."
	@$(PIP) install --quiet --require-hashes --only-binary :all: -r requirements/bench.txt
	@touch $@

demo: $(READY) ## Start everything in a fresh folder, run the guided example, stop
	@$(BIN)/ap demo $(ARGS)

up: $(READY) ## Start everything and stay in the foreground (Ctrl-C stops it)
	@$(BIN)/ap up $(ARGS)

down: $(READY) ## Stop what `make up` started
	@$(BIN)/ap down $(ARGS)

status: $(READY) ## Say what is running and where
	@$(BIN)/ap status $(ARGS) || true

test: $(READY) ## All tests, with Postgres and Kafka started for them
	@$(PY) -m pytest --numprocesses=logical --maxprocesses=4 --durations=25 $(ARGS)

check: $(READY) ## What CI runs before the tests: under a minute, no servers
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint types contracts unit

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@$(BIN)/mypy

contracts: $(READY)
	@$(BIN)/lint-imports

unit: $(READY)
	@SIMULATION_SEEDS=20 SIMULATION_FIRST=0 \
	  $(PY) -m pytest -q --numprocesses=logical -m "not services and not slow" $(ARGS)

simulate: $(READY) ## Run SEEDS seeds of the whole platform in memory, from FIRST on
	@SIMULATION_SEEDS=$(SEEDS) SIMULATION_FIRST=$(FIRST) \
	  $(PY) -m pytest -q --numprocesses=logical tests/simulation/test_simulation.py -k no_seed $(ARGS)

readme: $(READY) ## Write the tables of README.md anew from the code
	@$(PY) -m tests.readme

bench: $(BENCH_READY) ## Compare with other durable engines on this machine
	@$(BIN)/ap bench $(ARGS)

chaos: $(READY) ## Inject faults for MINUTES with each of SEEDS, then turn off each defence of CONTROL; verify all
	@$(BIN)/ap chaos --minutes $(MINUTES) --seeds $(SEEDS) $(ARGS)
	@test -z "$(CONTROL)" || $(BIN)/ap chaos --control "$(CONTROL)"

format: $(READY) ## Format and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(READY) ## Write requirements/*.txt and jars.lock anew (needs the program uv)
	@command -v uv >/dev/null || { echo "The program uv is needed: pip install uv" >&2; exit 2; }
	@uv pip compile pyproject.toml --extra embedded --extra dev $(LOCK) --output-file requirements/dev.txt
	@uv pip compile pyproject.toml --extra bench --constraint requirements/dev.txt $(LOCK) --output-file requirements/bench.txt
	@$(PY) -m infra.local.embedded.jars

clean: ## Remove the environment, caches and local data
	@test ! -x $(BIN)/ap || $(BIN)/ap down --quiet || true
	@rm -rf $(VENV) .ap .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
