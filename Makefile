# Everything runs in .venv, which is made from the pinned and hashed files in requirements/.
# ARGS are passed on: `make quickstart ARGS=--exit`, `make test ARGS="-k registry"`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := src tests bench examples
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=

# Named to the tests, so that they fail without the model instead of skipping what needs it.
MODEL := $(CURDIR)/.cache/models/smollm2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: quickstart
quickstart: $(VENV)/run.stamp model ## Pack, push, pull, verify and serve a small real model here; ARGS=--exit ends after the answers
	@$(BIN)/python examples/quickstart.py $(ARGS)

.PHONY: test
test: $(VENV)/dev.stamp model ## Run every test that needs nothing but this repository
	TONNAGE_TEST_MODEL="$(MODEL)" $(BIN)/pytest -m "not peers" $(ARGS)

.PHONY: check
check: $(VENV)/dev.stamp ## Formatting, lint, types, and who may import whom
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/dev.stamp ## Format the code, and fix what lint can fix
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

.PHONY: peers
peers: ## Build or install the real peers: oras, crane, skopeo, docker-registry
	@tests/peers/build.sh

.PHONY: test-peers
test-peers: $(VENV)/dev.stamp peers model ## Run the tests against real peers
	TONNAGE_PEERS="$$(tests/peers/build.sh --path)" TONNAGE_TEST_MODEL="$(MODEL)" $(BIN)/pytest -m peers $(ARGS)

.PHONY: bench
bench: $(VENV)/bench.stamp ## Measure the registry server, the gateway and the HTTP clients; ARGS="--rounds 3"
	$(BIN)/python bench/registry_server.py $(ARGS)
	$(BIN)/python bench/gateway.py $(ARGS)
	$(VENV)/bench/bin/python bench/http_clients.py $(ARGS)

.PHONY: model
model: $(VENV)/made.stamp ## Fetch the small model (98 MB)
	@$(BIN)/python examples/fetch_smollm2.py

.PHONY: lock
lock: $(VENV)/lock.stamp ## Renew requirements/*.txt from *.in; ARGS=--upgrade for newer versions
	@requirements/lock.sh $(VENV)/lock/bin/pip-compile $(ARGS)

.PHONY: clean
clean: ## Remove what was made here, except the fetched model
	rm -rf $(VENV) dist build .cache/quickstart bench/out
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment, and what is in it. A stamp is renewed only when the files it depends on change.

$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Tonnage needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	        "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/run.stamp: $(VENV)/made.stamp requirements/engine.txt requirements/build.txt pyproject.toml
	$(PIP) install --quiet --require-hashes -r requirements/engine.txt -r requirements/build.txt
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements/dev.txt
	$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

# The rivals of our transport, in an environment of their own.
$(VENV)/bench.stamp: $(VENV)/run.stamp bench/requirements.txt
	$(BIN)/python -m venv --clear $(VENV)/bench
	$(VENV)/bench/bin/python -m pip install --quiet --require-hashes -r bench/requirements.txt
	@touch $@

$(VENV)/lock.stamp: $(VENV)/made.stamp
	$(BIN)/python -m venv --clear $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet pip-tools==7.6.2
	@touch $@
