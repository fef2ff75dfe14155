# Everything a contributor or a CI needs, from a fresh clone: `make help`.
#
# On Linux, PyPI's torch wheel is the CUDA build, several GB. The CPU build does for everything here:
#     make quickstart PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
VENV_COMPAT ?= .venv-compat
CONSTRAINTS ?= constraints/transformers-5.txt
CONSTRAINTS_COMPAT ?= constraints/transformers-4.57.txt
PIP_ARGS ?=
PYTEST_ARGS ?= -n auto --dist loadfile
RUN_ARGS ?=

# A stamp stands for an install: it is made anew when what it was made from has changed.
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
COMPAT_STAMP := $(VENV_COMPAT)/.installed-compat

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-compat test-lines lint clean

help:  ## print the targets
	@echo "make TARGET [VARIABLE=value ...]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16
	@echo
	@echo "  PYTHON=$(PYTHON)   the interpreter the environments are made with (3.11 or newer for the pinned versions)"
	@echo "  VENV=$(VENV)   CONSTRAINTS=$(CONSTRAINTS)"
	@echo "  VENV_COMPAT=$(VENV_COMPAT)   CONSTRAINTS_COMPAT=$(CONSTRAINTS_COMPAT)"
	@echo "  PIP_ARGS=$(PIP_ARGS)   more arguments for pip, such as"
	@echo "      PIP_ARGS=\"--extra-index-url https://download.pytorch.org/whl/cpu\"   (torch without CUDA on Linux)"
	@echo "  PYTEST_ARGS=\"$(PYTEST_ARGS)\"   more arguments for pytest; these share the test files out among all cores"

quickstart: $(RUN_STAMP)  ## install the pinned versions and run the embedded default recipe
	$(VENV)/bin/skillprune run recipes/quickstart.yaml --output runs/quickstart $(RUN_ARGS)

test: lint  ## lint, then run the test suite
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-compat: $(COMPAT_STAMP)  ## run the test suite on transformers 4.57 with optimum-onnx
	$(VENV_COMPAT)/bin/python -m pytest $(PYTEST_ARGS)

test-lines: $(DEV_STAMP) $(COMPAT_STAMP)  ## see that each line of transformers reads the checkpoints of the other
	SKILLPRUNE_OTHER_PYTHON=$(abspath $(VENV_COMPAT))/bin/python $(VENV)/bin/python -m pytest tests/test_zoo.py -k other_line
	SKILLPRUNE_OTHER_PYTHON=$(abspath $(VENV))/bin/python $(VENV_COMPAT)/bin/python -m pytest tests/test_zoo.py -k other_line

lint: $(DEV_STAMP)  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict --package skillprune

clean:  ## remove environments, caches, builds and runs
	rm -rf $(VENV) $(VENV_COMPAT) build dist runs .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The dev install holds all that a run needs, so it renews the run's stamp as well.
$(RUN_STAMP): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install $(PIP_ARGS) --constraint $(CONSTRAINTS) --editable .
	touch $@

$(DEV_STAMP): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install $(PIP_ARGS) --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $(RUN_STAMP) $@

$(COMPAT_STAMP): pyproject.toml $(CONSTRAINTS_COMPAT) | $(VENV_COMPAT)/bin/python
	$(VENV_COMPAT)/bin/python -m pip install $(PIP_ARGS) --constraint $(CONSTRAINTS_COMPAT) --editable ".[dev,optimum]"
	touch $@

$(VENV)/bin/python $(VENV_COMPAT)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "The pinned versions need Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(@D:/bin=)
