# The first commands of the README. Each builds .venv first, from pinned versions, if it is not there.
PYTHON ?= python3
.DEFAULT_GOAL := help
.PHONY: help setup caption test lint

help:
	@echo "make caption   set up what captions pictures, then caption those in examples/ and draw overlays into out/"
	@echo "make test      set up the rest, PyTorch included, then run the tests"
	@echo "make lint      set up, then check format, style and types"
	@echo "make setup     set up alone: build .venv"

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

lint: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
