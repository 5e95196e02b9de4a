# make demo · test · lint · bench · setup · clean
PYTHON ?= python3
BIN := .venv/bin
METHODS := naive,class_balanced,fifo,er,max_loss,kd_mse,head_only
BLIND := last_label,recent_mode,majority,constant
SWEEP := seed=0,1,2 hydra/launcher=joblib hydra.launcher.n_jobs=2

.PHONY: demo test lint bench setup clean

demo: .venv/sweep
	@rm -rf outputs/demo
	$(BIN)/budgetcl run -m experiment=demo_glyphs method=$(METHODS) $(SWEEP)
	$(BIN)/budgetcl run -m experiment=demo_uploads method=naive,fifo,er,$(BLIND) $(SWEEP)
	$(BIN)/budgetcl report outputs/demo

test: .venv/dev
	$(BIN)/pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python scripts/bench_overhead.py
	$(BIN)/python scripts/bench_charge.py
	$(BIN)/python scripts/bench_metrics.py

setup: .venv/dev

clean:
	rm -rf .venv outputs build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache

.venv/bin/python:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), f'Python 3.11 or later is needed, this is {sys.version}'"
	$(PYTHON) -m venv .venv

.venv/sweep: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[sweep]'
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ .venv/sweep
