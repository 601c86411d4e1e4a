# make demo   the whole job on the embedded model: runs/demo/report.html
# make test   the test suite
# make lint   ruff and mypy
# make install-matrix  every way to install, each tried in an environment of its own
# make setup  what the others do first: a virtual environment with everything pinned, and the extension built in place
#
# PYTHON picks the interpreter, VENV the environment's folder, PIP_ARGS what pip is given besides (an index, say).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PIP_ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt $(PIP_ARGS)
BUILT_FROM := pyproject.toml setup.py constraints.txt $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu*')

.PHONY: setup demo test lint install-matrix

setup: $(READY)

# torch comes first: the extension is built against the installed one, without build isolation.
$(READY): $(BUILT_FROM)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools wheel ninja
	$(PIP) --no-build-isolation --editable '.[dev]'
	$(BIN)/python -c "import fym_kernels.extension as e; print('fym: kernels in', e.cpu_isa() or 'plain PyTorch')"
	touch $@

demo: setup
	$(BIN)/python -m fym.demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install-matrix: setup
	PYTHON=$(BIN)/python .ci/install_matrix
