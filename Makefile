# make demo   set everything up and run the main job
# make test   set everything up and pass the tests
# make release-check   build what would be released, and use it where the repository is not
#
# Needs Python >= 3.11 and make (GNU make 3.81, which macOS ships, is enough); everything else goes into .venv.

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check

# Another interpreter:             make PYTHON=/path/to/python3.12
# Another place to get torch from: make TORCH_INDEX=ADDRESS, added to the indexes that pip is configured with. PyTorch's
# installation page gives the address of its CPU packages, far smaller on Linux than the CUDA build that is pip's default.
PYTHON      ?=
TORCH_INDEX ?=
# make test ARGS=tests/masking     only these
# make demo ARGS="--out runs/x"    passed on to the command
ARGS        ?=

# Not in constraints.txt: torch for CUDA brings its own.
TRITON     := triton==3.9.0
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3)
# Most tests keep one core busy, so that two at a time take half as long; files stay together, their fixtures with them.
WORKERS    ?= 2
ALL_TESTS  := --numprocesses $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lint docs format release-check clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1: /'

demo: $(VENV)/.installed ## set up, then pretrain on Python's own standard library and fill in masks
	@echo "==> mlm demo $(ARGS)"
	@$(BIN)/mlm demo $(ARGS)

test: $(VENV)/.installed-test ## set up, then run the tests
	@echo "==> pytest $(or $(ARGS),$(ALL_TESTS))"
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(or $(ARGS),$(ALL_TESTS))

coverage: $(VENV)/.installed-test ## run the tests and see which lines they reach, with a bar (tracing nearly doubles the time)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(ALL_TESTS) --cov --cov-report=term --cov-fail-under=95

lint: $(VENV)/.installed-lint ## check style (ruff) and types (pyright)
	@echo "==> ruff check, ruff format --check, pyright"
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright

docs: $(VENV)/.installed-docs ## build the documentation into site/; a broken link is an error
	@echo "==> mkdocs build --strict"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "    site/index.html"

format: $(VENV)/.installed-lint ## let ruff mend what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

release-check: $(VENV)/.created ## build wheel and sdist, and use them outside the repository (minutes; installs anew)
	@TORCH_INDEX="$(TORCH_INDEX)" $(BIN)/python .ci/release_check.py $(ARGS)

clean: ## remove .venv and what tools left behind (never runs/)
	rm -rf $(VENV) build dist site .coverage .coverage.* htmlcov .hypothesis .pytest_cache .ruff_cache
	find mlm_pytorch tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A candidate counts if it runs, is new enough and can make an environment: version managers leave names behind that do
# not run, and some distributions ship Python without ensurepip.
$(VENV)/.created:
	@for python in $(CANDIDATES); do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "==> creating $(VENV) with $$python ($$($$python --version))"; \
	    $$python -m venv --clear $(VENV) && touch $@ && exit 0; \
	    exit 1; \
	  fi; \
	done; \
	echo "none of [$(CANDIDATES)] is a Python >= 3.11 with venv and ensurepip;" \
	     "install one (on Debian and Ubuntu also the package python3-venv) or name it: make PYTHON=/path/to/python3" >&2; \
	exit 2

# One stamp per set of packages; each is renewed when what it was installed from has changed.
$(VENV)/.installed: EXTRAS :=
$(VENV)/.installed-test: EXTRAS := [test]
$(VENV)/.installed-lint: EXTRAS := [lint]
$(VENV)/.installed-docs: EXTRAS := [docs]
$(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-lint $(VENV)/.installed-docs: $(VENV)/.created pyproject.toml constraints.txt
	@echo "==> installing mlm-pytorch$(EXTRAS) into $(VENV), versions from constraints.txt"
	@if [ "$$(uname)" = Linux ] && [ -z "$(TORCH_INDEX)" ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
	  echo "    no NVIDIA GPU seen; should pip fetch torch's large CUDA build, see TORCH_INDEX in the Makefile"; \
	fi
	@$(PIP) install $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") -c constraints.txt -e ".$(EXTRAS)"
	@if [ "$(EXTRAS)" = "[test]" ] && [ "$$(uname)" = Linux ] && ! $(BIN)/python -c 'import triton' 2>/dev/null; then \
	  echo "==> installing $(TRITON), whose interpreter tests the kernels for CUDA without a GPU"; \
	  $(PIP) install --no-deps $(TRITON); \
	fi
	@touch $@
