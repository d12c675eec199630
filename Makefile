# make check is what CI runs; make venv prepares the tools for it.
PYTHON ?= .venv/bin/python

.PHONY: check lint types imports test fast venv

check: lint types imports test

venv:
	python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[dev]'

lint:
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

imports:
	$(PYTHON) -c "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"

test:
	$(PYTHON) -m pytest -n 2

fast:
	$(PYTHON) -m pytest -n 2 -m 'not slow'
