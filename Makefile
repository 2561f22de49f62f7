# demo, test, dev: see README.md. Everything lives in .venv; nothing is installed outside it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup label-studio demo dev test lint slow everything benchmarks clean

help:
	@echo "make demo         raw rows to an answered question, on the embedded example"
	@echo "make dev          the whole platform: Dagster UI :3000, MLflow :5000, Label Studio :8080, endpoints"
	@echo "make label-studio Label Studio's own environment, 1 GB; make dev does it where it is missing"
	@echo "make test         lint, types, import contracts, tests"
	@echo "make slow         the tests that take minutes"
	@echo "make everything   both, in one go, as CI does"
	@echo "make benchmarks   the figures of docs/benchmarks.md and docs/performance.md"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@echo "setting up $(VENV) (some minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

label-studio: setup
	@$(BIN)/python -c "from resources.label_studio import installation; installation.install(print)"

demo: setup
	@$(BIN)/ftaas demo

dev: setup
	@$(BIN)/ftaas dev

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -m "not slow" $(PARALLEL)

slow: setup
	$(BIN)/pytest -m slow $(PARALLEL)

everything: lint
	$(BIN)/pytest $(PARALLEL)

benchmarks: setup
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.commands
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.ledger
	$(BIN)/python -m benchmarks.privacy
	$(BIN)/python -m benchmarks.near_duplicates
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.label_studio

clean:
	rm -rf $(VENV) $(VENV)-label-studio* .pytest_cache .ruff_cache
