# Two commands: `make quickstart` (the whole road on real cells) and `make test`.
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do command -v python$$v >/dev/null 2>&1 && python$$v -c "" 2>/dev/null && echo python$$v && break; done || true)
PYTHON := $(or $(PYTHON),python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= quickstart

.PHONY: quickstart test lint format bench clean
quickstart: .venv/base.stamp
	$(BIN)/cellfoundry quickstart --out $(OUT)

test: .venv/test.stamp
	$(BIN)/python -m pytest

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/base.stamp
	$(BIN)/cellfoundry bench run data kernels train embed serve --out benchmarks/results/local

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else 'CellFoundry needs Python 3.11 to 3.13, this is ' + sys.version.split()[0] + '; name one with make PYTHON=...')"
	$(PYTHON) -m venv .venv

# The lock pins everything, so it serves as constraints: each target installs what it needs and no more.
.venv/base.stamp: .venv/bin/python requirements.lock pyproject.toml
	@echo "Installing into .venv: about 3 GB, a few minutes the first time"
	$(PIP) install --quiet --constraint requirements.lock --editable .
	touch $@

.venv/test.stamp: .venv/base.stamp
	$(PIP) install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@
