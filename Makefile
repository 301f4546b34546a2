# The commands of Segue. Each builds the virtual environment first when it is missing or its requirements changed.
#   make quickstart    raw events → recommendations → measured, on MovieLens-100K, two ranks
#   make test          every test that needs one machine
#   make test-cluster  jobs over two nodes, made of namespaces, with a real Slurm over them; as root, on Linux
#   make check         ruff and mypy
#   make bench         benchmarks, quick; `python -m benchmarks.NAME` for a full run and its page
#   make floor         training steps, quick, held against results/train_step_quick.json: none of its ratios a third worse
#   make gpu-check     attention and a training step on the GPUs of this machine; needs ACCELERATOR=cuda
# PYTHON=python3.12 chooses the interpreter, ACCELERATOR=cuda the CUDA packages, JOBS=4 how many test files run at once.

PYTHON ?= python3
ACCELERATOR ?= cpu
VENV := .venv
STAMP := $(VENV)/.installed-$(ACCELERATOR)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
RUN := $(VENV)/bin/python
CONFIG := configs/movielens-100k.yaml
RANKS ?= 2
JOBS ?= 2

.PHONY: quickstart test test-cluster check bench floor gpu-check format lock clean
.DELETE_ON_ERROR:

$(STAMP): pyproject.toml requirements/constraints.txt requirements/no-deps.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "make: $(PYTHON) is older than Python 3.11; give another with PYTHON=…")'
	@echo "make: building $(VENV) from pinned versions ($(ACCELERATOR)); a few minutes once, about 2 GB"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@echo "make: installing torch, FBGEMM, FAISS, PyArrow …"
	@$(PIP) install --quiet --constraint requirements/constraints.txt --editable '.[$(ACCELERATOR),dev]'
	@echo "make: installing TorchRec (without its dependencies, which would replace FBGEMM's CPU build)"
	@$(PIP) install --quiet --no-deps --requirement requirements/no-deps.txt
	@touch $@
	@echo "make: $(VENV) is ready"

quickstart: $(STAMP)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" ./quickstart.sh

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(JOBS) --dist worksteal

test-cluster: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -v -rs tests/cluster

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(STAMP)
	$(RUN) -m benchmarks.data --quick
	$(RUN) -m benchmarks.attention --quick
	$(RUN) -m benchmarks.activations --quick
	$(RUN) -m benchmarks.semantic_ids --quick
	$(RUN) -m benchmarks.sharding --quick
	$(RUN) -m benchmarks.retrieval --quick
	$(RUN) -m benchmarks.checkpoint --quick
	$(RUN) -m benchmarks.crash --quick
	$(RUN) -m benchmarks.mfalcon --quick
	$(RUN) -m benchmarks.ranking --quick
	$(RUN) -m benchmarks.train_step --quick

floor: $(STAMP)
	$(RUN) -m benchmarks.floor

gpu-check: $(STAMP)
	$(RUN) -m benchmarks.gpu_check

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Pin what the direct requirements of pyproject.toml pull in, from the environment they were just tested in.
lock: $(STAMP)
	$(PIP) freeze --exclude-editable --exclude torchrec | sed 's/+cpu$$//' | LC_ALL=C sort --ignore-case > requirements/constraints.txt

clean:
	rm -rf $(VENV) stores codes runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
