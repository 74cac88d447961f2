# `make` lists the targets. The tools of one recipe stop at the first that fails.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-fast lint docs

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p $(NEW_ENOUGH) && echo $$p && break; done)
IN_VENV := .venv/bin/python

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make the environment .venv; PYTHON=python3.13 and STACK=onedl choose, once
	@$(or $(PYTHON),false) $(NEW_ENOUGH) || \
	{ echo '[setup] Python 3.11 to 3.13 is needed: put one on PATH, then run make setup' >&2; exit 1; }
	@STACK=$(STACK) $(PYTHON) tools/dev/setup_env.py

quickstart: setup ## draw data, train and evaluate a detector and a segmentor, show the results
	@$(IN_VENV) tools/quickstart.py

lint: setup ## check style and types
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	$(IN_VENV) -m mypy

# One test at a time to each worker, the slow ones first (tests/conftest.py): none waits at the end.
PYTEST := $(IN_VENV) -m pytest -n auto --dist load --maxschedchunk 1

test: lint ## check style and types, then run the tests
	$(PYTEST)

test-fast: setup ## run the tests without the slow ones, and properties with fewer examples
	HYPOTHESIS_PROFILE=quick $(PYTEST) -m 'not slow'

docs: setup ## build the documentation's site; a broken link is an error
	$(IN_VENV) -m sphinx -W --keep-going -q docs docs/_build/html
	@echo '[docs] docs/_build/html/index.html'
