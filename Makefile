# Two commands do it all: `make compare` and `make test`. Each installs first if it has to.

PYTHON ?= python3
# Which of the vLLMs in pyproject.toml's extras, with its torch and transformers. Empty: the first.
VLLM ?=
VENV ?= .venv$(addprefix -,$(VLLM))
# Where to look for torch, if pip's own configuration does not find the right build. Empty: decided by
# the installer (see cluster/install.py). Public CPU builds: https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

BIN := $(VENV)/bin
QUARTET := $(BIN)/python -m cluster.cli
COMPARE_ARGS := $(if $(filter-out 0,$(QUICK)),--quick) $(if $(SEED),--seed $(SEED)) $(ARGS)

# After the install nothing here talks to the network, and nothing reports usage.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export VLLM_NO_USAGE_STATS := 1
export VLLM_DO_NOT_TRACK := 1
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help install compare base report doctor test test-all lint types format clean

help:  ## Show this list
	@echo "make <target> [VENV=.venv] [PYTHON=python3] [VLLM=0.24.0] [TORCH_INDEX=URL]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

install:  ## Make VENV and install everything pinned (CUDA stack if there is an NVIDIA GPU)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Quartet needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." \
	       "Name another one: make install PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m cluster.install --venv "$(VENV)" --vllm "$(VLLM)" --torch-index "$(TORCH_INDEX)"

compare: install  ## PPO, DPO, nSFT and SFT on the built-in task (QUICK=1, SEED=0, ARGS=...)
	@$(QUARTET) compare $(COMPARE_ARGS)

base: install  ## Train the built-in base model again
	@$(QUARTET) compare --only-base --rebuild-base $(ARGS)

report: install  ## Write a finished run's report again (ARGS=runs/NAME)
	@$(QUARTET) report $(ARGS)

doctor: install  ## Check this machine and the installed versions
	@$(QUARTET) doctor

test: install lint types  ## Lint, type-check and test
	$(BIN)/python -m pytest -m "not slow and not gpu" $(ARGS)

test-all: install lint types  ## As test, slow tests too; GPU tests where there is a GPU
	$(BIN)/python -m pytest -m "$(if $(shell nvidia-smi -L 2>/dev/null),,not gpu)" $(ARGS)

lint: install  ## ruff and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install  ## mypy
	$(BIN)/mypy

format: install  ## Format and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove caches and build leftovers; keeps VENV and runs/
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find actors cluster rewards trainers tests -name __pycache__ -type d -prune -exec rm -rf {} +
