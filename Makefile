# One way to run things: people, the README and .ci/run call the same targets. `make help` lists them.

EXTRA ?= cpu
SOURCE ?= synthetic
WORK ?= work/demo

PYTHON := .venv/bin/python
STAMP := .venv/.setup-$(EXTRA)

# The first Python this project runs on that really starts (a shim of a version manager may not).
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
find_python = $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c '$(FITS)' >/dev/null 2>&1 && { command -v $$p; break; }; done)

export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := .venv
# Compiled once here instead of in the first seconds of every first run.
export UV_COMPILE_BYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test proofs lint bench s3 local-cluster web clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv (EXTRA=cpu, or EXTRA=gpu); nothing to do when it is up to date

demo: setup ## run the whole flow offline (SOURCE=..., WORK=...) and say where the report lies
	$(PYTHON) -m jobs.pipeline --source '$(SOURCE)' --work '$(WORK)' --num-workers 2

test: setup ## run the tests, two processes at a time
	$(PYTHON) -m pytest -n 2 --dist loadfile -m 'not long'

proofs: setup .mlflow/bin/mlflow ## run the tests that take a minute or more each (FRUITCNN_ROUNDS=10: the long way)
	FRUITCNN_MLFLOW=.mlflow/bin/mlflow $(PYTHON) -m pytest -m long

# A real MLflow server for one of the proofs. It pins other versions than we do, so it lives apart; its client is an extra.
.mlflow/bin/mlflow: | setup
	@set -e; uv=$$(command -v uv || echo .uv/bin/uv); \
	"$$uv" sync --frozen --inexact --extra '$(EXTRA)' --extra mlflow; \
	"$$uv" venv --python $(PYTHON) --clear .mlflow; "$$uv" pip install --python .mlflow/bin/python 'mlflow~=3.17'

lint: setup ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: setup ## measure speed side by side with plain Keras
	$(PYTHON) bench/run.py

s3: setup ## run a local S3 server until Ctrl-C
	$(PYTHON) -m cluster.local_s3

local-cluster: setup ## run a Ray cluster (a head, two workers, S3, token) on this machine until Ctrl-C
	$(PYTHON) -m cluster.local

# Three files of onnxruntime-web; its scripts do not run, and npm checks each package against the hashes of the lock.
ORT := ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm

web: ## bring what the page needs to run a model in the browser (needs npm); jobs.serve works without it
	@command -v npm >/dev/null || { echo 'web: npm is not installed: install Node.js 18 or newer and try again' >&2; exit 1; }
	cd fruitcnn/page && npm ci --ignore-scripts && rm -rf vendor && mkdir vendor && \
		cp $(addprefix node_modules/onnxruntime-web/dist/,$(ORT)) vendor/ && rm -rf node_modules

clean: ## remove caches, work/demo and bench results; .venv and data of yours stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis work/demo bench/results.json bench/results.png
	find fruitcnn jobs cluster bench tests -name __pycache__ -type d -prune -exec rm -rf {} +

# uv comes from the package index that pip uses; some systems ship python3 without venv, hence the second way.
$(STAMP): pyproject.toml uv.lock
	@set -e; python='$(find_python)'; \
	test -n "$$python" || { echo 'setup: no Python 3.11, 3.12 or 3.13 on PATH: install one and try again' >&2; exit 1; }; \
	uv=$$(command -v uv || echo .uv/bin/uv); \
	"$$uv" --version >/dev/null 2>&1 || { \
		echo 'setup: bringing uv into .uv/'; rm -rf .uv; \
		{ "$$python" -m venv .uv >/dev/null 2>&1 && .uv/bin/python -m pip install --quiet uv; } || \
		{ rm -rf .uv; "$$python" -m pip install --quiet --target .uv uv; } || \
		{ echo 'setup: could not install uv; put it on PATH yourself, or install python3-venv, and try again' >&2; exit 1; }; }; \
	echo "setup: building .venv with $$python, extra $(EXTRA)"; \
	"$$uv" sync --frozen --compile-bytecode --python "$$python" --extra '$(EXTRA)'; \
	rm -f .venv/.setup-*; touch $@
