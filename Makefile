# Needs only make and Python 3.11 or newer: `make demo` and `make test` set themselves up in .venv, once.
#
#   make test PYTHON=python3.12                  another interpreter
#   make test TORCH="torch==2.9.1"               another torch build
#   make test TORCH_FROM="--index-url URL"       torch from another index, say one of CPU builds

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
            if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
TORCH ?= torch==2.13.0
TORCH_FROM ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
CONSTRAINTS := $(VENV)/constraints.txt
DEMO := demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test plain asan slow long doctest lint types format bench ci clean setup

help:  ## say what the targets do
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# -- set-up: one stamp per step, so that each is done once and a killed step is done again ----------------------------

$(VENV)/.created:
	@$(if $(PYTHON),,echo "Python 3.11 or newer is needed and none was found: install one, or name it with PYTHON=/path/to/python3" >&2; exit 1)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python must be 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1): name another one with PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "python3 -m venv failed: on Debian and Ubuntu install the package python3-venv" >&2; exit 1; }
	@touch $@

# torch goes first and alone: a CPU build at hand (2.13.0+cpu) is then taken, and nothing later replaces it
$(CONSTRAINTS): $(VENV)/.created
	@echo "Installing $(TORCH)"
	@$(PIP) install $(TORCH_FROM) '$(TORCH)' || { \
	  echo "$(TORCH) is not to be had here: taking the newest torch from 2.6 on" >&2; \
	  $(PIP) install $(TORCH_FROM) 'torch>=2.6'; }
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $@

$(VENV)/.dev: pyproject.toml $(CONSTRAINTS)
	@echo "Installing sostenuto with its development tools"
	@$(PIP) install -e '.[dev]' -c $(CONSTRAINTS)
	@touch $@

# the demo needs less than the tests; what is there already will do
$(VENV)/.demo: pyproject.toml Makefile $(CONSTRAINTS)
	@echo "Installing sostenuto"
	@$(PIP) install -e '.[trees,serve]' -c $(CONSTRAINTS)
	@touch $@

setup: $(VENV)/.dev  ## only install, for an editor

# -- the main job -----------------------------------------------------------------------------------------------------

# a prepared folder has its manifest only when it is whole; a comparison that was stopped goes on where it was
$(DEMO)/complete-journey/manifest.json: | $(VENV)/.demo
	$(BIN)/sostenuto data get complete-journey
	$(BIN)/sostenuto data prepare complete-journey --out $(DEMO)/complete-journey

# the bundle is made anew, for another run may be the best by now; the store is filled once, and the last step shows a
# ranking on a copy of it: so all of this can be run again, and shows the same
demo: $(VENV)/.demo $(DEMO)/complete-journey/manifest.json  ## real data to a comparison, a report and rankings over HTTP
	$(BIN)/sostenuto compare $(DEMO)/complete-journey --budget demo --seeds 1 --out $(DEMO)/comparison
	$(BIN)/sostenuto rank $(DEMO)/comparison --user 1609 --k 10
	@rm -rf $(DEMO)/bundle
	$(BIN)/sostenuto export $(DEMO)/comparison --out $(DEMO)/bundle
	@[ -e $(DEMO)/store ] || rm -f $(DEMO)/store.filled
	[ -e $(DEMO)/store.filled ] || $(BIN)/sostenuto store warm-up $(DEMO)/store --data $(DEMO)/complete-journey
	@touch $(DEMO)/store.filled
	$(BIN)/python examples/changed_ranking.py $(DEMO)/bundle $(DEMO)/store --user 1609
	@echo "The report: $(DEMO)/comparison/report.html"

# -- checks -----------------------------------------------------------------------------------------------------------

# one thread per worker: two workers with two threads each would fight for two cores
test: export OMP_NUM_THREADS = 1
test: $(VENV)/.dev  ## the tests that every change must pass
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

slow: export OMP_NUM_THREADS = 1
slow: $(VENV)/.dev  ## the tests that take minutes
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "slow and not long and not gpu"

long: export OMP_NUM_THREADS = 1
long: $(VENV)/.dev  ## the tests that take many minutes: planted worlds with long histories, three seeds
	$(BIN)/python -m pytest -q -m "long and not gpu"

plain: export OMP_NUM_THREADS = 1
plain: export SOSTENUTO_BACKEND = plain
plain: $(VENV)/.dev  ## operators and contract again, without the compiled twins
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal tests/ops tests/layers tests/contract

# leaks are not looked for: Python itself keeps memory to its end; libstdc++ must be there when the sanitizer looks for
# what throws, or the first refused argument ends the run
asan: $(VENV)/.dev  ## the compiled twins under the address sanitizer
	$(BIN)/python -m sostenuto.native.building --into $(VENV)/asan --flags "-fsanitize=address -g -O1"
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 SOSTENUTO_NATIVE=$(VENV)/asan \
	  $(BIN)/python -m pytest -q tests/ops/test_native_attention.py tests/ops/test_native_buckets.py tests/ops/test_table_rows.py \
	    tests/ops/test_row_updates.py tests/ops/test_top_k.py tests/ops/test_multiply_adds.py \
	    tests/ops/test_sorted_search.py tests/ops/test_binned_product.py tests/ops/test_text_index.py tests/features/test_match.py

doctest: $(VENV)/.dev  ## the examples in docstrings
	$(BIN)/python -m pytest -q --doctest-modules src

lint: $(VENV)/.dev  ## ruff, without changing anything
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .

types: $(VENV)/.dev  ## mypy --strict
	$(BIN)/mypy

format: $(VENV)/.dev  ## ruff, changing what it can
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

bench: $(VENV)/.dev  ## named speed measurements, as ratios
	$(BIN)/sostenuto bench

ci:  ## what the integration server runs
	bash .ci/run

clean:  ## remove what these targets made: environment, caches, demo
	rm -rf $(VENV) $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
