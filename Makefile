# ugsep: from a trained ranking model to a proven bundle of user and item engines.
#   make engines MODEL=zenith          make help lists everything

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
STUBS  := build/stubs/.ready

MODEL      ?= zenith
CHECKPOINT ?= build/checkpoints/$(NAME)
INIT       ?= checkpoint
SEED       ?= 0
BACKEND    ?=
NAME       := $(basename $(notdir $(firstword $(subst :, ,$(MODEL)))))
OUT        ?= build/$(NAME)
USER_INPUTS ?=
ITEM_INPUTS ?=
DATA       := build/data/movielens
SIZE       ?= 20m
# ONNX Runtime would report what it runs; 0 lets it.
export ORT_DISABLE_TELEMETRY ?= 1
EXTRAS     ?= cpu,tensorrt-rtx,openvino,triton,foreign,dev

BUILD = $(BIN)/ugsep build $(MODEL) --out $(OUT) --seed $(SEED) $(if $(BACKEND),--backend $(BACKEND)) $(FLAGS)
REAL  = --calibration $(DATA)/calibration.parquet --requests $(DATA)/test.parquet

.DEFAULT_GOAL := help
.PHONY: help setup data checkpoint engines parity bench bench-streaming quality test test-slow lint clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'
	@echo "  variables: MODEL=zenith CHECKPOINT=dir INIT=random BACKEND=onnxruntime OUT=dir SEED=0 FLAGS='--force'"
	@echo "  your own module: MODEL=path/to/file.py:factory USER_INPUTS=a,b ITEM_INPUTS=c,d"

setup: $(READY) ## make the virtual environment with everything pinned by constraints.txt

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; pass PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $(READY)

data: $(READY) ## fetch MovieLens-100K and write its requests to build/data/movielens
	@$(BIN)/python -m examples.movielens data

# The two steps before an engine build are needed only for the default checkpoint.
ifneq ($(findstring .py:,$(MODEL)),)
PREPARED := $(READY)
else ifeq ($(INIT)$(CHECKPOINT),checkpointbuild/checkpoints/$(NAME))
PREPARED := checkpoint
else ifeq ($(INIT),random)
PREPARED := $(READY)
else
PREPARED := data
endif

checkpoint: data ## train MODEL on MovieLens-100K (zenith: 1.5 minutes on 2 cores, the others 1 to 4)
	@$(BIN)/python -m examples.movielens checkpoint --model $(MODEL)

engines: $(PREPARED) ## build, prove and report the bundle of MODEL in OUT
ifneq ($(findstring .py:,$(MODEL)),)
	@$(BUILD) --user '$(USER_INPUTS)' --item '$(ITEM_INPUTS)'
else ifeq ($(INIT),random)
	@$(BUILD) --init random $(if $(wildcard $(DATA)/features.json),--features $(DATA)/features.json)
else
	@$(BUILD) --checkpoint $(CHECKPOINT) $(REAL)
endif

parity: $(READY) ## check the bundle in OUT again: hashes, parity, AUC and latency gates
	@$(BIN)/ugsep validate $(OUT) $(if $(filter random,$(INIT)),--synthetic,--requests $(DATA)/test.parquet)

bench: $(READY) ## measure the bundle in OUT against the whole model
	@$(BIN)/ugsep bench $(OUT) $(if $(filter random,$(INIT)),--random --seed $(SEED),--checkpoint $(CHECKPOINT))

quality: $(READY) ## train all variants and write docs/quality.md (long; goes on where it was stopped)
	@$(BIN)/python -m examples.movielens quality

bench-streaming: $(READY) ## quantize a model larger than memory; SIZE=7b|500m|20m (7b needs 25 GB of disk)
	@$(BIN)/python -m benchmarks.streaming --size $(SIZE)

test: $(READY) ## run the tests, all but the slow ones
	@$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(READY) ## run the slow tests: every recipe, models x ratios, graphs over 2 GB, streaming; TESTS=path narrows
	@$(BIN)/python -m pytest -n 2 -m slow $(TESTS)

lint: $(STUBS) ## ruff, mypy and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

$(STUBS): $(READY) tests/binding_stubs.py
	@$(BIN)/python -m tests.binding_stubs build/stubs
	@touch $(STUBS)

clean: ## remove build/ (the environment stays; remove .venv by hand)
	rm -rf build
