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
SERVE_FLAGS ?=
USER_INPUTS ?=
ITEM_INPUTS ?=
DATA       := build/data/movielens
SIZE       ?= 20m
# ONNX Runtime sends usage events; set to 0 to allow them.
export ORT_DISABLE_TELEMETRY ?= 1
MINUTES    ?= 30
EXTRAS     ?= build,cpu,serve,record,otel,tensorrt-rtx,openvino,triton,third-party,fuzz,dev
OLDEST     := build,cpu,serve,record,otel,openvino,third-party,dev

BUILD = $(BIN)/ugsep build $(MODEL) --out $(OUT) --seed $(SEED) $(if $(BACKEND),--backend $(BACKEND)) $(FLAGS)
REAL  = --calibration $(DATA)/calibration.parquet --requests $(DATA)/test.parquet

.DEFAULT_GOAL := help
.PHONY: help setup torchrec data checkpoint engines parity serve bench bench-streaming bench-serving soak campaign quality test test-slow oldest proto lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'
	@echo "  variables: MODEL=zenith CHECKPOINT=dir INIT=random BACKEND=onnxruntime OUT=dir SEED=0 FLAGS='--force'"
	@echo "  your own module: MODEL=path/to/file.py:factory USER_INPUTS=a,b ITEM_INPUTS=c,d"

setup: $(READY) ## create the virtual environment, with versions pinned by constraints.txt

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; pass PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $(READY)

torchrec: $(READY) ## add TorchRec for CPUs (50 MB); its own requirement, fbgemm-gpu, is half a gigabyte of CUDA
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement torchrec.txt

data: $(READY) ## download MovieLens-100K and write request files to build/data/movielens
	@$(BIN)/python -m examples.movielens data

# Only builds from the default checkpoint need to train first.
ifneq ($(findstring .py:,$(MODEL)),)
PREPARED := $(READY)
else ifeq ($(INIT)$(CHECKPOINT),checkpointbuild/checkpoints/$(NAME))
PREPARED := checkpoint
else ifeq ($(INIT),random)
PREPARED := $(READY)
else
PREPARED := data
endif

checkpoint: data ## train MODEL on MovieLens-100K (1 to 4 minutes on 2 cores)
	@$(BIN)/python -m examples.movielens checkpoint --model $(MODEL)

engines: $(PREPARED) ## build and verify the bundle of MODEL in OUT, with a report
ifneq ($(findstring .py:,$(MODEL)),)
	@$(BUILD) --user '$(USER_INPUTS)' --item '$(ITEM_INPUTS)'
else ifeq ($(INIT),random)
	@$(BUILD) --init random $(if $(wildcard $(DATA)/features.json),--features $(DATA)/features.json)
else
	@$(BUILD) --checkpoint $(CHECKPOINT) $(REAL)
endif

parity: $(READY) ## re-check the bundle in OUT: hashes, parity, AUC and latency
	@$(BIN)/ugsep validate $(OUT) $(if $(filter random,$(INIT)),--synthetic,--requests $(DATA)/test.parquet)

# Serving builds only what is missing; the examples are of bundles that were built from MovieLens.
serve: $(if $(wildcard $(OUT)/manifest.json),$(READY),engines) ## serve the bundle in OUT over HTTP and gRPC; SERVE_FLAGS='--workers 2' adds options
	@examples=$(if $(filter checkpoint data,$(PREPARED)),$(DATA)/examples); \
	test -f "$$examples/examples.json" && set -- --examples "$$examples" || set --; \
	exec $(BIN)/ugsep serve $(OUT) "$$@" $(SERVE_FLAGS)

bench: $(READY) ## benchmark the bundle in OUT against other ways to serve the model
	@$(BIN)/ugsep bench $(OUT) $(if $(filter random,$(INIT)),--random --seed $(SEED),--checkpoint $(CHECKPOINT))

quality: $(READY) ## train all variants and write docs/quality.md (about an hour on 2 cores; resumes an interrupted run)
	@$(BIN)/python -m examples.movielens quality

bench-serving: $(if $(wildcard $(OUT)/manifest.json),$(READY),engines) ## measure 'ugsep serve' under load, alone on the machine (about an hour; resumes), and write docs/serving-benchmark.md
	@$(BIN)/python -m benchmarks.serving all --bundle $(OUT) --skip soak
	@$(BIN)/python -m benchmarks.serving report

soak: $(if $(wildcard $(OUT)/manifest.json),$(READY),engines) ## the long campaigns that must not lose a request: kills, restarts, 100 hot swaps, half an hour of load
	@$(BIN)/python -m benchmarks.serving run overload kill rolling affinity swaps soak --bundle $(OUT)

campaign: $(READY) ## try to break ugsep: NAME=kill|fuzz|score|threads|resources, MINUTES=30; resumes
	@$(BIN)/python -m benchmarks.reliability run $(NAME) --minutes $(MINUTES)

bench-streaming: $(READY) ## quantize a model larger than memory; SIZE=7b|500m|20m (7b needs 25 GB of disk)
	@$(BIN)/python -m benchmarks.streaming --size $(SIZE)

test: $(READY) ## run all tests except the slow ones
	@$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(READY) ## run the slow tests: all recipes, models x ratios, graphs over 2 GB, streaming; TESTS=path selects some
	@$(BIN)/python -m pytest -n 2 -m slow $(TESTS)

# By hand when a lower bound changes, not in CI: it downloads several GB and takes a quarter of an hour on 2 cores.
oldest: ## test with the oldest versions that pyproject.toml allows (needs uv), in build/oldest; TESTS=path selects some
	@command -v uv >/dev/null || { echo "error: uv not found; pip install uv" >&2; exit 2; }
	uv venv --quiet --clear --python $(PYTHON) build/oldest
	uv pip install --quiet --python build/oldest --resolution lowest-direct --editable '.[$(OLDEST)]'
	PATH="$(CURDIR)/build/oldest/bin:$$PATH" build/oldest/bin/python -m pytest -n 2 -m 'not slow and not browser' \
		$(or $(TESTS),tests/graphs tests/export tests/quant tests/engines)

proto: $(READY) ## generate the gRPC messages from engines/serve/oip/open_inference.proto
	@$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. engines/serve/oip/open_inference.proto

lint: $(STUBS) ## run ruff, mypy and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

$(STUBS): $(READY) tests/binding_stubs.py
	@$(BIN)/python -m tests.binding_stubs build/stubs
	@touch $(STUBS)

clean: ## remove build/ and keep the environment in .venv
	rm -rf build
