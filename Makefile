# make demo       from nothing to a table of measures on the embedded default
# make test       unit and integration tests: a few minutes
# make test-all   every test, also the slow ones: crashes, browser, several processes, memory
# make lint       ruff check, ruff format --check, mypy
# make docs       builds the documentation into build/site; a broken link is an error
# make release    builds the sdist and the wheel into dist/, and checks both
# make bench      a table of this package's speed beside its peers', side by side (experiments/benchmarks/page.md); DATA=folder of the collections
# Each sets up .venv first if it is missing. Each can be run again and reuses what is there.
# PYTHON=python3.13 names another Python; it gets .venv-3.13 if .venv has another version. Python 3.11 gets Pyserini 1.6, newer
# Pythons get Pyserini 2. CONSTRAINTS=constraints.txt VENV=folder tries Pyserini 1.6 with a newer Python.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
SAY_VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
VERSION := $(shell $(PYTHON) $(SAY_VERSION))
CONSTRAINTS ?= $(if $(filter 3.11,$(VERSION)),constraints.txt,constraints-pyserini2.txt)
VENV ?= .venv$(if $(filter-out $(VERSION),$(shell .venv/bin/python $(SAY_VERSION) 2>/dev/null)),-$(VERSION))
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check -c $(CONSTRAINTS)
# one thread per worker: the models of the tests are tiny, and threads of several workers would wait for each other
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

.PHONY: demo test test-all lint docs release bench clean

demo: $(VENV)/.installed
	$(BIN)/python -m pyserini_kd.demo

test: $(VENV)/.installed
	$(PYTEST) -m 'not slow'

test-all: $(VENV)/.installed
	$(PYTEST)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/python docs/build_pages.py
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet

# The wheel is unpacked into a folder of its own and run from there, so that files missing from it are noticed
release: $(VENV)/.installed
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --target build/wheel dist/*.whl
	cd build && PYTHONPATH=wheel ../$(BIN)/python -m pyserini_kd --version
	cd build && PYTHONPATH=wheel ../$(BIN)/python -m pyserini_kd reproduce --list > /dev/null

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.table $(if $(DATA),--data $(DATA))

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[bench,int8]'
	touch $@

# torch comes first and alone: pip then takes the CPU build if there is one, and the next command accepts it
$(VENV)/.installed: setup.cfg $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info
