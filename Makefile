PYTHON ?= python3
ORDERS ?= 200000
WORKERS ?= 2
DAYS ?= 60
ARGS ?=
SCALE_REQUIREMENTS = requirements.txt requirements-celery.txt demo/requirements.txt demo/scale-requirements.txt
IN_VENV = .venv/bin/python

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "To choose another Python (3.11 to 3.13), pass PYTHON=python3.12 to the first command."

demo: .venv/demo.stamp  ## export a table of orders to S3 through Airflow; ORDERS=5000000 for more rows
	@$(IN_VENV) -m demo --orders '$(ORDERS)'

ui: .venv/demo.stamp  ## the same services with Airflow's web interface, until Ctrl-C
	@$(IN_VENV) -m demo.ui --orders '$(ORDERS)'

scale: .venv/scale.stamp  ## a backfill on Celery workers, one of them killed; WORKERS=4 DAYS=365 for more
	@$(IN_VENV) -m demo.scale --workers '$(WORKERS)' --days '$(DAYS)'

# Containers set PYTHONDONTWRITEBYTECODE, with which every process and program of the tests would compile all modules.
test: .venv/test.stamp  ## all tests; ARGS='-k multipart' for some
	PYTHONDONTWRITEBYTECODE= $(IN_VENV) -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: .venv/test.stamp  ## 20 minutes of random faults; SECONDS=120 for less, SEED=42 to repeat, STEP=7 for one fault
	@PYTHONPATH=plugins $(IN_VENV) -m tests.faults.soak $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(STEP),--step $(STEP))

bench: .venv/demo.stamp .bench/peers.stamp  ## measure the export against its peers, 40 minutes; ROWS=200000 for two minutes, ARGS='--only ours --data wide'
	@PYTHONPATH=plugins $(IN_VENV) -m benchmarks $(if $(ROWS),--rows $(ROWS)) $(if $(ENDPOINT),--endpoint $(ENDPOINT)) $(ARGS)

screenshots: .venv/test.stamp  ## pictures of the page "Exports" for the README, with Debian's Chromium
	@PYTHONPATH=plugins $(IN_VENV) -m tests.exports_page.screenshots

lint: .venv/test.stamp  ## style and types
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	$(IN_VENV) -m mypy

clean:  ## remove what these commands made: the environment, the demo's data, caches
	rm -rf .venv .demo .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/demo.stamp: requirements.txt demo/requirements.txt constraints.txt
	@$(SUPPORTED_PYTHON)
	@$(PYTHON) demo/install.py requirements.txt demo/requirements.txt
	@touch $@

.venv/scale.stamp: .venv/demo.stamp requirements-celery.txt demo/scale-requirements.txt
	@$(PYTHON) demo/install.py $(SCALE_REQUIREMENTS)
	@touch $@

.venv/test.stamp: .venv/scale.stamp tests/requirements.txt
	@$(PYTHON) demo/install.py $(SCALE_REQUIREMENTS) tests/requirements.txt
	@touch $@

.bench/peers.stamp: benchmarks/requirements.txt constraints.txt
	@$(SUPPORTED_PYTHON)
	@$(PYTHON) -m benchmarks.install
	@touch $@

# Valid in every version of Python, also the old ones that it refuses.
SUPPORTED_PYTHON = $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	{ echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13. Choose one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }

.PHONY: help demo ui scale test soak bench screenshots lint clean
