# One command each: make demo, make serve, make mlflow, make test, make test-fast, make lint, make bench. All of them set up what is missing first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.DEFAULT_GOAL := help

.PHONY: help
help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: install
install: $(READY) ## make .venv and install everything into it

.PHONY: demo
demo: $(READY) ## write a data set, train a tiny CLIP, evaluate it on classes it never saw (a few minutes)
	$(BIN)/zar eval --dataset demo --report

MLFLOW_PORT ?= 5000
.PHONY: mlflow
mlflow: $(READY) ## show what was logged to runs/mlflow.db in a browser; MLFLOW_PORT=5000
	@test -f runs/mlflow.db || { echo "runs/mlflow.db: nothing is logged yet; make demo logs an evaluation" >&2; exit 1; }
	@$(BIN)/python -c "from zar_ray.tracking import runs_page; \
		print('open', runs_page('sqlite:///runs/mlflow.db', 'http://127.0.0.1:$(MLFLOW_PORT)'), 'once it has started')"
	cd runs && MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false ../$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db \
		--host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1

.PHONY: serve
serve: $(READY) ## serve the demo's model on this machine, with its page, at port 8000
	RAY_USAGE_STATS_ENABLED=0 $(BIN)/serve run serve.app:demo

# A file's tests follow each other, the longest files first, in one process more than there are cores: those that start
# Ray, one a process, wait for it much of the time.
AT_ONCE := --dist loadfile --no-loadscope-reorder --numprocesses
CORES := $(shell $(PYTHON) -c "import os; print(os.cpu_count())")

.PHONY: test
test: $(READY) ## run all tests
	$(BIN)/python -m pytest $(AT_ONCE) $(shell $(PYTHON) -c "print(min($(CORES), 7) + 1)")

.PHONY: test-fast
test-fast: $(READY) ## run the tests that start no process of their own and do not take long: no Ray, no server, no browser, no training
	$(BIN)/python -m pytest -m 'not slow and not process' $(AT_ONCE) $(shell $(PYTHON) -c "print(min($(CORES), 8))")

.PHONY: lint
lint: $(READY) ## check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

.PHONY: bench
bench: $(READY) ## measure the engine against a plain loop (minutes; see bench/RESULTS.md)
	$(BIN)/python bench/adapt.py

.PHONY: format
format: $(READY) ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
