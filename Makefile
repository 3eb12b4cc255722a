# Two commands on a fresh machine: `make study` runs the embedded study, `make test` the tests. Both install first.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
CONFIG ?= config.yaml
CORES ?= all
export PATH := $(BIN):$(PATH)

.PHONY: study test lint bench clean

study: $(VENV)/installed
	python -m crosscoders.checks $(CONFIG)
	snakemake --cores $(CORES) --configfile $(CONFIG)
	@study=$$(sed -n 's/^study: *//p' $(CONFIG)); \
	printf 'report:  results/%s/report.html\nfigures: results/%s/figures/\n' $$study $$study

test: $(VENV)/installed
	pytest -n 2 --dist loadfile tests

lint: $(VENV)/installed
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	snakemake --lint

bench: $(VENV)/installed
	python -m benchmarks.step
	python -m benchmarks.latent_scaling

# The lock is installed in one go; the marker is written last, so an interrupted installation is done again.
$(VENV)/installed: envs/requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV)
