# `make` lists the targets. The tools of one recipe stop at the first that fails.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint

PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3),python3)
IN_VENV := .venv/bin/python

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make the environment .venv (seconds where it is ready; the first time builds mmcv)
	@$(PYTHON) tools/dev/setup_env.py

quickstart: setup ## draw data, train and evaluate a detector and a segmentor, show the results
	@$(IN_VENV) tools/quickstart.py

lint: setup ## check style and types
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	$(IN_VENV) -m mypy

test: lint ## check style and types, then run the tests
	$(IN_VENV) -m pytest
