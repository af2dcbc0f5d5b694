# make serve    set up what is missing and serve a model     MODEL=… PORT=… ARGS="…"
# make test     everything CI runs
# make setup    a virtual environment in .venv, and the default model
# make docs     write docs/options.md anew
# make clean    remove what the above made

MODEL  ?=
PORT   ?= 8000
ARGS   ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: setup serve test docs clean

setup: $(STAMP)
	@$(BIN)/headrace download

serve: $(STAMP)
	@exec $(BIN)/headrace serve $(MODEL) --port $(PORT) $(ARGS)

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m headrace.config.document --check docs/options.md
	@# A file's tests share servers and models, so one worker takes them all; first come the long ones, of tests/e2e.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q $(ARGS)

docs: $(STAMP)
	$(BIN)/python -m headrace.config.document docs/options.md

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Headrace needs Python 3.11 or newer: install python3.11 (apt-get install python3.11 python3.11-venv)."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) can't make virtual environments: apt-get install python3-venv (or $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'))."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --progress-bar $(if $(CI),off,on) -c constraints.txt -e '.[test]'
	@touch $@
