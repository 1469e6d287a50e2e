# Atelier. `make demo` and `make test` set up what they need; nothing else must be run before them.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Two at a time, whole files each: most tests wait for servers, and those that compute use one thread.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Processes on few cores must not spin while they wait for each other.
export OMP_WAIT_POLICY := passive

.PHONY: help setup demo test test-all lint format protos lock bench bench-methods bench-registry clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(INSTALLED)  ## Create .venv with everything that requirements.lock names

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(INSTALLED)

demo: setup  ## Teach Atelier a fox, then draw it where it never was
	$(BIN)/python -m examples.demo

test: setup lint  ## Check everything over real sockets, servers and training
	$(PYTEST) -m "not slow"

test-all: setup lint  ## The same, and the slow, exhaustive tests
	$(PYTEST)

lint: setup  ## ruff, mypy and buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.lint_protos

format: setup  ## Let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: setup  ## Regenerate atelier/pb from protos/
	$(BIN)/python -m tools.generate_stubs

lock: setup  ## Pin the newest versions that pyproject.toml allows
	$(BIN)/pip-compile --quiet --upgrade --all-extras --strip-extras --allow-unsafe --no-header \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file requirements.lock pyproject.toml
	sed -i 's/+cpu$$//' requirements.lock  # the build of torch is the machine's choice

bench: setup  ## Atelier beside diffusers with PEFT, in one run
	$(BIN)/python -m bench

bench-methods: setup  ## The five methods before and after; PEER=DIR, diffusers' examples folder, beside them
	$(BIN)/python -m bench.methods $(if $(PEER),--peer-scripts $(PEER))

bench-registry: setup  ## The registry beside the bare S3 client, and with 1,000 and 100,000 versions
	$(BIN)/python -m bench.registry

clean:  ## Remove what the targets above made
	rm -rf $(VENV) demo build .data
