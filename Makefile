.DEFAULT_GOAL := help
.PHONY: help demo test check bench lock clean
# Each recipe starts services of its own: one at a time.
.NOTPARALLEL:

BIN := .venv/bin
ARGS ?=
# Tests wait more than they work: more processes than cores.
PROCESSES ?= 8
MINUTES := 10

help:  ## what there is
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | sort | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: .venv/run.stamp  ## everything on this machine and one real job (ARGS="--path DIR")
	$(BIN)/callboard demo $(ARGS)

test: .venv/dev.stamp  ## checks and all tests on real services (ARGS="tests/unit -k name")
	@echo "callboard: checks (half a minute), then the tests on real PostgreSQL, RabbitMQ, PgBouncer and Chromium"
	@$(if $(ARGS),,echo "callboard: all of it takes about $(MINUTES) minutes on two idle cores; the first tests take a minute")
	tests/install/services
	$(MAKE) --no-print-directory check
	$(BIN)/pytest $(or $(ARGS),-n $(PROCESSES))

check: .venv/dev.stamp  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p callboard -p tests
	$(BIN)/lint-imports --no-cache

bench: .venv/dev.stamp  ## tracked against untracked, as tables
	tests/install/services
	$(BIN)/python -m tests.bench $(ARGS)

lock:  ## resolve the dependencies anew into the hashed locks
	tests/install/lock

clean:  ## remove what these made
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/run.stamp: requirements.txt pyproject.toml
	tests/install/python requirements.txt
	@touch $@

.venv/dev.stamp: requirements-dev.txt pyproject.toml
	tests/install/python requirements-dev.txt
	@touch .venv/run.stamp $@
