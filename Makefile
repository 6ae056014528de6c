# Two commands on a machine with Python: `make demo` runs the main job, `make test` runs the tests.
# `make test-long` runs what takes longer: every layer of every test on every target of this machine.
PYTHON ?= python3
VENV ?= .venv
# A test mostly waits for one thread that compiles; more processes than this want gigabytes for the frameworks they import.
TEST_PROCESSES ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install -qq --constraint constraints.txt
INPUTS = pyproject.toml constraints.txt

.PHONY: demo test test-alone test-together test-long docs lint lint-rules lint-format lint-types lint-floors format clean

demo: $(VENV)/base
	$(BIN)/upconv demo

test: test-alone test-together

test-alone: $(VENV)/test
	$(BIN)/python -m pytest -m alone

test-together: $(VENV)/test
	$(BIN)/python -m pytest -m 'not alone and not long' --numprocesses $(TEST_PROCESSES) --dist worksteal

test-long: $(VENV)/test
	$(BIN)/python -m pytest -m long --numprocesses $(TEST_PROCESSES) --dist worksteal

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: lint-rules lint-format lint-types lint-floors

lint-rules: $(VENV)/dev
	$(BIN)/ruff check

lint-format: $(VENV)/dev
	$(BIN)/ruff format --check

lint-types: $(VENV)/dev
	$(BIN)/mypy

lint-floors: $(VENV)/dev
	$(BIN)/lint-imports

format: $(VENV)/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "upconv needs Python 3.10 or later; this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/base: $(BIN)/python $(INPUTS)
	@echo 'installing upconv into $(VENV)'
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/test $(VENV)/dev $(VENV)/docs: $(VENV)/%: $(BIN)/python $(INPUTS)
	@echo 'installing upconv[$*] into $(VENV): minutes the first time, for PyTorch'
	@$(INSTALL) --editable '.[$*]'
	@touch $@
