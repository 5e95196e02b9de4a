# make demo · test · lint · bench · setup · clean
PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo glyphs uploads test lint bench setup clean

# Two processes of one thread each, one for each stream.
demo: .venv/run
	@rm -rf outputs/demo
	@$(MAKE) --no-print-directory -j2 glyphs uploads
	$(BIN)/budgetcl report outputs/demo

glyphs: .venv/run
	$(BIN)/budgetcl run -m experiment=demo_glyphs seed=0,1,2 \
		method=naive,class_balanced,fifo,er,max_loss,kd_mse,head_only

uploads: .venv/run
	$(BIN)/budgetcl run -m experiment=demo_uploads seed=0,1,2 \
		method=naive,fifo,er,last_label,recent_mode,majority,constant

test: .venv/dev
	$(BIN)/pytest -n 2 --dist worksteal

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python scripts/bench_overhead.py
	$(BIN)/python scripts/bench_charge.py
	$(BIN)/python scripts/bench_samplers.py
	$(BIN)/python scripts/bench_metrics.py
	$(BIN)/python scripts/bench_table.py
	$(BIN)/python scripts/bench_run.py
	$(BIN)/python scripts/bench_images.py
	$(BIN)/python scripts/bench_demo.py

setup: .venv/dev

clean:
	rm -rf .venv outputs build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache

.venv/bin/python:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), f'Python 3.11 or later is needed, this is {sys.version}'"
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ .venv/run
