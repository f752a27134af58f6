# Two commands matter: `make tutorial` runs the course, `make test` runs the tests.
# Both set up .venv first. Everything else is optional.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: tutorial test render lint clean

tutorial: $(INSTALLED)
	$(BIN)/python scripts/run_notebooks.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

render: $(INSTALLED)
	$(BIN)/python scripts/run_notebooks.py --in-place
	$(BIN)/python scripts/make_figures.py
	$(BIN)/python scripts/update_readme.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
