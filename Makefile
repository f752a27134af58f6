# Two commands matter: `make tutorial` runs the course, `make test` runs the tests.
# Both set up .venv first. Everything else is optional.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
SITE := $(VENV)/installed-site
TRL := $(VENV)-trl/installed

.PHONY: doctor tutorial test render site lint parity bench clean

tutorial: $(INSTALLED)
	$(BIN)/python scripts/run_notebooks.py

# What this machine has for the course: also before anything is installed.
doctor:
	@$(if $(wildcard $(INSTALLED)),$(BIN)/python,$(PYTHON)) -m rlhf_tutorial doctor

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

render: $(INSTALLED)
	$(BIN)/python scripts/run_notebooks.py --in-place
	$(BIN)/python scripts/make_figures.py
	$(BIN)/python scripts/update_results.py
	$(BIN)/python scripts/update_docs.py

# The course as pages, in build/site. Nothing is run: they show what is committed.
site: $(SITE)
	$(BIN)/python site/make.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

parity: $(INSTALLED) $(TRL)
	$(VENV)-trl/bin/python scripts/parity/record.py runs/parity
	PYTHONPATH=tests $(BIN)/python scripts/parity/compare.py runs/parity
	$(BIN)/python -m pytest -q tests/ppo/test_parity.py tests/ppo/test_bugs_are_caught.py

# Seconds and memory, side by side with the original loop. Leave the machine alone meanwhile.
# DIALOGUES=FOLDER takes real dialogues (test.jsonl.gz in hh-rlhf's form) where the texts matter.
bench: $(INSTALLED) $(TRL)
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/ppo_step.py --output benchmarks/results/ppo_step.json
	$(BIN)/python benchmarks/scaling.py --output benchmarks/results/scaling.json
	$(BIN)/python benchmarks/scoring.py $(if $(DIALOGUES),--dialogues $(DIALOGUES)) \
		--output benchmarks/results/scoring.json
	$(BIN)/python benchmarks/perplexity.py $(if $(DIALOGUES),--dialogues $(DIALOGUES)) \
		--output benchmarks/results/perplexity.json
	$(BIN)/python benchmarks/draw.py

# TRL 0.11.4 needs libraries of its time, and so an environment of its own.
$(TRL): scripts/parity/requirements.txt
	$(PYTHON) -m venv $(VENV)-trl
	$(VENV)-trl/bin/python -m pip install --quiet --requirement scripts/parity/requirements.txt
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(SITE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[site]'
	$(BIN)/python site/mathjax.py
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-trl runs
