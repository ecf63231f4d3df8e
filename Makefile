# make demo   convert the shipped model to DyISRU and print the report
# make test   lint, types and tests; those of serving, against real servers, in an environment of their own
# make matrix every architecture by every exporter: the norms that are found, and what becomes of them
# All make their environments in .venv from Python 3.11+ and a C++ compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := models/byte_llama
SERVING := $(VENV)/serving/bin/python

.PHONY: demo test test-serving matrix lint clean

$(VENV)/.demo: pyproject.toml constraints.txt $(wildcard CMakeLists.txt custom_ops/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cpu,text,report]"
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cpu,text,report,torch,dev]" transformers onnxruntime-genai
	touch $@

# Its own environment, for tritonclient's bounds on others' versions. nvidia-pytriton only brings the Triton server
# program; what its Python code depends on is left out, NumPy below 2 among it.
$(VENV)/.serving: $(VENV)/.demo constraints-serving.txt
	$(PYTHON) -m venv $(VENV)/serving
	$(SERVING) -m pip install --quiet --upgrade pip
	$(SERVING) -m pip install --quiet -c constraints-serving.txt -e ".[cpu,text,serving]" \
	    pytest hypothesis kubernetes-validate
	$(SERVING) -m pip install --quiet -c constraints-serving.txt --no-deps nvidia-pytriton
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m dynorm_onnx.convert $(MODEL)/byte_llama.onnx --to dyisru \
	    --data $(MODEL)/held_out.txt --optimize ort -o $(VENV)/byte_llama.dyisru.onnx

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint test-serving
	$(BIN)/python -m pytest -n 2 --ignore tests/serving

test-serving: $(VENV)/.serving
	$(SERVING) -m pytest tests/serving

matrix: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -m zoo tests/zoo

clean:
	rm -rf $(VENV) build
