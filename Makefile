# make demo: see it work. make test: lint, types, tests. Both set up .venv first, once.
# make parity: do our losses agree with TRL's? It installs TRL beside the rest.
# make mutants: does a test fail for each small wrong change of what changed? ARGS=--all: of every method and all theory.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test parity mutants setup format

demo: setup
	$(BIN)/softq demo

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest -n 2

parity: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/pytest -o python_files='*_parity.py' tests/parity

mutants: setup
	$(BIN)/python bench/mutants.py $(ARGS)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: .venv/done

.venv/done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "softq needs Python 3.11 or newer: make PYTHON=python3.11 setup"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
