# The first commands of the README. Each builds .venv first, from pinned versions, if it is not there.
PYTHON ?= python3
.DEFAULT_GOAL := help
.PHONY: help setup caption test test-lowest lint

help:
	@echo "make caption   set up what captions pictures, then caption those in examples/ and draw overlays into out/"
	@echo "make test      set up the rest, PyTorch included, then run the tests"
	@echo "make lint      set up, then check format, style and types"
	@echo "make setup     set up alone: build .venv"
	@echo "make test-lowest  run the faster tests with the lowest versions that are allowed, in .venv-lowest"

setup: .venv/.complete

# uv does the installing: the one that is there, else one fetched by pip into .venv itself.
INSTALL = PATH="$$PATH:$(CURDIR)/.venv/bin" uv pip install --python .venv/bin/python \
	--constraint constraints.txt --editable

.venv/.light: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "captioner needs Python 3.10 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv --clear .venv
	command -v uv >/dev/null || .venv/bin/python -m pip install --quiet uv
	$(INSTALL) .
	touch $@

.venv/.complete: .venv/.light
	$(INSTALL) '.[dev]'
	touch $@

caption: .venv/.light
	.venv/bin/python caption.py examples --overlay out

test: setup
	.venv/bin/python -m pytest

# The lowest versions that pyproject.toml admits, in an environment of their own. Their deprecations are no
# errors, and the shapes of arrays are checked with the newest versions only.
.venv-lowest/.complete: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lowest
	command -v uv >/dev/null || .venv-lowest/bin/python -m pip install --quiet uv
	PATH="$$PATH:$(CURDIR)/.venv-lowest/bin" uv pip install --python .venv-lowest/bin/python \
		--resolution lowest-direct --editable '.[dev]'
	touch $@

test-lowest: .venv-lowest/.complete
	.venv-lowest/bin/python -m pytest -m "not slow" -o addopts=--strict-markers -o filterwarnings= \
		-o cache_dir=.venv-lowest/.pytest_cache

lint: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
