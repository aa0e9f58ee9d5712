# make alone lists the targets. Works with GNU make 3.81 (macOS) and a POSIX sh.
#
#   PYTHON=python3.12   the Python that makes the environment (3.11 or newer)
#   RUN=demo            the run folder that `make demo` fills, under runs/
#   PROFILE=pocket      its profile; `smoke` is the same pipeline at miniature size
#   VENV=.venv          where the environment lies

SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
RUN ?= demo
PROFILE ?= pocket
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check

# A stamp is younger than what it was made from, so nothing is installed twice.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo tui setup test test-slow lint bench clean

help: ## list the targets
	@echo "picollm: make your own chatbot from raw text, in a terminal"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 	\2/p' Makefile | expand -t 20

demo: $(INSTALLED) ## a small chatbot from this machine's own documentation, live (plain text without a terminal)
	@if [ -t 0 ] && [ -t 1 ] && [ "$${TERM:-dumb}" != dumb ]; then \
	  $(BIN)/picollm-tui --run $(RUN) --profile $(PROFILE) --go; \
	else \
	  $(BIN)/picollm run --run $(RUN) --profile $(PROFILE) && \
	  echo && $(BIN)/picollm compare --run $(RUN) && \
	  $(BIN)/picollm stop --run $(RUN) --serving >/dev/null; \
	fi

tui: $(INSTALLED) ## the app, on whatever runs there are
	@$(BIN)/picollm-tui

setup: $(INSTALLED) ## only make the environment

test: $(INSTALLED_DEV) ## the quick tests, on two cores
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(INSTALLED_DEV) ## kill tests, two ranks, whole runs at miniature size
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED_DEV) ## style, types and the walls between the packages; all of them, even when one fails
	@failed=0; for check in "ruff check ." "ruff format --check ." mypy lint-imports; do \
	  echo "$$check"; $(BIN)/$$check || failed=1; \
	done; exit $$failed

bench: $(INSTALLED) ## every script of benchmarks/, each printing a table (hours; one alone: .venv/bin/python benchmarks/NAME.py)
	@for script in benchmarks/*.py; do \
	  [ -e "$$script" ] || { echo "benchmarks/ is empty"; break; }; \
	  case "$$script" in */__init__.py) continue;; esac; \
	  echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

clean: ## remove the environment and every cache; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find picollm stages tui tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The environment ----------------------------------------------------------------------------------------------------

# A torch on the machine is kept when it is 2.9 or newer and, where there is an NVIDIA GPU, sees it. It is then shared
# with the new environment and pinned as it is, so that pip never puts another build in its place.
PROBE := import os, torch; \
  good = torch.__version__ >= "2.9" and (torch.cuda.is_available() or not os.path.exists("/dev/nvidiactl")); \
  print(torch.__version__ if good else "")
# Where the torch of a virtual environment lies; empty for a plain Python, whose packages a venv can share by itself.
LENDER := import os, sys, torch; \
  print(os.path.dirname(os.path.dirname(torch.__file__)) if sys.prefix != sys.base_prefix else "")
SITE := import site; print(site.getsitepackages()[0])

# A Python that was removed leaves a dangling link: make sees no file there and builds the environment anew.
$(BIN)/python:
	@$(PYTHON) -c pass 2>/dev/null || { \
	  echo "error: '$(PYTHON)' does not run; name a Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) -V) and picollm needs 3.11 or newer; name one: make PYTHON=python3.12" >&2; \
	  exit 2; }
	@rm -rf $(VENV); mkdir -p $(VENV); \
	torch=$$($(PYTHON) -c '$(PROBE)' 2>/dev/null) || torch=; \
	echo "Making $(VENV) with $$($(PYTHON) -V)$${torch:+, sharing the torch $$torch installed there}"; \
	$(PYTHON) -m venv $${torch:+--system-site-packages} $(VENV) >$(VENV)/venv.log 2>&1 || { \
	  cat $(VENV)/venv.log >&2; rm -rf $(VENV); \
	  echo "error: $(PYTHON) cannot make an environment; on Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }; \
	rm -f $(VENV)/venv.log; \
	[ -z "$$torch" ] || { \
	  echo "torch==$$torch" >$(VENV)/shared-torch; \
	  lender=$$($(PYTHON) -c '$(LENDER)'); \
	  [ -z "$$lender" ] || echo "$$lender" >"$$($(BIN)/python -c '$(SITE)')/shared-torch.pth"; }

# What pip is held to: the tested versions, with a shared torch, and the Triton it wants, in place of the tested ones.
$(VENV)/constraints.txt: constraints.txt $(BIN)/python
	@if [ -e $(VENV)/shared-torch ]; then sed -e '/^torch==/d' -e '/^triton==/d' constraints.txt | cat - $(VENV)/shared-torch; \
	else cat constraints.txt; fi >$@

$(INSTALLED): pyproject.toml $(VENV)/constraints.txt
	@echo "Installing picollm and what it needs: once, and it takes minutes where torch has to be fetched"
	$(PIP) -c $(VENV)/constraints.txt -e .
	@touch $@

$(INSTALLED_DEV): pyproject.toml $(VENV)/constraints.txt
	@echo "Installing picollm, what it needs and its test tools: once"
	$(PIP) -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $(INSTALLED) $@
