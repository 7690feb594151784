# Two commands are enough: `make demo` and `make test`. Both install what they need into .venv.
#
#   EXTRA=cuda   install vLLM for NVIDIA GPUs instead of vLLM for the CPU
#   PYTHON=...   the Python (3.11 to 3.13) that .venv is made with
#   ARGS=...     further arguments for `make test`, `make serve` and `make demo`

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# A .venv that was made for a GPU stays one when EXTRA is not given again.
EXTRA ?= $(if $(wildcard .venv/.installed-cuda),cuda,cpu)
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo "$$p" && break; done)
STAMP := .venv/.installed-$(EXTRA)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: $(STAMP) ## make .venv and install everything into it (EXTRA=cpu or cuda)

.venv/bin/python:
	@test -n '$(PYTHON)' || { echo 'Python 3.11, 3.12 or 3.13 is needed; name it: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	@echo 'Making .venv with $(PYTHON)'
	@'$(PYTHON)' -m venv .venv

$(STAMP): pyproject.toml tools/install.py | .venv/bin/python
	@$(BIN)/python tools/install.py --extra '$(EXTRA)'
	@touch $@

.PHONY: demo
demo: install ## ask the demo model about the sample video, without and with METok
	@$(BIN)/metok demo $(ARGS)

.PHONY: serve
serve: install ## serve the demo model at http://localhost:8000
	@$(BIN)/metok serve --demo $(ARGS)

.PHONY: bench
bench: install ## measure METok beside plain vLLM on this machine (ARGS=--help)
	@$(BIN)/metok bench $(or $(ARGS),--checkpoint cpu-reference --frames 64 --max-concurrency 8)

# One thread per process and no downloads: results and times then depend on the tests alone. The
# whole suite runs in two processes; what shares an engine or a server stays together.
IN_TWO := --numprocesses 2 --dist loadscope
.PHONY: test
test: export OMP_NUM_THREADS ?= 1
test: export TOKENIZERS_PARALLELISM = false
test: export HF_HUB_OFFLINE = 1
test: export VLLM_NO_USAGE_STATS = 1
test: install ## run the whole test suite
	@$(BIN)/pytest $(or $(ARGS),$(IN_TWO))

.PHONY: lint
lint: install ## check style, types and the Dockerfile
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python tools/typecheck.py
	@$(BIN)/hadolint Dockerfile

.PHONY: test-thorough
test-thorough: ## run the long tests that `make test` leaves out
	@$(MAKE) test ARGS='-m thorough $(IN_TWO) $(ARGS)'

.PHONY: gpu-check
gpu-check: ## check and time every kernel on this machine's GPU, then the engine at 7B sizes
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) tools/gpu_check.py $(ARGS)

.PHONY: format
format: install ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: clean
clean: ## remove .venv and everything that was built or cached
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find benchmarks kernels metok_vllm server tests tools -name __pycache__ -prune -exec rm -rf {} +
