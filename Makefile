# `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DURATION ?= 60
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
.NOTPARALLEL:
# Where a machine sets it, each start of Python compiles all its modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 36

INTO_VENV = $(1) --require-hashes -r $(2) && $(1) --no-deps --no-build-isolation -e .

# Everything pinned in a lock, into the virtual environment: by uv, which is ten times as fast as pip.
define INSTALL
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "esp-ingest needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "   setting up $(VENV) with $(1) from PyPI ($(2); once)"
	@$(PYTHON) -m venv $(VENV)
	@SECONDS=0; { $(PIP) --require-hashes -r requirements-uv.lock && $(call INTO_VENV,$(UV),$(1)); } || \
	  { echo "   uv cannot, so pip does"; $(call INTO_VENV,$(PIP),$(1)); } && echo "   set up in $$SECONDS s"
	@touch $@
endef

$(VENV)/.stamp: requirements.lock pyproject.toml
	$(call INSTALL,requirements.lock,500 MB, half a minute to some minutes)

# What the demo needs and no more; an environment that has everything will do.
$(VENV)/.stamp-demo: requirements-demo.lock pyproject.toml
	@if [ -e $(VENV)/.stamp ] && $(MAKE) --silent --question $(VENV)/.stamp; then touch $@; else $(MAKE) --silent demo-setup; fi

.PHONY: demo-setup
demo-setup:
	$(call INSTALL,requirements-demo.lock,250 MB, a quarter of a minute and more on a slow line)
	@rm -f $@ && touch $(VENV)/.stamp-demo

.PHONY: setup
setup: $(VENV)/.stamp  ## virtual environment with everything pinned
	@:

.PHONY: demo
demo: $(VENV)/.stamp-demo  ## all of it on this machine, a minute (DURATION=seconds, ARGS="--csv FILE --json …")
	@$(BIN)/esp-ingest demo --duration $(DURATION) $(ARGS)

.PHONY: test
test:  ## set up what is missing, then lint, types and every test
	@.ci/test.sh $(ARGS)

.PHONY: test-machine
test-machine:  ## install brokers, databases and linters that the tests need (root)
	@.ci/parts.sh

.PHONY: lint
lint: setup  ## ruff
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }

.PHONY: types
types: setup  ## mypy --strict
	@$(BIN)/mypy --no-error-summary

.PHONY: unit property integration fault browser
unit property integration fault browser: setup  ## one folder of tests (ARGS="-k …")
	@$(BIN)/python -m pytest -m "not soak" tests/$@ $(ARGS)

.PHONY: soak
soak: setup  ## the long fault runs
	@$(BIN)/python -m pytest -m soak tests $(ARGS)

.PHONY: faults
faults: setup test-machine  ## every fault case, and their table into docs/faults.md
	@$(BIN)/python -m tests.fault $(ARGS)

.PHONY: cluster
cluster: setup test-machine  ## a share group on three nodes of rmqttd, its parts killed in turn (builds rmqttd once, 20 minutes)
	@$(BIN)/python -m tests.cluster $(ARGS)

.PHONY: bench
bench: setup test-machine  ## throughput and cost beside the peers, as a table
	@$(BIN)/python -m tests.bench $(ARGS)

.PHONY: lifecycle-bench
lifecycle-bench: setup test-machine  ## times and sizes of a month of readings, as a table (ARGS="--wells 20 --paste")
	@$(BIN)/python -m tests.bench.lifecycle $(ARGS)

.PHONY: evaluate
evaluate: setup  ## diagnostics on recorded wells (DATA=folder)
	@$(BIN)/python -m tests.evaluate $(ARGS)

.PHONY: floor
floor: setup  ## unit tests with the oldest dependencies that pyproject.toml allows
	@.ci/floor.sh $(ARGS)

.PHONY: pythons
pythons: setup  ## unit tests under each newer Python that is on this machine
	@.ci/pythons.sh $(ARGS)

.PHONY: audit
audit: setup  ## secrets in the history, known faults of dependencies, licences
	@$(BIN)/python -m tools.audit $(ARGS)

.PHONY: sbom
SBOM ?= dist/esp-ingest.cdx.json
sbom: setup  ## what the image installs from PyPI, with versions and digests, as a CycloneDX document (SBOM=FILE)
	@mkdir -p $(dir $(SBOM))
	@$(BIN)/python -W ignore::UserWarning -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible \
	  --sv 1.6 -o $(SBOM) requirements-run.lock && echo "$(SBOM) written"

.PHONY: lock
LOCK = $(BIN)/uv pip compile --universal --generate-hashes --no-header --no-annotate --quiet
lock: setup  ## pin the newest versions that pyproject.toml allows (ARGS=--upgrade)
	@$(LOCK) pyproject.toml --all-extras --group dev --group bench -o requirements.lock $(ARGS)
	@$(LOCK) pyproject.toml --extra api --extra archive -c requirements.lock -o requirements-run.lock $(ARGS)
	@printf 'hatchling\neditables\n' | $(LOCK) pyproject.toml - --extra demo --extra api -c requirements.lock -o requirements-demo.lock $(ARGS)
	@echo hatchling | $(LOCK) - -c requirements.lock -o requirements-build.lock $(ARGS)
	@echo uv | $(LOCK) - -c requirements.lock -o requirements-uv.lock $(ARGS)

.PHONY: docs
docs: setup  ## write the pages that are made from code
	@$(BIN)/python -m tools.docs
	@$(BIN)/python -m tools.openapi

.PHONY: console-pictures
console-pictures: setup test-machine  ## pictures of the console out of the demo, into docs/pictures
	@$(BIN)/python -m tests.browser.pictures

.PHONY: clean
clean:  ## remove what make made
	rm -rf $(VENV) dist build *.egg-info .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
