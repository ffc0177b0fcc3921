.DEFAULT_GOAL := help
.PHONY: help install demo docs test test-slow test-machines lint type bench gpu-check

PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)
# two processes on two cores leave no core for a second thread of each
TEST_JOBS ?= 2

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  %-13s %s\n", $$1, $$2}'

.venv/installed: pyproject.toml constraints.txt
ifdef UV
	uv venv --quiet --allow-existing --python $(PYTHON) .venv
	uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
else
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
endif
	@touch $@

.venv/docs-installed: .venv/installed
ifdef UV
	uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[docs]'
else
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
endif
	@touch $@

install: .venv/installed ## set up .venv (about 20 s with uv, 2 to 3 min with pip)

demo: install ## train MONet on embedded data for at most 5 minutes and show the result
	$(BIN)/lightning-genesis demo

test: install ## run the tests (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile -q

test-slow: install ## run the slow tests too (longer)
	$(BIN)/python -m pytest -q -m 'slow or not slow'

test-machines: install ## run what differs between machines as AVX2, SSE4.1, two threads, oldest torch (an hour)
	PYTHON=$(BIN)/python TEST_JOBS=$(TEST_JOBS) tests/machines.sh

docs: .venv/docs-installed ## build the documentation's site in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: install ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install ## check types
	$(BIN)/mypy

bench: install ## measure training steps, data, metrics and the judgement of towers
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.data
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/structural_accuracy.py

gpu-check: ## look at all that matters on a GPU, 8 minutes; GPU_CHECK="--device cpu" for a tiny try without one
	$(PYTHON) -m benchmarks.gpu_check $(GPU_CHECK)
