# The commands of the project; `make` lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
DEMO := outputs/demo
# Each test process on one thread, since there is one for every core. By file: what a file prepares is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-lowest slow-test real-test rehearsal kills faults bench bench-gpu lint docs wheel clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	touch $@

setup: $(VENV)/.ready  ## make the virtual environment .venv

demo: $(VENV)/.ready  ## render scenes, train on their captions, segment held-out scenes: outputs/demo/report.html
	rm -rf $(DEMO)
	$(BIN)/simzss prep scenes output=$(DEMO)/scenes
	$(BIN)/simzss prep efficientnet_weights output=$(DEMO)/weights
	$(BIN)/simzss prep captions images=$(DEMO)/scenes/images/train captions=$(DEMO)/scenes/captions_train.json output=$(DEMO)/shards
	$(BIN)/simzss prep bank captions=$(DEMO)/shards output=$(DEMO)/coverage.json top=12
	$(BIN)/simzss train experiment=demo data.shards='$(DEMO)/shards/*.tar' backbone.weights=$(DEMO)/weights output_dir=$(DEMO)/run
	$(BIN)/simzss eval model=$(DEMO)/run/model benchmark=scenes benchmark.root=$(DEMO)/scenes output_dir=$(DEMO) protocol.short_side=512 compare_untrained=true
	@echo "report: $(DEMO)/report.html"

test: $(VENV)/.ready lint  ## lint, types and the tests that need no downloaded data, but for the slow ones
	$(PYTEST) -m "not real and not slow"

$(LOWEST)/.ready: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct -r pyproject.toml --extra demo --extra dev
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST) --no-deps --editable .
	touch $@

test-lowest: $(LOWEST)/.ready  ## tests of hostile files with the lowest versions that pyproject.toml allows, in .venv-lowest
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -m hostile

slow-test: $(VENV)/.ready  ## the slow tests: whole programs, a Ray cluster, kills, every example, two nodes (4 minutes)
	$(PYTEST) -m slow

real-test: $(VENV)/.ready  ## tests on real photos and weights: SIMZSS_DATA=… SIMZSS_WEIGHTS=… make real-test
	$(BIN)/python -m pytest -m real

rehearsal: $(VENV)/.ready  ## training on two nodes, rehearsed on this machine
	$(BIN)/python -m pytest -v tests/integration/test_two_nodes.py

kills: $(VENV)/.ready  ## the annotation of captions killed ten times under each executor (5 minutes)
	SIMZSS_KILLS=10 $(BIN)/python -m pytest -s tests/integration/test_kills.py

faults: $(VENV)/.ready  ## a thousand faults (kills, full disks, damaged files …) and what came of them (15 minutes): outputs/faults.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(FAULTS)

bench: $(VENV)/.ready  ## speed against baselines, side by side, to outputs/bench.json; BENCH=evaluation for one row
	$(BIN)/python -m benchmarks $(BENCH)

bench-gpu: $(VENV)/.ready  ## the whole COCO run timed on this machine, 10 minutes of a large GPU: outputs/recipe.md; RECIPE="images=… batch=…"
	$(BIN)/python -m benchmarks.recipe $(RECIPE)

lint: $(VENV)/.ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.ready  ## build the documentation to outputs/site; a dead link is an error
	$(BIN)/mkdocs build --strict

wheel: $(VENV)/.ready  ## build the wheel to outputs/dist
	$(BIN)/python -m hatchling build --target wheel --directory outputs/dist

clean:  ## remove the environment and all outputs
	rm -rf $(VENV) $(LOWEST) outputs .pytest_cache .mypy_cache .ruff_cache
