# `make` lists the targets. Everything runs in .venv, which `make setup` builds.
PYTHON  ?= python3
VENV    := .venv
CLIENTS := .venv-clients
BIN     := $(VENV)/bin
TORCH   ?= torch==2.13.0
# Without a GPU, look on PyTorch's CPU index too (its wheels need no CUDA packages). If that can't be reached, pip goes on without it.
TORCH_INDEX ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu)
export OMP_NUM_THREADS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup setup-clients serve test test-clients check format policies test-gpu bench demo lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

setup: $(VENV)/.done ## Build .venv (Python 3.11 or newer)

$(VENV)/.done: pyproject.toml deploy/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Interlock needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Use: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/pip install --quiet -c deploy/constraints.txt -e '.[dev]'
	touch $@

# The clients of others that tests/clients drives: their pins fight with ours, so they have an environment of their own
setup-clients: $(CLIENTS)/.done ## Build .venv-clients, and install the Node client where there is npm

$(CLIENTS)/.done: tests/clients/requirements.txt tests/clients/drivers/package-lock.json
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet uv==0.13.9
	$(CLIENTS)/bin/uv pip install --quiet --python $(CLIENTS)/bin/python -r tests/clients/requirements.txt
	if command -v npm >/dev/null; then npm ci --silent --prefix tests/clients/drivers; fi
	touch $@

serve: setup ## Serve the demo model under the demo policy on http://127.0.0.1:8000
	$(BIN)/interlock serve --expose-metrics

test: setup ## Run the tests
	$(BIN)/python -m pytest

test-clients: setup setup-clients ## Run the tests of other projects' clients
	$(BIN)/python -m pytest tests/clients

check: setup ## Lint, types, import contracts, policy tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interlock policy check deploy/policies/*/
	$(BIN)/interlock policy test deploy/policies/*/

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

policies: setup ## Run the tests that policies carry
	$(BIN)/interlock policy test --verbose deploy/policies/*/

test-gpu: setup ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu tests/gpu

bench: setup ## Measure (prints figures with their conditions)
	$(BIN)/python -m bench.decide
	$(BIN)/python -m bench.replay
	$(BIN)/python -m bench.overhead

demo: setup ## Write the corpus, train the demo model and fit its monitors anew (about an hour on two cores)
	$(MAKE) -C deploy/demo BIN=$(abspath $(BIN))

lock: ## Write the locked requirements of the images anew (needs uv), after a change of dependencies
	$(PYTHON) deploy/docker/lock.py

clean: ## Remove .venv and caches
	rm -rf $(VENV) $(CLIENTS) tests/clients/drivers/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
