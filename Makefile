# make run trains a first model; make test runs the tests. Both make a virtual environment on their first call.
PYTHON ?= python3
VENV ?= .venv
# Another package index for torch, for example one that carries builds for an older GPU driver.
TORCH_INDEX ?=
MATERIAL ?=
# For make gpu and make wheels: a folder of packages, and a text such as the first 4 MB of enwik8.
WHEELS ?=
TEXT ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What the project needs without torch, and pytest.
GPU_PACKAGES = "hydra-core>=1.3.8,<1.4" "omegaconf>=2.3,<2.4" "numpy>=2" "scipy>=1.15" "matplotlib>=3.10" ninja rich \
	pooch filelock tqdm safetensors "bokeh>=3.8,<4" jinja2 pytest

.PHONY: help run test lint kernels drill gpu wheels wheel clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo "  variables: PYTHON (python3)  VENV (.venv)  TORCH_INDEX (URL)  MATERIAL (folder of reference data)"
	@echo "             WHEELS (folder of packages for make gpu)  TEXT (file for its short study)"

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

# On the machine's own Python with its torch: no virtual environment, no network.
gpu: ## prove the whole GPU path on one card, under 8 minutes; results in build/gpu/
	@test -z "$(WHEELS)" || $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-index \
		--find-links "$(WHEELS)" --target build/gpu-packages --upgrade $(GPU_PACKAGES)
	@PYTHONPATH="$(CURDIR):$(CURDIR)/build/gpu-packages" $(PYTHON) -m benchmarks.gpu $(if $(TEXT),--text "$(TEXT)")

wheels: ## fill WHEELS with what make gpu needs beside torch; with a network and the Python of the GPU's machine
	@test -n "$(WHEELS)" || { echo "make wheels needs a folder: make wheels WHEELS=DIR" >&2; exit 2; }
	@$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$(WHEELS)" $(GPU_PACKAGES)

wheel: $(STAMP) ## build a wheel with CUDA kernels for compute capabilities 8.0 and 9.0 in it (needs nvcc)
	@$(BIN)/python -m rwkv_lab.ops.build --wheel --arch 80,90
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/dist .

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
