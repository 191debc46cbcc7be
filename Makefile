# make demo | test | lint | format | bench-vector | bench-grid | clean; needs git, make and Python >= 3.11 with venv and pip.
# Another interpreter: make test PYTHON=python3.13. More for pytest: make test ARGS="tests/laws -k mass".

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

# The stamps carry the interpreter's version, so another PYTHON installs anew and the same one does not.
VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null)
CLI := $(VENV)/installed-cli-$(VERSION)
DEV := $(VENV)/installed-dev-$(VERSION)
BENCH := $(VENV)/installed-bench-$(VERSION)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format bench-vector bench-grid constraints clean

help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(CLI)
	$(BIN)/thalweg demo

test: $(DEV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --durations=15 $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Minimisers, least squares and a physics-informed network against peers; docs/benchmarks.md says what and how.
# About an hour on one core; make bench-vector ARGS=--ours measures only thalweg anew.
bench-vector: $(BENCH)
	$(BIN)/python -m benchmarks.vector $(ARGS)

# Densities on grids against py-pde, FiPy, fplanck and a loop over SciPy; docs/benchmarks.md says what and how.
# About twenty minutes on a quiet core; make bench-grid ARGS=--ours measures only thalweg anew.
bench-grid: $(BENCH)
	$(BIN)/python -m benchmarks.grid $(ARGS)

# An existing .venv is kept when its interpreter has the wanted version, and made anew when it has not.
# --no-compile: only what is imported is ever compiled, which makes the first run shorter.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "thalweg needs Python >= 3.11, and $(PYTHON) is $(or $(VERSION),not there). Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test "$$($(BIN)/python -c 'import platform; print(platform.python_version())' 2>/dev/null)" = "$(VERSION)" || \
	    { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@echo "Installing thalweg[$(1)] into $(VENV); this can take some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-compile -c constraints.txt -e ".[$(1)]"
	@touch $@
endef

$(CLI): pyproject.toml constraints.txt
	$(call install,cli)

# What tests and linters need includes what the command line needs.
$(DEV): pyproject.toml constraints.txt
	$(call install,dev)
	@touch $(CLI)

$(BENCH): pyproject.toml constraints.txt
	$(call install,bench)

# Needs uv; everybody else only reads the file.
constraints:
	{ sed -n '/^#/p' constraints.txt; \
	  uv pip compile --quiet --universal --python-version 3.11 --fork-strategy requires-python \
	      --no-header --no-annotate --extra dev --extra bench pyproject.toml; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .cache dist build thalweg-demo .hypothesis .pytest_cache .ruff_cache
	find thalweg tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
