# One command for each chore. CI runs the same ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SERVE_FLAGS ?=

JOBS ?= 2

.PHONY: install serve test check format lossless gpu-test bench results clean

install: $(INSTALLED)

# torch comes first and alone: the range in pyproject.toml then finds it installed.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(INSTALLED)

serve: install
	$(BIN)/python -m slipstream.launch_server $(SERVE_FLAGS)

test: install
	$(BIN)/python -m pytest -m "not gpu"

check: install
	$(BIN)/ruff check python test scripts
	$(BIN)/ruff format --check python test scripts
	$(BIN)/mypy
	$(BIN)/python -m pytest test/unit/architecture

format: install
	$(BIN)/ruff check --fix python test scripts
	$(BIN)/ruff format python test scripts

# Speculation on equals off in every cell of the table: about an hour of one fast core; JOBS=n takes n cores.
lossless: install
	$(BIN)/python scripts/lossless.py --jobs $(JOBS) --record bench/results/lossless.jsonl

gpu-test: install
	$(BIN)/python -m pytest -m gpu

bench: install
	$(BIN)/python scripts/compare_transformers.py
	$(BIN)/python scripts/record_bench.py one-batch --batch-size 1 16
	$(BIN)/python scripts/record_bench.py serving --concurrency 1 16
	$(BIN)/python scripts/record_bench.py speculative

results: install
	$(BIN)/python scripts/plot_roofline.py
	$(BIN)/python scripts/make_results.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
