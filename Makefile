# Exemplar Norm: `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

CONF ?=
ARGS ?=
GPUS ?=
DATA ?=
ROOT ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo '  CONF=conf/….yaml picks a configuration, ARGS="--model.norm bn …" adds options, GPUS=8 takes 8 GPUs.'

.PHONY: setup
setup: $(READY)  ## create .venv with the pinned dependencies (uv; pip where uv cannot be had)

# torch and torchvision come from one index in one command: builds from two indexes do not fit each other.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make setup PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'setting up $(VENV) …'
	@if $(BIN)/python -m pip install -q -c constraints.txt uv; then \
	    VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install -q -c constraints.txt -e '.[suite,dev]'; \
	else \
	    echo 'uv cannot be installed here: going on with pip (slower)'; \
	    $(BIN)/python -m pip install -q -c constraints.txt -e '.[suite,dev]'; \
	fi
	@touch $@

# One process a GPU, started by Lightning.
DEVICES = $(if $(GPUS),--trainer.accelerator gpu --trainer.devices $(GPUS) --trainer.strategy ddp)

.PHONY: train-cls
train-cls: $(READY)  ## train and test an image classifier (default: the embedded digits)
	@$(BIN)/python -m tasks.classification fit --config $(or $(CONF),conf/classification/digits.yaml) --test true $(DEVICES) $(ARGS)

.PHONY: check-data
check-data: $(READY)  ## verify a data set before training: DATA=imagenet|folder ROOT=…
	@$(BIN)/python -m tasks.check_data $(DATA) "$(ROOT)" $(ARGS)

.PHONY: report
report: $(READY)  ## compare all runs in runs/index.html
	@$(BIN)/python -m tasks.report $(ARGS)

.PHONY: test test-all
test: $(READY)  ## run the test suite without its long checks
	@$(BIN)/python -m pytest $(ARGS)

test-all: $(READY)  ## run the whole test suite, long checks included
	@$(BIN)/python -m pytest -m '' $(ARGS)

.PHONY: lint
lint: $(READY)  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: bench
bench: $(READY)  ## measure the layer and its cost against BatchNorm, and the input pipeline
	@$(BIN)/python -m benchmarks.layer $(ARGS)
	@$(BIN)/python -m benchmarks.cost
	@$(BIN)/python -m benchmarks.input

.PHONY: clean
clean:  ## remove the environment and caches, keep runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
