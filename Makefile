# Two commands for a newcomer: `make run` and `make test`. Each sets up all it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One process a core, each with one thread. A file's tests share fixtures that take long, so they stay together; pytest 9.2
# changed what pytest-xdist 3.8 tells its groups by. The first files, end to end, take longest.
WORKERS := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed

.PHONY: run test test-all lint docs bench install clean

run: $(INSTALLED)
	$(BIN)/fedgh data arm
	$(BIN)/fedgh run experiment=arm_quick

test: $(INSTALLED)
	$(BIN)/python -m pytest $(WORKERS)

test-all: $(INSTALLED)
	$(BIN)/python -m pytest $(WORKERS) -m ""

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Strict: a link that leads nowhere is an error. The variable only keeps an advertisement out of the output.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fedgh needs Python 3.11 or newer; found " + sys.version.split()[0] + "; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "Installing some 7 GB into $(VENV), which takes minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
