# Everything a newcomer or CI runs. Setup steps live here and nowhere else.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo experiment-phantom test test-fast test-nightly check format dist-check benchmarks gpu-check soak clean
SHELL := /bin/bash

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# Tests mostly wait for processes to start: two at a time, also on two cores. Those of a file, and those that share
# a federation, run in one process (tests/conftest.py).
PARALLEL := -n 2 --dist loadgroup --no-loadscope-reorder

# Packages from outside the environment must not hide one that is missing in it.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX
# Tests start hundreds of processes; each would compile this package anew.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export FLWR_TELEMETRY_ENABLED := 0

help: ## list these targets
	@echo 'FednnU-Net: nnU-Net trained across hospitals. `make demo` shows it in a few minutes.'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with everything (Python 3.11 to 3.13; done by the other targets when needed)

demo: $(READY) ## train and compare local, asym, ffe and centralized on generated data; ends with a report
	@$(PY) train.py experiment=demo

experiment-phantom: $(READY) ## the paper's comparison on generated data, five folds, and whether its claims hold
	@$(PY) train.py experiment=phantom
	@$(PY) experiments/phantom/claims.py outputs/phantom-experiment

test: check ## checks and tests, as CI runs them: all but those that take minutes each
	@$(PY) -m pytest $(PARALLEL) -m "not nightly"

test-fast: $(READY) ## unit tests, and the server with scripted nodes: nothing that trains a network
	@$(PY) -m pytest $(PARALLEL) -m "unit or federation"

test-nightly: $(READY) ## tests of minutes each: full disks, expiring certificates, bad networks, late nodes, killed sweeps
	@$(PY) -m pytest $(PARALLEL) -m nightly

check: $(READY) ## lint, format, types, layers between modules, declared dependencies
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --quiet --check . || { echo 'run `make format`'; exit 1; }
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-logo
	@$(VENV)/bin/deptry .

format: $(READY) ## format the code and fix what the linter can fix
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

# In a folder of its own, so that nothing of this repository is imported.
dist-check: $(READY) ## build wheel and sdist, and train two rounds in an environment that has nothing but the wheel
	@rm -rf build dist
	@$(PY) -m build --outdir dist . >/dev/null
	@$(PY) -m venv build/wheel/venv
	@build/wheel/venv/bin/pip install --quiet -c constraints.txt torch
	@build/wheel/venv/bin/pip install --quiet -c constraints.txt dist/*.whl
	@build/wheel/venv/bin/python -c 'import torchvision' 2>/dev/null || build/wheel/venv/bin/pip uninstall --quiet --yes torchvision
	@cd build/wheel && venv/bin/fednnunet --help >/dev/null && venv/bin/fednnunet train --help >/dev/null
	@cd build/wheel && venv/bin/fednnunet train dataset=phantom strategy=asym trainer.epochs=2

benchmarks: $(READY) ## run every script that stands behind a claimed figure (but those of many minutes: soak, suite_cost, many_links, many_nodes)
	@set -e; for script in $(filter-out $(addprefix benchmarks/,soak.py suite_cost.py many_links.py many_nodes.py),$(wildcard benchmarks/*.py)); do echo "== $$script"; $(PY) "$$script"; done

gpu-check: $(READY) ## does training work on this machine's GPU, and what does it cost there (10 minutes; nothing without a GPU)
	@$(PY) benchmarks/gpu_check.py

soak: $(READY) ## 200 rounds of four nodes under random kills: do the records agree, what leaks (20 minutes)
	@$(PY) benchmarks/soak.py

clean: ## remove caches and build products; keeps .venv, data and outputs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamp is written last: a setup that was interrupted starts over, one that is done takes no time.
$(READY): pyproject.toml setup.py constraints.txt
	@rm -f $@
	@echo "[1/4] Python environment in $(VENV)"
	@$(find_python)
	@echo "[2/4] torch (the largest download)"
	@$(PY) -m pip install --quiet -c constraints.txt torch
	@echo "[3/4] fednnunet and what it needs"
	@$(PY) -m pip install --quiet -c constraints.txt -e '.[dev]'
	@# timm brings a torchvision that need not fit the torch above; nothing here uses it.
	@$(PY) -c 'import torchvision' 2>/dev/null || $(PY) -m pip uninstall --quiet --yes torchvision
	@echo "[4/4] first imports"
	@$(PY) -c 'import torch, lightning, nnunetv2, flwr.serverapp, hydra, torchmetrics, monai, wandb, fednnunet'
	@touch $@

# Keep a sound environment, else make one with the first Python that fits ($$PYTHON, if set, goes first).
define find_python
if grep -qs 'include-system-site-packages = false' $(VENV)/pyvenv.cfg \
   && $(PY) -c 'import pip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
then exit 0; fi; \
for python in $$PYTHON python3.11 python3.12 python3.13 python3; do \
  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
  then exec "$$python" -m venv --clear $(VENV); fi; \
done; \
echo 'FednnU-Net needs Python 3.11, 3.12 or 3.13 with venv (Debian: apt install python3.11-venv); found none.' >&2; \
echo 'Name one with: make setup PYTHON=/path/to/python3.11' >&2; exit 2
endef
