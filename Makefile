# Every target sets up what it needs; nothing has to be installed by hand but Python 3.11+, pip and a C compiler.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-llamacpp lint format

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bot,space,dev]'
	touch $@

demo: $(VENV)/.installed   ## the whole line once, on a local Hub: no account, no network
	$(BIN)/hubquant demo

test: $(VENV)/.installed   ## every test that needs no other tool
	$(BIN)/python -m pytest -q

# llama-cpp-python comes as source: building it takes 10 to 20 minutes on two cores
$(VENV)-llamacpp/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-llamacpp
	$(VENV)-llamacpp/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bot,dev]' llama-cpp-python==0.3.36
	touch $@

test-llamacpp: $(VENV)-llamacpp/.installed   ## our GGUF files in llama.cpp itself
	$(VENV)-llamacpp/bin/python -m pytest -q -m llamacpp

lint: $(VENV)/.installed   ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
