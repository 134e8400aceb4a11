# make demo    train the proposer and the solver on a small model, on a local Ray cluster, until reward rises
# make test    the checks, then the tests
# make check   ruff, mypy, import-linter
# make chaos   the long forms of tests/chaos (kills, faults, lost machines, a soak), a thousand programs in the sandbox; 40 minutes
# make bench   every benchmark, one JSON object a line
# make clean   remove what the above made
#
# Each makes a virtual environment of its own, with the Python you name:  make test PYTHON=python3.12

PYTHON ?= python3
# What the demo trains, and how: everything else has its default (selfplay train proposer_solver --help).
DEMO_TASK ?= proposer_solver
DEMO_FLAGS ?= --num-steps 20
PYTEST_FLAGS ?= --numprocesses 2

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venvs/$(VERSION)
RUN := PYTHONUNBUFFERED=1 $(VENV)/bin

.PHONY: demo test check chaos bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(RUN)/selfplay train $(DEMO_TASK) $(DEMO_FLAGS)

test: check
	$(RUN)/python -m pytest $(PYTEST_FLAGS)

check: $(VENV)/.installed-dev
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports

chaos: $(VENV)/.installed-dev
	CHAOS=long SELFPLAY_SANDBOX_RUNS=1000 $(RUN)/python -m pytest tests/chaos tests/sandbox/test_endings.py --timeout 3000 -s

bench: $(VENV)/.installed
	$(RUN)/selfplay bench --json

clean:
	rm -rf .venvs build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# A stamp is newer than pyproject.toml while what it asks for is installed. pip would compile it all on one core; what
# could not be compiled (others' templates) is when it is imported.
$(VENV)/.installed: EXTRAS =
$(VENV)/.installed-dev: EXTRAS = [dev]
$(VENV)/.installed $(VENV)/.installed-dev: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'selfplay-ray needs Python 3.11 or newer, and $(PYTHON) is $(or $(VERSION),not there): name another, as in make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
		echo '$(PYTHON) cannot make virtual environments: install its venv module (on Debian and Ubuntu: apt install python$(VERSION)-venv)' >&2; exit 1; }
	@echo 'installing selfplay-ray$(EXTRAS) into $(VENV); the first time this takes a minute or two'
	@$(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.$(EXTRAS)'
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@
