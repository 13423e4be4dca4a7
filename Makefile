# make demo: the whole life on this machine. make test: the tests. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check tests slow laws docs clean

demo: $(VENV)/demo.stamp
	$(BIN)/lmlab demo

test: check tests

check: $(VENV)/dev.stamp
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

tests: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term --durations 10

# Browsers, sockets and killed processes on a crowded machine: what fails is tried once more, and said (R).
slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "slow or browser" --timeout 1500 --reruns 1 -rfER --durations 20

laws: $(VENV)/dev.stamp
	LMLAB_RANKS_SECONDS=1700 $(BIN)/python -m pytest -m long --timeout 1800

docs: $(VENV)/dev.stamp
	$(BIN)/python docs/generate.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/demo.stamp: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	touch $@

$(VENV)/dev.stamp: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
