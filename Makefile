PYTHON ?= python3
PYTEST_ARGS ?= -n 2 --dist loadfile
PIP_ARGS ?= -qq

# Modules, not console scripts: a script holds the absolute path it was installed under.
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
LINT_IMPORTS := $(PY) -c 'from importlinter.cli import lint_imports_command as main; main()'
SOURCES := $(wildcard kdcache kernels cli tests benchmarks setup.py docs/hooks.py)
READY := .venv/.ready

.PHONY: help demo test slow lint format docs clean FORCE
.DEFAULT_GOAL := help

help:
	@echo "make demo    set up, then run the demo: a teacher, its cache, several students"
	@echo "make test    set up, then run every check and test (PYTEST_ARGS='$(PYTEST_ARGS)')"
	@echo "make slow    set up, then run the tests that test leaves out: more models, and what takes long"
	@echo "make lint    the checks alone: ruff, mypy, import-linter"
	@echo "make format  let ruff format and fix the sources"
	@echo "make docs    build the documentation into site/; a dead link is an error"
	@echo "make clean   remove .venv, caches and build products"
	@echo "Set-up needs Python 3.11 or newer: make PYTHON=/path/to/python3 ..."

demo: $(READY)
	@$(PY) -m kdcache_cli demo

# One thread of torch's in each of the test processes: more would only wait for each other. The CPU
# kernels are compiled beside lint, which leaves a core idle; each test process would do it itself.
test: $(READY)
	@OMP_NUM_THREADS=1 $(PY) tests/ops/every_case.py > /dev/null & kernels=$$!; \
		$(MAKE) --no-print-directory lint || { kill $$kernels 2> /dev/null; exit 1; }; wait $$kernels
	@echo "pytest $(PYTEST_ARGS)"
	@OMP_NUM_THREADS=1 $(PY) -m pytest $(PYTEST_ARGS)

slow: $(READY)
	@echo "pytest -m slow $(PYTEST_ARGS)"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m slow $(PYTEST_ARGS)

lint: $(READY)
	@echo "ruff check"
	@$(PY) -m ruff check --quiet $(SOURCES)
	@echo "ruff format --check"
	@$(PY) -m ruff format --check --quiet $(SOURCES)
	@echo "mypy"
	@$(PY) -m mypy --no-error-summary
	@echo "lint-imports"
	@report=$$($(LINT_IMPORTS) 2>&1) || { echo "$$report"; exit 1; }

format: $(READY)
	@$(PY) -m ruff format $(SOURCES)
	@$(PY) -m ruff check --fix $(SOURCES)

docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

clean:
	rm -rf .venv build dist site *.egg-info kernels/build kernels/*.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# The editable install points at this folder: a checkout that has moved installs again, and so does
# one whose interpreter is gone.
ifneq "$(shell $(PY) -c pass 2>/dev/null && cat $(READY) 2>/dev/null)" "$(CURDIR)"
$(READY): FORCE
endif

# No build isolation: pip would fetch an unpinned setuptools, and the variable that could pin it,
# PIP_CONSTRAINT, is split at spaces and ignored by newer versions of pip. setuptools-scm is what
# seqeval's source distribution, its only one, takes its version from.
$(READY): pyproject.toml constraints.txt kernels/kdcache_kernels/_version.py
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "error: no $(PYTHON) found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: kdcache needs Python 3.11 or newer; $(PYTHON) is $$("$(PYTHON)" -V 2>&1); try make PYTHON=python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: $(PYTHON) lacks the venv module; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@$(PY) -c 'import pip' 2>/dev/null || \
		{ echo "Creating .venv with $$("$(PYTHON)" -V)"; "$(PYTHON)" -m venv --clear .venv; }
	@echo "Installing the pinned dependencies into .venv (1 to 3 minutes, PyTorch is the large one)"
	@$(PIP) install $(PIP_ARGS) -c constraints.txt setuptools setuptools-scm
	@$(PIP) install $(PIP_ARGS) -c constraints.txt --no-build-isolation -e '.[demo,dev,docs,ner,onnx,s3,search]'
	@$(PY) -m kdcache.demo.reviews || true # the demo's corpus; offline the demo says what else to do
	@printf '%s\n' "$(CURDIR)" > $@
