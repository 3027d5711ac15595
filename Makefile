# make run trains a first model; make test runs the tests. Both make a virtual environment on their first call.
PYTHON ?= python3
VENV ?= .venv
# Another package index for torch, for example one that carries builds for an older GPU driver.
TORCH_INDEX ?=
MATERIAL ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help run test lint kernels drill clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo "  variables: PYTHON (python3)  VENV (.venv)  TORCH_INDEX (URL)  MATERIAL (folder of reference data)"

run: $(STAMP) ## train the default model on the built-in text, about a minute
	@$(BIN)/python run.py

test: $(STAMP) ## run all tests
	@$(BIN)/python -m pytest tests -n 2 --dist loadfile $(if $(MATERIAL),--material="$(MATERIAL)")

lint: $(STAMP) ## check style and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

kernels: $(STAMP) ## build the native kernels ahead of their first use
	@$(BIN)/python -m rwkv_lab.ops.build

drill: $(STAMP) ## kill a run at random moments and count the numbers that differ
	@$(BIN)/python -m tests.drill

clean: ## remove the virtual environment; runs/ stays
	rm -rf "$(VENV)"

# The stamp is written last, so an interrupted installation is simply done again.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rwkv_lab needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv --clear "$(VENV)" || \
		{ echo "$(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv)" >&2; exit 2; }
	@echo "installing into $(VENV) ..."
	@test -z "$(TORCH_INDEX)" || \
		$(BIN)/python -m pip install --quiet "torch>=2.11,<2.14" --index-url "$(TORCH_INDEX)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@
