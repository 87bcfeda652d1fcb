# Every target creates what it needs: on a fresh clone `make test` alone is enough.
# To choose the interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install test lint format clean

help: ## print the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r target text; do printf 'make %-8s %s\n' "$$target" "$$text"; done

install: $(INSTALLED) ## create .venv with the package and its test tools

test: $(INSTALLED) ## run the tests; ARGS="-k ddim" passes options to pytest
	$(RUN) pytest $(ARGS)

lint: $(INSTALLED) ## check with ruff (rules and format) and mypy; changes nothing
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: $(INSTALLED) ## let ruff fix what it can and format the code
	$(RUN) ruff check --fix --exit-zero .
	$(RUN) ruff format .

clean: ## delete .venv, build outputs and caches; runs and weights stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an installation that was cut short is done again.
$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.10. Choose another: make PYTHON=python3.12 install" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install -e '.[test]'
	@touch $@
