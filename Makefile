# make demo [SEEDS=n]   the whole method on the embedded world: table, pictures, adapters
# make test             the everyday tests
# make lint             ruff and pyright
# Each creates its own virtual environment at first and installs nothing at the second call.
# PYTHON=python3.12 picks the interpreter, VENV=path another place for the environment.

PYTHON ?= python3
VENV ?= .venv
SEEDS ?= 1
# Two processes, each with the files of its own: most of the time goes to compilation.
PYTEST_ARGS ?= -n 2 --dist loadfile

bin := $(VENV)/bin
# Bytecode is left to the first import: compiling all of site-packages takes longer than the demo
# needs for what it uses.
pip := $(bin)/python -m pip --disable-pip-version-check install -qq --no-compile
core := $(VENV)/.installed
dev := $(VENV)/.installed-dev

.DELETE_ON_ERROR:
.PHONY: demo test lint clean

demo: $(core)
	$(bin)/dso demo --seeds $(SEEDS)

test: $(dev)
	$(bin)/python -m pytest $(PYTEST_ARGS)

lint: $(dev)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/pyright

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; try: make PYTHON=python3.12"; exit 2; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(core): pyproject.toml | $(VENV)/bin/python
	@echo "installing dso-jax into $(VENV) (about a minute, once)"
	@$(pip) --editable .
	@touch $@

$(dev): pyproject.toml $(core) | $(VENV)/bin/python
	@echo "installing what the tests need"
	@$(pip) --editable '.[dev]'
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .cache
