# Every target sets up .venv by itself; after the first one none needs a network.
# Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SLOW_MINUTES ?= 50

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow coverage mutants bench bench-gpu check docs fmt clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

venv: $(STAMP)  ## install everything into .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is missing or older than Python 3.11. Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about two minutes; afterwards nothing needs a network)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## a real preference sweep on built-in data: 5 losses, 3 seeds, one table
	$(BIN)/python run.py -m experiment=demo loss=sft,dpo,ipo,kto,simpo seed=0,1,2

test: $(STAMP)  ## the fast tests, on the CPU
	$(BIN)/python -m pytest -q -m "not slow and not gpu" -n 2 --dist worksteal --durations 10

test-slow: $(STAMP)  ## the slow tests, in an order drawn from the commit; stops after SLOW_MINUTES
	$(BIN)/python tests/run_slow.py --minutes $(SLOW_MINUTES)

coverage: $(STAMP)  ## every line of the losses is reached by their own tests, or this fails
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist worksteal tests/objectives tests/test_describe.py \
	  --cov=medvlm_dpo.objectives --cov-report=term-missing:skip-covered --cov-fail-under=100

mutants: $(STAMP)  ## small mistakes in every loss; prints how many the golden numbers do not notice
	$(BIN)/python tests/run_mutants.py

bench: $(STAMP)  ## our training step beside TRL's, on this CPU: speed, memory, losses; BENCH=--quick for the main shape only
	$(BIN)/python -m tests.benchmarks.bench $(BENCH)

bench-gpu: $(STAMP)  ## the same on the true 7B shapes and one CUDA GPU; without one it says so and exits with 2
	$(BIN)/python -m tests.benchmarks.bench_gpu $(BENCH)

check: $(STAMP)  ## format, lint, types, import layers, spelling, docs, wheel
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/yamllint --strict conf
	$(BIN)/codespell
	$(BIN)/lint-imports
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m medvlm_dpo.describe --check docs/objectives.md
	$(BIN)/python tests/check_wheel.py

docs: $(STAMP)  ## make docs/objectives.md anew from the cards in conf/loss
	$(BIN)/python -m medvlm_dpo.describe docs/objectives.md

fmt: $(STAMP)  ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## remove what the tools left behind; .venv and outputs stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	find medvlm_dpo launch hydra_plugins tests -name __pycache__ -type d -prune -exec rm -rf {} +
