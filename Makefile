# PYTHON names the interpreter that makes .venv; ARGS is handed to pytest.
PYTHON ?= python3
PY := .venv/bin/python
fail = || { echo "make: $(1)" >&2; exit 1; }

# Says "stale" when .venv does not start or was moved or copied here from another folder: then the stamps mean nothing.
stale := $(shell $(PY) -c 'import pip' 2>/dev/null && \
	[ "$$(cat .venv/.hetrl-home 2>/dev/null)" = "$$(pwd -P)" ] || echo stale)

.PHONY: help demo test lint types stale clean

help:
	@echo "make demo   install into .venv, then find a plan for VGG-16 on the device d1"
	@echo "make test   install into .venv with the test tools, then lint, check types, test"
	@echo "make lint | types   only that part"
	@echo "make clean  delete .venv and what builds and checks leave behind"

demo: .venv/.hetrl-demo
	@.venv/bin/hetrl train --device d1 --model vgg16

test: lint types
	@$(PY) -m pytest -n 2 $(ARGS)

lint: .venv/.hetrl-test
	@$(PY) -m ruff check $(call fail,ruff check failed (see above))
	@$(PY) -m ruff format --check $(call fail,the formatting differs (see above); $(PY) -m ruff format repairs it)

types: .venv/.hetrl-test lint
	@$(PY) -m mypy $(call fail,mypy failed (see above))

.venv/.hetrl-demo: pyproject.toml constraints.txt $(stale)
	$(call install,.)

.venv/.hetrl-test: pyproject.toml constraints.txt $(stale)
	$(call install,.[test])
	@touch .venv/.hetrl-demo

# torch comes first and alone, so that nothing else chooses its build.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	$(call fail,$(PYTHON) is missing or older than 3.11; name another one: make PYTHON=python3.12 $(MAKECMDGOALS))
	@$(PY) -c 'import pip' 2>/dev/null || { rm -rf .venv && $(PYTHON) -m venv .venv; } \
	$(call fail,making .venv failed (see above); Debian and Ubuntu need the package python3-venv)
	@$(PY) -m pip install "$$(grep '^torch==' constraints.txt)" \
	$(call fail,installing torch failed (see above); is a package index reachable?)
	@$(PY) -m pip install -c constraints.txt -e '$(1)' \
	$(call fail,installing hetrl failed (see above); is a package index reachable?)
	@pwd -P > .venv/.hetrl-home
	@touch $@
endef

clean:
	rm -rf .venv build dist hetrl.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
