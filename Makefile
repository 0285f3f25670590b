# One entry for each tool. `make setup` needs only Python 3.11+ with venv; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# The Khronos glTF validator is a Node program; without npm the test that needs it says so and is skipped.
VALIDATOR := $(if $(shell command -v npm),tests/node_modules/.package-lock.json)
RECORDER := recorder-app/node_modules/.package-lock.json

.PHONY: setup demo test lint format types docs lock clean images-check recorder recorder-lint recorder-serve \
  recorder-test recorder-bench

setup: $(STAMP) $(VALIDATOR) $(if $(VALIDATOR),$(RECORDER))

# torch goes first and through pip, which takes a CPU build where one is offered; uv then installs the rest fast.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' requirements.lock)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $(STAMP)

tests/node_modules/.package-lock.json: tests/package.json tests/package-lock.json
	npm ci --silent --prefix tests
	touch $@

$(RECORDER): recorder-app/package.json recorder-app/package-lock.json
	npm ci --silent --prefix recorder-app
	touch $@

recorder: $(RECORDER) ## build the phone's app into the package
	npm run --silent --prefix recorder-app build

recorder-lint: $(RECORDER) ## types, eslint and prettier of the phone's app
	npm run --silent --prefix recorder-app lint

recorder-test: $(RECORDER) ## the app's unit tests
	npm test --silent --prefix recorder-app

recorder-bench: recorder ## frame rate, memory, sizes and upload rate of the app in Chromium on an emulated phone
	$(BIN)/python -m plugins.benchmark

recorder-serve: ## phones in this network reach a running `scan2twin up`: make recorder-serve HOST=<this machine's address>
	@test -n "$(HOST)" || { echo "say HOST=<this machine's address in the network>, such as HOST=192.168.1.20"; exit 2; }
	. "$${XDG_DATA_HOME:-$$HOME/.local/share}/scan2twin/airflow/store.env" && \
	  HOST=$(HOST) STORE=$${SCAN2TWIN_STORE#s3+http://} caddy run --adapter caddyfile --config recorder-app/Caddyfile

demo: $(STAMP) ## the sample capture through the Airflow DAG, to out/demo/model.glb
	$(BIN)/scan2twin demo --out out/demo

test: setup ## every test, up to the fifth that fails: what many share may be what is broken
	$(BIN)/python -m pytest --maxfail=5

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy

docs: setup ## the documentation as a site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lock: ## resolve every dependency again (the CUDA packages that torch may pull stay with torch)
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-header \
	  --output-file requirements.lock $(foreach p,$(CUDA_PACKAGES),--no-emit-package $(p))

CUDA_PACKAGES := triton nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 \
  nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
  nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx cuda-bindings cuda-pathfinder cuda-toolkit

images-check: recorder ## as root: build the images with podman on a base made here, and start what is in them
	images/check.sh

clean:
	rm -rf .venv out build *.egg-info
