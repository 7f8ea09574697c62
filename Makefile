# Exemplar Norm: `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

CONF ?=
ARGS ?=
GPUS ?=
PROCESSES ?=
NODES ?=
NODE_RANK ?= 0
MASTER_ADDR ?=
MASTER_PORT ?= 29400
LAUNCH ?=
DATA ?=
ROOT ?=
SWEEP ?=
COUNT ?=
RUN ?=
NORMS ?=
SEEDS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo '  CONF=conf/….yaml picks a configuration, ARGS="--model.norm bn …" adds options, GPUS=8 takes 8 GPUs'
	@echo '  (PROCESSES=2: 2 processes without), NODES=4 NODE_RANK=0…3 MASTER_ADDR=… as many on each of 4 machines.'

.PHONY: setup
setup: $(READY)  ## create .venv with the pinned dependencies (uv; pip where uv cannot be had)

# torch and torchvision come from one index in one command: builds from two indexes do not fit each other.
# W&B's sweep engine asks for an older NumPy than the others, and runs with theirs.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make setup PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'setting up $(VENV) …'
	@if $(BIN)/python -m pip install -q -c constraints.txt uv; then \
	    VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install -q --compile-bytecode -c constraints.txt -e '.[suite,dev]'; \
	else \
	    echo 'uv cannot be installed here: going on with pip (slower)'; \
	    $(BIN)/python -m pip install -q -c constraints.txt -e '.[suite,dev]'; \
	fi
	@$(BIN)/python -m pip install -q --no-deps -c constraints.txt sweeps
	@touch $@

# $(call start,<task>): one process, or one a GPU (PROCESSES without GPUs) on each of NODES machines.
EACH = $(or $(GPUS),$(PROCESSES))
MEETING = $(if $(NODES),--nodes $(NODES) --node_rank $(NODE_RANK) --master_addr "$(MASTER_ADDR)" --master_port $(MASTER_PORT))
start = $(BIN)/python -m $(if $(EACH)$(NODES),tasks.launch --processes $(or $(EACH),1) $(MEETING) $(LAUNCH) $(1),tasks.$(1))
DEVICES = $(if $(GPUS),--trainer.accelerator gpu)

.PHONY: train-cls train-noisy train-seg
train-cls: $(READY)  ## train and test an image classifier (default: the embedded digits)
	@$(call start,classification) fit --config $(or $(CONF),conf/classification/digits.yaml) --test true $(DEVICES) $(ARGS)

train-noisy: $(READY)  ## train and test with noisy labels (default: the embedded digits)
	@$(call start,noisy_labels) fit --config $(or $(CONF),conf/noisy_labels/digits.yaml) --test true $(DEVICES) $(ARGS)

train-seg: $(READY)  ## train and test semantic segmentation (default: scenes of the embedded digits)
	@$(call start,segmentation) fit --config $(or $(CONF),conf/segmentation/digits.yaml) --test true $(DEVICES) $(ARGS)

.PHONY: check-data
check-data: $(READY)  ## verify a data set before training: DATA=imagenet|folder|webvision|cityscapes|ade20k ROOT=…
	@$(if $(and $(DATA),$(ROOT)),,$(error check-data wants DATA=imagenet|folder|webvision|cityscapes|ade20k and ROOT=…))
	@$(BIN)/python -m tasks.check_data $(DATA) "$(ROOT)" $(ARGS)

.PHONY: compare
compare: $(READY)  ## train several normalizers alike and show which wins: NORMS="bn sn en" SEEDS="0 1 2" CONF=…
	@$(BIN)/python -m tasks.compare $(if $(CONF),--config $(CONF)) --norms $(or $(NORMS),bn sn en) --seeds $(or $(SEEDS),0 1 2) $(ARGS)

.PHONY: report
report: $(READY)  ## compare all runs in runs/index.html
	@$(BIN)/python -m tasks.report $(ARGS)

.PHONY: ratios
ratios: $(READY)  ## pictures and a table of the learned ratios: ARGS="--ckpt runs/classification/digits …"
	@$(BIN)/python -m tasks.ratios $(ARGS)

RUNS_IN_SWEEP = $(if $(COUNT),--count $(COUNT))
.PHONY: sweep-check sweep-local sweep-cls sweep-noisy sweep-seg
sweep-check: $(READY)  ## check the sweep files without a server (SWEEP=… one of them)
	@$(BIN)/python -m tasks.sweeps check $(SWEEP)

sweep-local: $(READY)  ## run a sweep on this machine with Optuna: SWEEP=conf/sweep/….yaml COUNT=4
	@$(BIN)/python -m tasks.sweeps local $(or $(SWEEP),conf/sweep/classification.yaml) $(RUNS_IN_SWEEP)

sweep-cls: $(READY)  ## create the classification sweep at W&B and run its agent
	@$(BIN)/python -m tasks.sweeps wandb $(or $(SWEEP),conf/sweep/classification.yaml) $(RUNS_IN_SWEEP)

sweep-noisy: $(READY)  ## the same for noisy labels
	@$(BIN)/python -m tasks.sweeps wandb $(or $(SWEEP),conf/sweep/noisy_labels.yaml) $(RUNS_IN_SWEEP)

sweep-seg: $(READY)  ## the same for segmentation
	@$(BIN)/python -m tasks.sweeps wandb $(or $(SWEEP),conf/sweep/segmentation.yaml) $(RUNS_IN_SWEEP)

.PHONY: wandb-sync
wandb-sync: $(READY)  ## upload the runs that were recorded offline (RUN=runs/… one of them)
	@find "$(or $(RUN),runs)" -type d -path '*/wandb/offline-run-*' -prune \
	    -exec env WANDB_DIR="$(or $(RUN),runs)" $(BIN)/wandb sync --yes {} +

.PHONY: notebooks
notebooks: $(READY)  ## run the notebooks
	@for notebook in notebooks/*.ipynb; do \
	    echo "$$notebook"; $(BIN)/jupyter nbconvert --to notebook --execute --stdout --log-level WARN "$$notebook" > /dev/null || exit 1; \
	done

# A file's tests stay together: they share what is costly to make.
ON_ALL_CORES = -n auto --dist loadfile

.PHONY: test test-all
test: $(READY)  ## run the test suite without its long checks
	@$(BIN)/python -m pytest $(ON_ALL_CORES) $(ARGS)

test-all: $(READY)  ## run the whole test suite, long checks included
	@$(BIN)/python -m pytest -m '' $(ON_ALL_CORES) $(ARGS)

.PHONY: lint
lint: $(READY)  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: bench
bench: $(READY)  ## measure layers, their passes, networks, their cost and its growth against BatchNorm, and the input pipeline
	@for dtype in float32 bfloat16; do \
	    $(BIN)/python -m benchmarks.layer --dtype $$dtype $(ARGS) || exit 1; \
	    $(BIN)/python -m benchmarks.passes --dtype $$dtype $(ARGS) || exit 1; \
	done
	@$(BIN)/python -m benchmarks.growth
	@$(BIN)/python -m benchmarks.network
	@$(BIN)/python -m benchmarks.network --networks resnet50 --candidates en --batch 32 --size 224 --rounds 5
	@$(BIN)/python -m benchmarks.network --compile --networks resnet50 --candidates en --rounds 7
	@$(BIN)/python -m benchmarks.cost
	@$(BIN)/python -m benchmarks.input
	@$(BIN)/python -m benchmarks.plots
	@$(BIN)/python -m benchmarks.goals --write

# Tests of values first: a wrong kernel can be a fast one.
.PHONY: bench-gpu
bench-gpu: $(READY)  ## on a GPU: check the kernels, then measure layers and networks in float32 and bfloat16
	@EXEMPLAR_TEST_DEVICE=cuda $(BIN)/python -m pytest -q tests/layers/test_numerics.py tests/kernels/interpreted_layers.py
	@for dtype in float32 bfloat16; do \
	    $(BIN)/python -m benchmarks.layer --device cuda --dtype $$dtype --batch 128 || exit 1; \
	    $(BIN)/python -m benchmarks.passes --device cuda --dtype $$dtype --batch 128 || exit 1; \
	    for how in '' --compile; do \
	        $(BIN)/python -m benchmarks.network --device cuda --dtype $$dtype --batch 64 --size 224 $$how || exit 1; \
	    done; \
	done
	@$(BIN)/python -m benchmarks.goals --write

.PHONY: clean
clean:  ## remove the environment and caches, keep runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
