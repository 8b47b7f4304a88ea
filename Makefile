# Debian's and Ubuntu's packages: what a backup needs, what only tests need, what only the benchmark compares with.
SYSTEM_PACKAGES = git python3-venv squashfs-tools squashfuse fuse3 fuse-overlayfs
TEST_PACKAGES = busybox-static chromium debian-archive-keyring mmdebstrap $(ENGINE)
BENCH_PACKAGES = restic borgbackup e2fsprogs

# A Docker engine, where there is none: Debian's would take the place of Docker's own package.
ENGINE = $(if $(DOCKER_HOST)$(wildcard /var/run/docker.sock)$(shell command -v dockerd),,docker.io)

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
# The npm packages of each package.json below tests.
NODE_MODULES = $(patsubst %package.json,%node_modules/.installed,$(wildcard tests/*/package.json tests/helpers/*/package.json))
APT = $(if $(filter 0,$(shell id -u)),,sudo) apt-get -o DPkg::Lock::Timeout=300

# How pytest-xdist runs the tests; PYTEST_ARGS come after it: "-n 0" runs them in one process. Much of a test is waiting,
# so there is a worker more than processors. In the order of the folders the quick unit tests fill what is left at the end.
WORKERS = $(shell expr $$(nproc) + 1)
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# $(call install-packages,PACKAGES): install those that dpkg does not know; no root where none is missing.
define install-packages
	@missing=""; for package in $(1); do \
		dpkg -s "$$package" 2>/dev/null | grep -q '^Status: install ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
		echo "Installing:$$missing"; \
		$(APT) update -qq && DEBIAN_FRONTEND=noninteractive $(APT) install -y -qq --no-install-recommends $$missing; \
	fi
endef

# What a bundle and an image are made of, and what packs the one.
SOURCES = pyproject.toml README.md LICENSE server fixtures
MCPB = tests/bundle/node_modules/.bin/mcpb
BUNDLE = build/bundle
DIST = dist
IMAGE = sandpoint

.PHONY: help demo test bench lint types imports pytest format docs bundle image system clean

help:
	@echo "make demo    back up, damage and bring back a real directory, through the MCP server"
	@echo "make test    every check and every test"
	@echo "make bench   side by side with mksquashfs, restic, borg, git and cp"
	@echo "make format  put the code into the house's format"
	@echo "make docs    write anew what README.md, server.json and the bundle's manifest say of the code"
	@echo "make bundle  pack dist/sandpoint.mcpb, for apps that take MCP bundles"
	@echo "make image   build the Docker image sandpoint, of the server over HTTP"

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

test: lint types imports pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

pytest: $(INSTALLED) $(NODE_MODULES)
	$(call install-packages,$(TEST_PACKAGES))
	PYTHONPATH=tests $(BIN)/python -m helpers.images
	$(BIN)/python -m compileall -q server fixtures tests/helpers
	$(BIN)/pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

bench: $(INSTALLED)
	$(call install-packages,$(BENCH_PACKAGES))
	$(BIN)/python -m compileall -q server fixtures tests/helpers
	$(BIN)/python tests/benchmarks/run.py $(BENCH_ARGS)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m helpers.documents

bundle: tests/bundle/node_modules/.installed
	rm -rf $(BUNDLE)
	mkdir -p $(BUNDLE)
	tar --exclude=__pycache__ --exclude=server/mcpb -c $(SOURCES) | tar -x -C $(BUNDLE)
	cp server/mcpb/manifest.json server/mcpb/main.py $(BUNDLE)
	$(MCPB) pack $(BUNDLE) $(DIST)/sandpoint.mcpb

image:
	tar --exclude=__pycache__ -c $(SOURCES) $(WHEELS) | docker build $(IMAGE_ARGS) -f server/Dockerfile -t $(IMAGE) -

system:
	$(call install-packages,$(SYSTEM_PACKAGES))

$(INSTALLED): pyproject.toml | system
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sandpoint needs Python 3.11 or later; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

%/node_modules/.installed: %/package.json
	cd $(<D) && npm install --no-audit --no-fund --no-package-lock --loglevel=error
	touch $@

clean:
	rm -rf $(VENV) $(dir $(NODE_MODULES)) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
