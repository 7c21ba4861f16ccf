# Everything runs in .venv, made on first use; nothing else needs to be installed or set.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test test-wheel test-all check format clean

quickstart: .venv/.quickstart
	$(BIN)/tunewise compare --preset quickstart

test: .venv/.test
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

test-wheel: .venv/.test
	$(BIN)/python -m pytest tests/test_wheel.py

test-all: .venv/.test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: .venv/.check
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.check
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("tunewise needs Python 3.11 or newer; try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv

.venv/.quickstart: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (a few minutes the first time) ..."
	$(PIP) --editable '.[quickstart]'
	@touch $@

.venv/.test: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (a few minutes the first time) ..."
	$(PIP) --editable '.[test]'
	@touch $@

.venv/.check: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[test,check]'
	@touch $@

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
