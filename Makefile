# Every target makes .venv when it is missing; PYTHON picks the interpreter (3.11 to 3.13).
PYTHON ?= $(shell command -v python3.13 >/dev/null 2>&1 && python3.13 --version >/dev/null 2>&1 && echo python3.13 || \
            (command -v python3.12 >/dev/null 2>&1 && python3.12 --version >/dev/null 2>&1 && echo python3.12) || echo python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: help quickstart test test-slow test-hf4 check format bench clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/.core: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"huatuo-jax needs Python 3.11 to 3.13, found {v[0]}.{v[1]}; set PYTHON=python3.12")'
	@echo "setting up $(VENV) (once, about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) --upgrade pip setuptools
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.tpu: $(VENV)/.dev
	@$(INSTALL) --editable '.[tpu]'
	@touch $@

quickstart: $(VENV)/.core  ## corpus to trained, asked, plotted model in under 5 minutes on a CPU
	PATH="$(abspath $(BIN)):$$PATH" examples/quickstart/run.sh

test: $(VENV)/.dev  ## the tests, about 10 minutes on 2 cores
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.tpu  ## the long tests too: pods compiled with libtpu, two processes, the whole quickstart
	$(BIN)/python -m pytest -m slow

test-hf4: $(VENV)/.dev $(VENV)-hf4/.done  ## exported folders opened by transformers 4.46, in an environment of its own
	rm -rf build/hf4
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.hf4.make_exports build/hf4
	HUATUO_EXPORTS=build/hf4 HF_HUB_OFFLINE=1 $(VENV)-hf4/bin/python -m pytest -s -p no:cacheprovider tests/hf4

$(VENV)-hf4/.done: constraints-hf4.txt
	@test -x $(VENV)-hf4/bin/python || $(BIN)/python -m venv $(VENV)-hf4
	@$(VENV)-hf4/bin/python -m pip install --quiet --constraint constraints-hf4.txt transformers torch pytest
	@touch $@

check: $(VENV)/.dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## lets ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## every benchmark against its rival; prints the tables of benchmarks/RESULTS.md
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m benchmarks.run_all

clean:  ## removes the environment and caches, never runs/
	rm -rf $(VENV) $(VENV)-hf4 build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
