# The one front door. `make` lists what there is; CI calls the same targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo "$$p" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements-installed
WORKERS ?= 2
# `make test TESTS=tests/unit/core`: a part of the tests
TESTS ?= tests
SOURCES := src tests tools bench

export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help
help: ## lists the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## makes .venv and installs the locked requirements and the project into it

$(STAMP): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.10 or newer is needed and none is in PATH; name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

.PHONY: published-client
published-client: setup ## installs the published client, which tests run against the server, into .venv-published
	@scripts/install-published-client $(BIN)/python

.PHONY: openai-js
openai-js: ## installs OpenAI's client for JavaScript, which a test runs against the server, into .cache
	@scripts/install-openai-js

.PHONY: packages
packages: ## installs the Debian packages that the tests need (as root), or says what is missing
	@scripts/install-test-packages

.PHONY: demo
demo: setup ## from nothing to a published service on this machine, and away again
	@scripts/demo

.PHONY: format-check
format-check: setup
	ruff check $(SOURCES)
	ruff format --check --quiet $(SOURCES)

.PHONY: contracts
contracts: setup
	lint-imports
	python -m tools.lint

.PHONY: check
check: format-check contracts types ## linters, import contracts, types

.PHONY: fix
fix: setup ## formats, and mends what ruff can mend
	ruff check --fix $(SOURCES)
	ruff format $(SOURCES)

.PHONY: types
types: setup ## mypy, strict
	mypy

.PHONY: test
test: setup packages published-client openai-js check ## everything CI asks for: linters, contracts, types, all tests
	@python -m pytest -n $(WORKERS) --dist loadgroup $(TESTS)

.PHONY: e2e
e2e: setup published-client openai-js ## the end-to-end tests alone
	python -m pytest -n $(WORKERS) --dist loadgroup tests/e2e

.PHONY: bench
bench: setup ## the budgets: a table of target and measured (BENCH="name name" for some)
	@python -m bench.run $(BENCH)

.PHONY: docs
docs: setup ## checks the documentation against the code
	python -m pytest tests/docs

.PHONY: dev
dev: setup ## a server on a home of its own in .cache/dev
	mkdir -p .cache/dev
	HOME="$(CURDIR)/.cache/dev" dstack server --yes

LOCK := .cache/uv/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
	--universal --python-version 3.10 --custom-compile-command "make requirements"
.PHONY: requirements
requirements: ## writes requirements/*.txt from pyproject.toml and requirements/*.in
	$(PYTHON) -m venv .cache/uv
	.cache/uv/bin/python -m pip install --quiet uv
	$(LOCK) --all-extras pyproject.toml requirements/dev.in -o requirements/dev.txt
	$(LOCK) requirements/published-client.in -o requirements/published-client.txt

.PHONY: wheel
wheel: setup ## builds dist/*.whl
	python -m build --wheel --no-isolation

.PHONY: clean
clean: ## removes everything that the targets made
	rm -rf $(VENV) .venv-published .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
