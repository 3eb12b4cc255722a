# Two commands on a fresh machine: `make study` runs the embedded study, `make test` the tests. Both install first.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
CONFIG ?= config.yaml
CORES ?= all
export PATH := $(BIN):$(PATH)
export PYTHONUTF8 := 1
# Processes that run tests; each may start others.
WORKERS ?= 2
# Snakemake needs the name of a home. Where none can be written, its files and those of others go to a temporary folder.
export HOME ?= /nonexistent

# uv installs where it is found, pip elsewhere; both check the hashes of the lock. `make UV= ...` asks for pip.
UV ?= $(shell command -v uv 2>/dev/null)
PIP_INSTALL = "$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-compile
# pip would compile with one process; uv compiles with all cores by itself.
COMPILE_ALL = $(if $(UV),true,"$(BIN)/python" -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true)
INSTALL = $(if $(UV),"$(UV)" pip install --quiet --compile-bytecode --python "$(BIN)/python",$(PIP_INSTALL))
# What an installer warns of, as of old forms of other people's packages, is of interest only where it fails.
OR_SAY_WHY = 2>$(VENV)/install.log || { cat $(VENV)/install.log >&2; exit 1; }

.PHONY: study test faults lint docs lock bench clean

study: $(VENV)/installed
	@"$(BIN)/python" -m crosscoders.cli check "$(CONFIG)"
	@"$(BIN)/python" -m crosscoders.cli plan --total "$(CONFIG)"
	"$(BIN)/python" -m snakemake --cores $(CORES) --configfile "$(CONFIG)"
	@study=$$(sed -n 's/^study: *//p' "$(CONFIG)"); \
	printf 'start here: results/%s/index.html\n' "$$study"

test: $(VENV)/installed $(VENV)/kernels $(VENV)/docs $(VENV)/axe
	"$(BIN)/python" -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests

# The long version of the tests that damage, interrupt and mutate; `make test` runs a short one.
faults: $(VENV)/installed
	FAULTS=long "$(BIN)/python" -m pytest tests/faults

lint: $(VENV)/installed
	ruff check .
	ruff format --check .
	lint-imports
	snakefmt --check Snakefile rules
	"$(BIN)/python" -m snakemake --lint

# The documentation as a site in site/; anything that mkdocs would warn of is an error.
docs: $(VENV)/docs
	"$(BIN)/python" -m mkdocs build --strict --quiet

bench: $(VENV)/installed .venv-peers/installed
	"$(BIN)/python" -m benchmarks.step
	"$(BIN)/python" -m benchmarks.extract
	"$(BIN)/python" -m benchmarks.dataset
	"$(BIN)/python" -m benchmarks.latent_scaling
	"$(BIN)/python" -m benchmarks.table

# The marker is written last, so an interrupted installation is done again. A CPU build of torch is taken first where it lies in
# a folder that pip is told of (find-links): PyPI has none for Linux. Only CUDA builds ask for the libraries in cuda.txt. The
# folder of the package is written relatively, since Python 3.11 starts in no locale that lacks a letter of that file.
$(VENV)/installed: envs/requirements.txt envs/torch-cpu.txt envs/cuda.txt envs/machine.py pyproject.toml
	@"$(PYTHON)" envs/machine.py
	@echo "installing the pinned packages into $(VENV); this takes some minutes, once"
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP_INSTALL) --no-index --no-deps -r envs/torch-cpu.txt 2>/dev/null || true
	@$(INSTALL) --no-deps -r envs/requirements.txt $(OR_SAY_WHY)
	@"$(BIN)/python" -c "import importlib.metadata, sys; sys.exit('nvidia' in str(importlib.metadata.requires('torch')))" || \
	  { $(INSTALL) --no-deps -r envs/cuda.txt $(OR_SAY_WHY); }
	@LC_ALL=C.UTF-8 $(INSTALL) --no-deps --no-build-isolation -e . $(OR_SAY_WHY)
	@$(COMPILE_ALL)
	@for file in $(VENV)/lib/python*/site-packages/__editable__.crosscoders-*.pth; do echo ../../../../src >"$$file"; done
	@touch $@

# Triton comes with torch's CUDA builds; beside the CPU build the tests of the kernels need it apart.
$(VENV)/kernels: $(VENV)/installed envs/kernels.txt
	@"$(BIN)/python" -c "import triton" 2>/dev/null || { $(INSTALL) --no-deps -r envs/kernels.txt $(OR_SAY_WHY); }
	@touch $@

$(VENV)/docs: $(VENV)/installed envs/docs.txt
	@$(INSTALL) --no-deps -r envs/docs.txt $(OR_SAY_WHY)
	@touch $@

# axe-core judges pages in the tests that drive a browser. Where npm or its registry is missing, those tests skip and say so.
$(VENV)/axe: $(VENV)/installed envs/axe/package.json envs/axe/package-lock.json
	@rm -rf $@
	@cp -R envs/axe $@
	@npm ci --prefix $@ --ignore-scripts --no-audit --no-fund --silent || echo "no axe-core: tests of accessibility skip"

# The lock is made for Linux and macOS and every Python from 3.11 on. uv keeps the versions and hashes that stand in the files;
# `make lock UPGRADE="--upgrade-package NAME"` takes the newest version of a package.
COMPILE = "$(UV)" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-strip-extras \
	--custom-compile-command "make lock"
CUDA := cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime \
	nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 \
	nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx triton

lock:
	$(COMPILE) $(UPGRADE) $(CUDA:%=--no-emit-package %) envs/requirements.in -o envs/requirements.txt
	$(COMPILE) -c envs/requirements.txt -c envs/kernels.in --no-emit-package torch envs/cuda.in -o envs/cuda.txt
	$(COMPILE) --no-emit-package setuptools -c envs/requirements.txt envs/kernels.in -o envs/kernels.txt
	$(COMPILE) -c envs/requirements.txt envs/kubernetes.in -o envs/kubernetes.txt
	$(COMPILE) -c envs/requirements.txt envs/docs.in -o envs/docs.txt

# Other people's packages, to measure against, in an environment of their own. None of them uses torchvision, whose build
# may not fit torch's.
.venv-peers/installed: envs/peers.txt
	"$(PYTHON)" -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r envs/peers.txt
	.venv-peers/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

clean:
	rm -rf $(VENV) .venv-peers
