# Debian's and Ubuntu's packages: what a backup needs, what only tests need, what only the benchmark compares with.
SYSTEM_PACKAGES = git python3-venv squashfs-tools squashfuse fuse3 fuse-overlayfs
TEST_PACKAGES = busybox-static debian-archive-keyring mmdebstrap $(ENGINE)
BENCH_PACKAGES = restic borgbackup e2fsprogs

# A Docker engine, where there is none: Debian's would take the place of Docker's own package.
ENGINE = $(if $(DOCKER_HOST)$(wildcard /var/run/docker.sock)$(shell command -v dockerd),,docker.io)

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
APT = $(if $(filter 0,$(shell id -u)),,sudo) apt-get -o DPkg::Lock::Timeout=300

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

.PHONY: help demo test bench lint types imports pytest format system clean

help:
	@echo "make demo    back up, damage and bring back a real directory, through the MCP server"
	@echo "make test    every check and every test"
	@echo "make bench   side by side with mksquashfs, restic, borg, git and cp"
	@echo "make format  put the code into the house's format"

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

pytest: $(INSTALLED)
	$(call install-packages,$(TEST_PACKAGES))
	PYTHONPATH=tests $(BIN)/python -m helpers.images
	$(BIN)/pytest $(PYTEST_ARGS)

bench: $(INSTALLED)
	$(call install-packages,$(BENCH_PACKAGES))
	$(BIN)/python tests/benchmarks/run.py $(BENCH_ARGS)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

system:
	$(call install-packages,$(SYSTEM_PACKAGES))

$(INSTALLED): pyproject.toml | system
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sandpoint needs Python 3.11 or later; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
