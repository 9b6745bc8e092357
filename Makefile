# What to type. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVING := $(VENV)/.serving
BENCHING := $(VENV)/.benching
TRAINING := $(VENV)/.training
TESTING := $(VENV)/.testing
COMPILE := uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_31 --only-binary :all: \
  --no-annotate --no-header --generate-hashes --upgrade
COMPILE_CPU := $(COMPILE) $(if $(UV_FIND_LINKS),,--torch-backend cpu)
FAMILY ?= demo
TARGET ?= cpu
BASE ?=
ARGS ?=

# Two engines at once where there are cores for them; what shares an engine runs in one process (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

.PHONY: help install install-bench install-train browser serve test test-fast test-full check bench bench-start gpu-check exact demo-family screenshots image sbom deploy-check lock clean

help: ## List these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(SERVING) ## Create .venv with what serving needs (CPU build); does nothing when the lock is unchanged

install-bench: $(BENCHING) ## Add to .venv what `eft bench`, `eft dynamics` and `eft probe` measure and draw with

install-train: $(TRAINING) ## Add to .venv what `eft train` makes experts with

# On stderr, so that what a command prints, such as the list of `make sbom`, can be piped.
INSTALLS := pyproject.toml deploy/install-cpu.sh deploy/requirements-install.txt

$(SERVING): deploy/requirements-cpu.txt $(INSTALLS)
	@PYTHON=$(PYTHON) sh deploy/install-cpu.sh $(VENV) $< >&2
	@touch $@

$(BENCHING): deploy/requirements-dev.txt $(SERVING)
	@PYTHON=$(PYTHON) sh deploy/install-cpu.sh $(VENV) $< bench,probe >&2
	@touch $@

$(TRAINING): deploy/requirements-dev.txt $(SERVING)
	@PYTHON=$(PYTHON) sh deploy/install-cpu.sh $(VENV) $< train >&2
	@touch $@

$(TESTING): deploy/requirements-dev.txt $(SERVING)
	@PYTHON=$(PYTHON) sh deploy/install-cpu.sh $(VENV) $< >&2
	@touch $@

browser: ## Install the browser that the playground's tests drive (Debian's Chromium, as root)
	@sh deploy/install-browser.sh

serve: $(SERVING) ## Serve the demo family on 127.0.0.1:8000 (FAMILY=file.yaml for yours, ARGS="--port 9000")
	$(BIN)/eft serve $(FAMILY) $(ARGS)

test: $(TESTING) ## Run the tests: pure ones, the API, real engines, the README (ARGS="-k blend")
	$(PYTEST) -m "not full and not deploy" $(ARGS)

test-fast: $(TESTING) ## Only those that start no engine, for the inner loop
	$(PYTEST) -m "not engine and not full and not deploy" $(ARGS)

test-full: $(TESTING) ## Every test, also those that take too long for every day (docs/testing.md)
	$(PYTEST) -m "not deploy" $(ARGS)

check: $(TESTING) ## Lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(TESTING) ## Measure the composite against its members one by one, and against a transformers loop
	$(BIN)/python -m eft_server.bench $(ARGS)

bench-start: $(TESTING) ## Measure how long a server takes to answer, beside a bare import of vLLM, and its memory
	$(BIN)/python -m eft_server.bench.start $(ARGS)

gpu-check: ## On a GPU, in ten minutes: exactness, each model alone, speculation, memory (PYTHON of its environment)
	$(PYTHON) -m eft_server.bench.gpu_check $(ARGS)

exact: $(TESTING) ## Compare the engine with plain transformers, on the device that is here (FAMILY=…)
	$(BIN)/python -m eft_server.bench.exactness $(FAMILY) $(ARGS)

demo-family: $(TESTING) ## Rebuild the demo family from nothing and evaluate it (under two hours on two cores)
	$(BIN)/python -m eft_demo $(ARGS)

screenshots: $(TESTING) ## Take the pictures of the playground in docs/images again (needs the browser of `make browser`)
	EFT_TEST_BROWSER=$${EFT_TEST_BROWSER:-chromium} $(BIN)/python -m pytest -q tests/e2e/playground/screenshots.py

image: ## Build the image eft-server:cpu (docker, or buildah without a daemon; TARGET=cuda, BASE=image to build on)
	BASE=$(BASE) sh deploy/build-image.sh $(TARGET)

sbom: $(SERVING) ## Print what the image holds of Python, as a CycloneDX list (TARGET=cuda)
	@$(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --pyproject pyproject.toml \
	  --output-reproducible deploy/requirements-$(TARGET).txt

deploy-check: $(TESTING) ## Run what is deployed: image, monitoring, plain vLLM, Ray (needs root, buildah, prometheus; 13 min)
	BASE=$(BASE) $(BIN)/python -m pytest -m deploy tests/deploy $(ARGS)

lock: ## Resolve pyproject.toml again into the locks in deploy/ (needs uv)
	cd deploy && $(COMPILE_CPU) ../pyproject.toml --extra cpu --no-emit-package triton --output-file requirements-cpu.txt
	cd deploy && $(COMPILE_CPU) ../pyproject.toml --extra cpu --extra dev --constraint requirements-cpu.txt \
	  --output-file requirements-dev.txt
	cd deploy && printf 'editables\nhatchling\nuv\n' | $(COMPILE_CPU) - --constraint requirements-dev.txt \
	  --output-file requirements-install.txt
	@# Not the same file everywhere: PyTorch's index, or what the settings name.
	sed -i '/^torch==/,/[^\\]$$/{/^torch==/!d;s/ .*//}' deploy/requirements-cpu.txt deploy/requirements-dev.txt
	@# The CPU lock's versions but for two packages. pyproject.toml's overrides and what links name are for a CPU torch.
	constraints=$$(mktemp) && sed -n '/^torch==/d;/^apache-tvm-ffi==/d;/^[a-z]/s/ .*//p' deploy/requirements-cpu.txt \
	  > $$constraints && cd deploy && env -u UV_FIND_LINKS $(COMPILE) --no-config ../pyproject.toml --extra cuda \
	  --constraint $$constraints --output-file requirements-cuda.txt && rm $$constraints

clean: ## Remove what the commands above made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
