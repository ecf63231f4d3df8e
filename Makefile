# make demo   convert the shipped model to DyISRU and print the report
# make test   lint, types and tests
# Both make their own environment in .venv from Python 3.11+ and a C++ compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := models/byte_llama

.PHONY: demo test lint clean

$(VENV)/.demo: pyproject.toml constraints.txt $(wildcard CMakeLists.txt custom_ops/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cpu,text,report]"
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cpu,text,report,torch,dev]" transformers
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m dynorm_onnx.convert $(MODEL)/byte_llama.onnx --to dyisru \
	    --data $(MODEL)/held_out.txt --optimize ort -o $(VENV)/byte_llama.dyisru.onnx

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf $(VENV) build
