# make demo         train on the embedded data set, evaluate, draw pictures
# make test         run the tests
# make test-slow    run the tests that take minutes; PART=1 to PART=4: a quarter of them
# make test-torch   install PyTorch and safetensors, run the tests that need them
# make test-faults  kill training 50 times and interrupt every command at random moments, compare
#                   the results; FAULT_KILLS=10 FAULT_SIGNALS=20: fewer
# make test-all     run all of these tests and lint (hours)
# make thesis       test the paper's thesis on small detectors: table and figure in runs/thesis
#                   (about 5 h on one core; QUICK=1: one seed, about 1 h); run again to resume
# make lint         check style, format and types
# make setup        install the requirements and the command scratchdet into .venv-VERSION; all
#                   targets above do this first
# make clean        delete the virtual environments and caches
#
# make LOCK=1 …             install exactly the versions of CI (requirements-lock.txt; Python 3.11)
# make PYTHON=python3.12 …  use another interpreter than the newest of 3.13, 3.12 and 3.11 that works

# Newer ones get a newer JAX, which is faster on CPUs. "Works": starts and can make environments.
PYTHONS := $(if $(LOCK),,python3.13 python3.12) python3.11 python3
works = $(shell $(1) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
  >/dev/null 2>&1 && echo $(1))
PYTHON ?= $(or $(firstword $(foreach p,$(PYTHONS),$(call works,$(p)))),python3)
PYTHON := $(PYTHON)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV ?= .venv-$(VERSION)$(if $(LOCK),-lock)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
  $(if $(LOCK),-c requirements-lock.txt)
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

DEMO_DIR ?= runs/shapes
THESIS_DIR ?= runs/thesis

.PHONY: demo thesis test test-torch test-slow test-faults test-all torch lint setup clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt requirements-s3.txt requirements-tpu.txt pyproject.toml $(if $(LOCK),requirements-lock.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: $(PYTHON) $(if $(VERSION),is Python $(VERSION),does not start);" \
	    "3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

torch: setup
	$(PIP) -r requirements-torch.txt

demo: setup
	$(BIN)/python train.py --config=configs/shapes.py --workdir=$(DEMO_DIR)
	$(BIN)/python eval.py --workdir=$(DEMO_DIR)
	$(BIN)/scratchdet predict --workdir=$(DEMO_DIR) --output=$(DEMO_DIR)/pictures
	$(BIN)/scratchdet plot $(DEMO_DIR) --output=$(DEMO_DIR)/pictures/curves.png
	@echo "pictures: $(DEMO_DIR)/pictures"

thesis: setup
	$(BIN)/python -m experiments.thesis --output=$(THESIS_DIR) $(if $(QUICK),--quick)

test: setup
	$(PYTEST)

# `make test` skips these tests where the two are not installed.
test-torch: torch
	$(PYTEST) $$(grep -rlE 'importorskip\("(torch|safetensors)' tests)

test-slow: setup
	$(PYTEST) -m slow $(if $(PART),--part=$(PART))

test-faults: setup
	$(BIN)/python -m pytest -m faults -s tests/faults

test-all: test test-torch test-slow test-faults lint

lint: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy

clean:
	rm -rf .venv-* .mypy_cache .pytest_cache .ruff_cache
