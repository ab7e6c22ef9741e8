# Each recipe sets up what it needs in .venv; nothing is installed outside this folder.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests wait more than they compute. Those of real processes and peers run one after the other.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format protos clean

help: ## list the recipes
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## create the virtual environment

# torch comes first and by its pin: any looser request pulls gigabytes of CUDA libraries.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "p2pnode needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,simulate,mnist,dev]'
# multiaddr asks for trio-typing, which nothing imports and whose old stubs hide trio's own types.
	$(BIN)/python -m pip uninstall --quiet --yes trio-typing
	@touch $@

demo: setup ## train on four local daemons, kill one, bring it back
	$(BIN)/p2pnode demo

# Those that start processes import p2pnode in each: let them keep what they compile.
test: export PYTHONDONTWRITEBYTECODE :=
test: setup ## run all tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m "not real and not interop"
	$(BIN)/python -m pytest -m "real or interop"

check: setup ## lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: setup ## compile the .proto files
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. p2pnode/wire/pb/*.proto

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-report
