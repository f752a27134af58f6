# Two commands matter: `make tutorial` runs the course, `make test` runs the tests.
# Both set up .venv first. Everything else is optional.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: tutorial test render lint parity clean

tutorial: $(INSTALLED)
	$(BIN)/python scripts/run_notebooks.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

render: $(INSTALLED)
	$(BIN)/python scripts/run_notebooks.py --in-place
	$(BIN)/python scripts/make_figures.py
	$(BIN)/python scripts/update_readme.py
	$(BIN)/python tests/test_docs.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# TRL 0.11.4 needs libraries of its time, and so an environment of its own.
parity: $(INSTALLED)
	$(PYTHON) -m venv $(VENV)-trl
	$(VENV)-trl/bin/python -m pip install --quiet --requirement scripts/parity/requirements.txt
	$(VENV)-trl/bin/python scripts/parity/record.py runs/parity
	PYTHONPATH=tests $(BIN)/python scripts/parity/compare.py runs/parity
	$(BIN)/python -m pytest -q tests/test_parity.py tests/test_bugs_are_caught.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-trl runs
