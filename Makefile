# What one can do here.  Each target makes its own environment in .venv; nothing else is touched.
PYTHON ?= python3
BIN    := .venv/bin

.PHONY: demo test lab lab-shell lint bench bench-lab docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 - /p' $(MAKEFILE_LIST)

.venv/%.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("exs needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(if $(filter-out demo,$*),$(BIN)/python -m pip install --quiet --group $*)
	@touch $@

demo: .venv/demo.stamp  ## a server and a client move 1 GiB and 2,000 files; closes with a table
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[cli]'
	@$(BIN)/python examples/demo.py

test: .venv/test.stamp  ## everything that runs without the lab
	@$(BIN)/python tests/run.py test

lab: .venv/test.stamp  ## virtual machines with soft-RoCE and soft-iWARP; ARGS="-k name", ARGS="--only rxe"
	@$(BIN)/python tests/lab/run.py setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[cli]'
	@$(BIN)/meson setup build/native-lab >/dev/null && $(BIN)/ninja --quiet -C build/native-lab tests/native/test_siw tests/native/test_verbs_pair tests/native/af_smc.so
	@$(BIN)/python tests/lab/run.py test $(ARGS)

lab-shell: .venv/test.stamp  ## a shell in such a machine
	@$(BIN)/python tests/lab/run.py setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[cli]'
	@$(BIN)/python tests/lab/run.py shell

lint: .venv/lint.stamp  ## formatters, linters, type checkers, warnings of two compilers
	@$(BIN)/python tests/run.py lint

bench: .venv/test.stamp  ## exs and its peers, interleaved; JSON in build/bench.json
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[cli]'
	@$(BIN)/python tests/bench/run.py $(ARGS)

bench-lab: .venv/test.stamp  ## exs over soft-RoCE and its peers, in one such machine; ARGS="--smc": SMC-R, in two; JSON in build/
	@$(BIN)/python tests/lab/run.py setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[cli]'
	@$(BIN)/python tests/lab/bench.py $(ARGS)

docs: .venv/docs.stamp  ## the site, in docs/_build/html; warnings are errors
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check .
	@$(BIN)/towncrier build --draft --version next >/dev/null
	@PYTHONSAFEPATH=1 $(BIN)/sphinx-build -q -W -n --keep-going -b html docs docs/_build/html

clean:  ## all that the other targets made
	rm -rf .venv build build-* dist docs/_build
