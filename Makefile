# Two commands on a fresh Debian or Ubuntu with make and root or sudo: `make demo` and `make test`.
BIN := .venv/bin
# What `make test-appliance` runs.
BOOTED := tests/booted
# For the image's containers alone.
CRUN := $(if $(filter %/test_appliance.py,$(BOOTED)),,crun)
# Most real networks in one process, all else in the other: see tests/conftest.py.
TWO_AT_ONCE := -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: help bootstrap hsm-modules demo test check lint soak bench bench-wan deb oci lock test-appliance booted booted-ready booted-image clean

help:
	@echo "make demo    three signers, a coordinator and gates on this machine: makes a key, signs, verifies"
	@echo "make test    every check (the same as make check)"
	@echo "make soak    the tests that take longer than a check may"
	@echo "make bench   measures presigning, the online step and whole requests"
	@echo "make bench-wan   the same with signers 50 ms away from the coordinator"
	@echo "make deb     builds the Debian package into build/"
	@echo "make oci     builds the image for containers into build/ (root; no container engine)"
	@echo "make lock    takes the newest libraries into what package and image bring, with their digests"
	@echo "make test-appliance   installs it on booted systems (root): killed, hung, unplugged, upgraded, removed"
	@echo "make clean   removes the virtual environment and all caches"

bootstrap:
	@packaging/bootstrap

demo: bootstrap
	@$(BIN)/keymoot demo

test check: hsm-modules lint
	$(BIN)/python -m pytest -m "not slow" $(TWO_AT_ONCE)

hsm-modules:
	@packaging/bootstrap --hsm-modules

lint: bootstrap
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: bootstrap
	$(BIN)/python -m pytest -m slow --timeout 3600

bench: bootstrap
	@$(BIN)/keymoot bench presign --signers 3 --tolerate 1 --batch 10000
	@$(BIN)/keymoot bench presign --signers 5 --tolerate 2 --batch 10000
	@$(BIN)/keymoot bench presign --signers 7 --tolerate 3 --batch 10000
	@$(BIN)/keymoot bench presign --curve
	@$(BIN)/keymoot bench online
	@$(BIN)/keymoot bench load --clients 16
	@$(BIN)/keymoot bench load --clients 1
	@$(BIN)/keymoot bench load --clients 2 --hashes 1000

bench-wan: bootstrap
	@$(BIN)/keymoot bench wan

deb:
	@packaging/build-deb

oci:
	@packaging/oci/build.py

lock:
	@packaging/lock --upgrade

# Without root, or where nothing can be booted, it is skipped and says why.
test-appliance: booted-ready
	@$(MAKE) --no-print-directory booted

booted:
	KEYMOOT_APPLIANCE=1 KEYMOOT_DEB=$$(cat build/appliance-package) $(BIN)/python -m pytest -m appliance $(BOOTED) -rs --durations 20 --durations-min 2

booted-ready:
	@packaging/bootstrap --packages softhsm2 python3 python3-venv
	@$(MAKE) --no-print-directory -j 2 bootstrap booted-image

# What booting hosts needs beside the checks, and their system and package: made while the environment is. What cannot
# be made here is tried again by the tests, which say why.
booted-image:
	@packaging/bootstrap --packages mmdebstrap systemd-container iproute2 debhelper dpkg-dev lintian $(CRUN) || true
	@mkdir -p build && /usr/bin/python3 -m tests.booted.image >build/appliance-package || true

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
