# What a newcomer types. Everything is installed into a virtual environment in this folder.
PYTHON ?= python3
TORCH ?= torch==2.13.0
OLDEST ?= transformers==5.21.0 huggingface_hub==2.4.0
# Without what it depends on: it asks for a Pillow that resizes some pictures otherwise (docs/demo.md).
GRADIO ?= gradio==6.31.0
VENV := .venv
OLDEST_VENV := .venv-oldest
# Files of tests side by side, on up to four cores.
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test lint test-oldest test-slow bench clean

demo: $(VENV)/installed
	$(VENV)/bin/transformers-owl caption

test: lint
	$(VENV)/bin/python $(PYTEST)
	$(MAKE) test-oldest

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test-oldest: $(OLDEST_VENV)/installed
	$(OLDEST_VENV)/bin/python $(PYTEST)

test-slow: $(VENV)/installed
	$(VENV)/bin/pip install -q -e ".[eval,miniature]" "playwright>=1.65"
	$(VENV)/bin/pip install -q --no-deps $(GRADIO)
	$(VENV)/bin/python -m pytest -m slow

bench: $(VENV)/installed
	$(VENV)/bin/python benchmarks/run.py --full

clean:
	rm -rf $(VENV) $(OLDEST_VENV) build

# torch goes first: a plain requirement of it may bring the far larger CUDA build.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --upgrade "pip>=25.1"
	$(VENV)/bin/pip install -q $(TORCH)
	$(VENV)/bin/pip install -q -e . --group dev
	touch $@

$(OLDEST_VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/pip install -q --upgrade "pip>=25.1"
	$(OLDEST_VENV)/bin/pip install -q $(TORCH)
	$(OLDEST_VENV)/bin/pip install -q $(OLDEST) -e . --group dev
	touch $@
