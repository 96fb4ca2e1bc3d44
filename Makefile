# One name for each thing that people, hooks and machines run. CONTRIBUTING.md says which to run when.
#   make setup VENV=/elsewhere PYTHON=python3.12 PINS="'torch==2.4.*'"
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What pip is told beside the project: the versions that CI tests. Older Pythons name their own.
PINS ?= --constraint constraints.txt
# Empty installs a wheel instead of a link to this checkout.
INSTALL_AS ?= --editable
EXTRAS := test,dev,export,coco,s3
# An S3 server for tests, in an environment of its own: its botocore is not that of s3fs.
STORE ?= $(VENV)/store
export YOLO_LAUNCH_MOTO = $(abspath $(STORE))
# Processes that tests run in, side by side.
JOBS ?= 2
PYTEST := $(BIN)/pytest -q -p no:cacheprovider
SIDE_BY_SIDE := -n $(JOBS) --dist worksteal
# The folders of the rooms that pyproject.toml measures coverage of.
COVERED := $(addprefix tests/yolo_launch/,checks diagnosis host planning request) \
	$(addprefix tests/trainer/,data/augment data/scan evaluation loss model optim)

# A neighbor on a shared core slows spinning threads fourfold.
export GOMP_SPINCOUNT = 0

.PHONY: help setup store check test test-slow test-image coverage docs bench
help:
	@echo "make setup | store | check | test | test-slow | test-image | coverage | docs | bench"

setup: $(VENV)/ready
	rm -rf build *.egg-info
	$(BIN)/pip install --quiet --no-deps --force-reinstall $(INSTALL_AS) .
	rm -rf build *.egg-info

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PINS) '.[$(EXTRAS)]'
	touch $@

store: $(STORE)/ready

$(STORE)/ready:
	$(PYTHON) -m venv $(STORE)
	$(STORE)/bin/pip install --quiet 'moto[server]==5.2.5'
	touch $@

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test:
	$(PYTEST) $(SIDE_BY_SIDE) --durations=25

# Machines in namespaces start and wait by the clock: beside other tests they would wait for a core.
test-slow:
	$(PYTEST) $(SIDE_BY_SIDE) -m 'slow and not netns and not slurm' --timeout=1500 --durations=40
	$(PYTEST) -m netns --timeout=1500 --durations=40
	$(PYTEST) -m slurm --durations=20

# By hand, not by .ci/run: as root on a Debian, and the first time its packages are fetched.
test-image:
	$(PYTEST) tests/image -m image --timeout=600 --durations=10

coverage:
	$(PYTEST) $(SIDE_BY_SIDE) --cov --cov-report=term:skip-covered $(COVERED)

docs:
	$(PYTEST) tests/test_docs.py tests/test_clusters_page.py tests/test_architecture.py

# Toy sizes: whether each still runs, not how fast anything is. The others need data, weights or several torch versions.
bench:
	$(BIN)/python benchmarks/metrics.py --images 50 --repeats 1
	$(BIN)/python benchmarks/step.py --imgsz 64 --batch 2 --steps 2 --repeats 1
	$(BIN)/python benchmarks/loader.py --data tests/data/bccd/bccd.yaml --imgsz 64 --warm 1 --batches 2 --repeats 1
	$(BIN)/python benchmarks/training.py --data tests/data/bccd/bccd.yaml --imgsz 64 --epochs 1 --repeats 1
	$(BIN)/python benchmarks/validation.py --data tests/data/bccd/bccd.yaml --weights tests/data/detector.pt --imgsz 64 --repeats 1
	$(BIN)/python benchmarks/growth.py --sizes 50 --imgsz 64 --repeats 1
	$(BIN)/python benchmarks/starts.py --repeats 1
	$(BIN)/python benchmarks/annotations.py --images 500 --repeats 1
	$(BIN)/python benchmarks/rendezvous.py 2 8
	$(BIN)/python benchmarks/rosters.py --machines 8 --histories 10
	$(BIN)/python benchmarks/endings.py --repeat 1
	$(BIN)/python benchmarks/restarts.py --restarts 1
	@echo "the others, and their data: benchmarks/README.md"
