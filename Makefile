# The first commands of the README. Each builds .venv first, from pinned versions, if it is missing.
PYTHON ?= python3
.DEFAULT_GOAL := help
.PHONY: help setup caption test test-all test-lowest coverage lint docs

help:
	@echo "make caption      install what captioning needs, caption examples/, and draw overlays into out/"
	@echo "make test         install the rest, including PyTorch, and run the tests (under five minutes on two cores)"
	@echo "make test-all     run everything: also 20 kills of runs and jobs, notebooks, a cluster, the lowest versions"
	@echo "make test-lowest  run the faster tests with the lowest allowed versions, in .venv-lowest"
	@echo "make coverage     run the tests and print the lines that none of them reaches"
	@echo "make lint         check format, style, types, the layers of imports, and the workflows"
	@echo "make docs         build the documentation site into out/site"
	@echo "make setup        only build .venv"

setup: .venv/.complete

# uv installs: the one on the PATH, else one fetched by pip into .venv itself.
INSTALL = PATH="$$PATH:$(CURDIR)/.venv/bin" uv pip install --python .venv/bin/python \
	--compile-bytecode --constraint constraints.txt --editable
# A worker per core, and a thread per worker: with more threads than cores they would wait for one another.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto

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
	@echo "the figures are in out/"

test: setup
	$(PYTEST) -m "not long"

test-all: setup test-lowest
	@echo "make test-all adds 20 kills of training runs and jobs, notebooks, a cluster and the lowest versions"
	CAPTIONER_KILLS=20 $(PYTEST)

coverage: setup
	$(PYTEST) -m "not long" --cov --cov-report term-missing:skip-covered

# Deprecations of old versions are not errors, and shapes of arrays are checked with the newest versions only.
test-lowest: .venv-lowest/.complete
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --numprocesses auto -m "not slow and not long" \
		-o addopts=--strict-markers -o filterwarnings= -o cache_dir=.venv-lowest/.pytest_cache

.venv-lowest/.complete: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lowest
	command -v uv >/dev/null || .venv-lowest/bin/python -m pip install --quiet uv
	PATH="$$PATH:$(CURDIR)/.venv-lowest/bin" uv pip install --python .venv-lowest/bin/python \
		--resolution lowest-direct --editable '.[dev]'
	touch $@

docs: setup
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet

lint: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --config pyproject.toml
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[bf]*.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
