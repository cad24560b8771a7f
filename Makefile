# `make demo` and `make test` each start from a bare checkout: they make a virtual environment, install into it what
# they need at the versions of constraints.txt, and run. A second run goes straight to the work.

PYTHON ?= python3
VENV   ?= .venv

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -c constraints.txt -e
INPUTS  := setup.cfg pyproject.toml constraints.txt

# What Python compiles is kept, tests with their rewritten assertions too: else each of their processes takes four seconds for it.
unexport PYTHONDONTWRITEBYTECODE

# What makes wheels is apart, so that a wheel does not wait for PyTorch.
TOOLS := build/tools

.PHONY: demo quickstart test check lint format site wheel try-wheel release-check clean

demo: $(VENV)/installed      ## build an FP16 engine of sit_s, compare it with PyTorch, write a bundle
	$(BIN)/sit-deploy build --model sit_s --precision fp16 -o build/sit_s-fp16 --force

quickstart: $(VENV)/installed ## train a small teacher, distil a SiT from it, build its engine, compare them
	$(BIN)/sit-deploy quickstart -o build/quickstart

test: $(VENV)/installed-test $(VENV)/installed-triton ## every test that this machine can run
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

check: $(VENV)/installed-test ## the quick ones alone: for while you work
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not slow"

# a Triton server for the tests, in an environment of its own, with the OpenVINO of the tests' environment
$(VENV)/installed-triton: $(VENV)/installed-test sit_deploy/triton/install.py
	$(BIN)/sit-deploy serve --install --server-folder $(VENV)/triton
	touch $@

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: $(VENV)/installed-docs  ## the pages as a site, in build/site; a broken link or anchor ends it (--quiet would let them pass)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: $(TOOLS)/installed    ## dist/*.whl, and the sdist that it is made of
	rm -f dist/sit_deploy-*
	PIP_CONSTRAINT=constraints.txt $(TOOLS)/bin/python -m build --outdir dist

try-wheel: wheel $(VENV)/installed-test ## the first steps of a user, in an empty folder, with the wheel alone
	$(BIN)/python .ci/try_wheel.py dist/*.whl

release-check: wheel         ## what has to hold before a tag is pushed; installs every dependency anew (6 GB, minutes)
	$(TOOLS)/bin/python .ci/check_release.py $(if $(TAG),--tag $(TAG))
	$(TOOLS)/bin/twine check --strict dist/*
	$(TOOLS)/bin/python .ci/try_wheel.py --fresh dist/*.whl

$(TOOLS)/installed: constraints.txt
	$(NEED_PYTHON)
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install -c constraints.txt build twine
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(VENV)/installed: $(INPUTS) | $(BIN)/pip
	@echo "installing (the first time takes minutes and 6 GB: torch brings CUDA's libraries)"
	$(INSTALL) .
	@touch $@

$(VENV)/installed-%: $(INPUTS) | $(VENV)/installed
	$(INSTALL) '.[$*]'
	@touch $@

$(BIN)/pip:
	$(NEED_PYTHON)
	$(PYTHON) -m venv $(VENV)

define NEED_PYTHON
@command -v $(PYTHON) >/dev/null || \
	    { echo "error: $(PYTHON) not found; install Python 3.10 or newer, or pass PYTHON=/path/to/python" >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "error: $$($(PYTHON) -V) is too old; pass PYTHON=/path/to/python3.10 or newer" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "error: $(PYTHON) has no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
endef
