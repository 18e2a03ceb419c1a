# `make train` and `make test` do all the set-up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
# On Linux, PyPI's torch is the build for CUDA; for the CPU alone:
#   make TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" train
TORCH ?= torch==2.13.0
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE  # Python is started some thousand times in the tests; compile its files once
export NO_MKDOCS_2_WARNING := 1  # a notice that Material prints at each build

.PHONY: train test test-slow test-long test-browser test-gpu lint docs docs-serve bench clean

train: .venv/installed  ## trains the tiny model on animals and fruit: minutes on two CPU cores
	$(BIN)/python -m t2i.train $(ARGS)

test: .venv/installed  ## the fast suite: offline, on the CPU
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not browser" $(ARGS)

test-slow: .venv/installed  ## whole sweeps that are killed, and other things that take minutes
	$(BIN)/python -m pytest -n 2 -m "slow and not gpu and not long" $(ARGS)

test-long: .venv/installed  ## what CI leaves out: benchmarks, and further numbers of processes
	$(BIN)/python -m pytest -n 2 -m "long" $(ARGS)

test-browser: .venv/installed  ## needs Chromium (Debian: apt-get install chromium)
	$(BIN)/python -m pytest -m browser $(ARGS)

lint: .venv/installed  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check --output-format=min-text

docs: .venv/installed  ## the documentation, into site/; a broken link fails
	$(BIN)/mkdocs build --strict $(ARGS)

docs-serve: .venv/installed  ## the documentation at http://127.0.0.1:8000, while you write
	$(BIN)/mkdocs serve $(ARGS)

test-gpu: .venv/installed  ## on a machine with a CUDA device: its tests, then the speed table; 8 minutes at most
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench: .venv/installed  ## t2i against the usual loop and the bare step, on the tiny model: minutes
	$(BIN)/python benchmarks/speed.py --set tiny $(ARGS)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[dev,docs]" --constraint constraints.txt
	touch $@

clean:
	rm -rf .venv site
