# Two commands matter: `make demo` and `make test`. Both need Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint clean

demo: $(STAMP)
	$(BIN)/python -m hpdlf.experiments.demo --out demo

# Lint and types first: they are quick and name the line.
test: $(STAMP) lint
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP) lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	MYPYPATH=$(VENV)/src $(BIN)/mypy -p hpdlf

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hpdlf needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": set PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mpi,test]'
	@# mypy wants a folder called hpdlf; the repository may be checked out under any name.
	@mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/hpdlf
	@touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
