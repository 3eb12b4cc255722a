# Two commands on a fresh machine: `make study` runs the embedded study, `make test` the tests. Both install first.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
CONFIG ?= config.yaml
CORES ?= all
export PATH := $(BIN):$(PATH)

.PHONY: study test lint bench clean

study: $(VENV)/installed
	crosscoders check $(CONFIG)
	snakemake --cores $(CORES) --configfile $(CONFIG)
	@study=$$(sed -n 's/^study: *//p' $(CONFIG)); \
	printf 'report:  results/%s/report.html\nfigures: results/%s/figures/\n' $$study $$study

test: $(VENV)/installed $(VENV)/kernels
	pytest -n 2 --dist loadfile tests

lint: $(VENV)/installed
	ruff check .
	ruff format --check .
	lint-imports
	snakefmt --check Snakefile rules
	snakemake --lint

bench: $(VENV)/installed .venv-peers/installed
	python -m benchmarks.step
	python -m benchmarks.extract
	python -m benchmarks.dataset
	python -m benchmarks.latent_scaling
	python -m benchmarks.table

# The lock is installed in one go; the marker is written last, so an interrupted installation is done again.
$(VENV)/installed: envs/requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# Triton comes with torch's CUDA builds; beside the CPU build the tests of the kernels need it apart.
$(VENV)/kernels: $(VENV)/installed envs/kernels.txt
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/kernels.txt
	touch $@

# Other people's packages, to measure against, in an environment of their own. None of them uses torchvision, whose build
# may not fit torch's.
.venv-peers/installed: envs/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r envs/peers.txt
	.venv-peers/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

clean:
	rm -rf $(VENV) .venv-peers
