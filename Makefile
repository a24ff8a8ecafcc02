# `make` lists the targets. All of them need Python >= 3.10, make and git, and nothing else, except
# `client`.

BROKER ?= memory://
PORT ?= 8000
PYTEST_ARGS ?=
BENCH_ARGS ?=

# The first interpreter that runs, is new enough and can make environments: a version manager's
# stub may exist and fail, and some distributions ship venv in a package of its own.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' \
	>/dev/null 2>&1 && echo $$python && break; done)

VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test docs soak slow tabs fuzz check client bench clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'
	@echo "PYTHON=... picks the interpreter of a new .venv."

# $(value ...) passes a password in the URL unchanged; @ keeps it off the screen.
demo: $(VENV)/demo.installed ## Run the example project; BROKER=redis://... and PORT=... change the defaults
	@$(BIN)/python examples/demo/run.py --broker '$(value BROKER)' --port $(PORT)

# Tests that load all cores run alone. The others mostly wait, so they run in parallel, in the order of
# the folders: modules of few and long tests, such as tests/browser, would come last otherwise. It takes
# many seconds to collect the whole suite, so the second command names the modules with its tests.
LOAD_TESTS = $$(grep -rl --include='test_*.py' 'pytest.mark.load' tests)

test: $(VENV)/dev.installed ## Run the whole test suite; PYTEST_ARGS="-k name" runs a part
ifeq ($(PYTEST_ARGS),)
	$(BIN)/python -m pytest -m "not load" --numprocesses 4 --dist loadscope --no-loadscope-reorder
	$(BIN)/python -m pytest -m load $(LOAD_TESTS)
else
	$(BIN)/python -m pytest $(PYTEST_ARGS)
endif

# The tests that read a page: its links, its code blocks, its tables.
DOCS_TESTS := tests/docs tests/django/test_checks.py

docs: $(VENV)/dev.installed ## Check the links of the documentation and run its code blocks
	$(BIN)/python -m pytest $(DOCS_TESTS)

# The same tests as in `make test`, with numbers that take too long for every run.
soak: $(VENV)/dev.installed ## Ten minutes of faults, churn and slow clients at once
	DJANGO_SOCKETS_SOAK_SECONDS=600 $(BIN)/python -m pytest -s tests/faults/test_soak.py

slow: $(VENV)/dev.installed ## A minute of clients that stop reading; 10,000 that come and go
	DJANGO_SOCKETS_SLOW_SECONDS=60 $(BIN)/python -m pytest -s tests/faults/test_slow_clients.py
	DJANGO_SOCKETS_CHURN_CYCLES=10000 $(BIN)/python -m pytest -s tests/sockets/test_churn.py

tabs: $(VENV)/dev.installed ## Ten minutes of a hidden and of a frozen tab, with pings every 25 s
	DJANGO_SOCKETS_TAB_SECONDS=600 DJANGO_SOCKETS_CLIENT_PING_SECONDS=25 $(BIN)/python -m pytest -s tests/browser/test_hidden.py

fuzz: $(VENV)/dev.installed ## 100,000 bad frames in process, 2,000 bad connections for each server
	DJANGO_SOCKETS_FUZZ_INPUTS=100000 $(BIN)/python -m pytest -s tests/sockets/test_fuzz.py
	DJANGO_SOCKETS_FUZZ_SERVER_INPUTS=2000 $(BIN)/python -m pytest -s tests/faults/test_fuzz_servers.py

check: $(VENV)/dev.installed ## Run the linters, the type checker and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml

	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(NODE_MODULES) && cd client && npm run --silent check; \
	else echo 'The browser client is not checked: npm is not installed.'; fi

NODE_MODULES := client/node_modules/.package-lock.json

client: $(VENV)/dev.installed $(NODE_MODULES) ## Build the browser client; needs node and npm
	$(BIN)/python client/scripts/close_codes.py
	cd client && npm run --silent build

$(NODE_MODULES): client/package-lock.json
	cd client && npm ci --silent --ignore-scripts
	@touch $@

bench: $(VENV)/bench.installed ## Measure side by side with others; BENCH_ARGS="--only fan-out --runs 1"
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean: ## Remove the environment and everything built or cached
	rm -rf $(VENV) benchmarks/.cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/%.installed: pyproject.toml | $(BIN)/python
	@echo "Installing django_sockets[$*] in $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'No Python >= 3.10 with the venv module found: install one, or set PYTHON=...'; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
