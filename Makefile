# Two commands do all the set-up they need: `make demo` and `make test`. See `make help`.
# Things not kept in this folder live in one cache folder: $LASAGNA_CACHE, else ~/.cache/lasagna-assist.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check site audit sbom image-requirements image-digests update setup older-label-studio pictures screenshot clean

# The first Python that is new enough; 3.11 first, for which the most wheels exist.
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
SETUP := $(or $(PYTHON),$(error There is no Python 3.11 or later here. On Debian: apt-get install python3)) tools/setup.py
# In as many processes as there are cores, at most four; see tests/conftest.py. In one: make test ARGS=-n0
PYTEST := .venv/bin/pytest -n auto --dist loadgroup --no-loadscope-reorder

help:
	@echo 'make demo     photos in a real Label Studio, pre-labelled by the model; Ctrl-C ends it'
	@echo '              make demo ARGS="--images DIR --labels cat,dog,grass" for your own photos and classes,'
	@echo '              make demo ARGS=--help for all options'
	@echo 'make test     make check and every test, with a real Redis, Label Studio and browser'
	@echo 'make test-fast  most tests in two minutes: no Label Studio, no browser, nothing slow'
	@echo 'make check    lint, types, who imports whom, and whether the documents and their site are in order'
	@echo 'make site     the documents as a site, in site/index.html'
	@echo 'make update   the newest versions that pyproject.toml allows into .venv and tools/constraints.txt'
	@echo 'make audit    looks up known vulnerabilities of every package (needs internet)'
	@echo 'make sbom     what an installation brings along, with licences, in sbom.json (CycloneDX)'
	@echo 'make image-requirements  what the images install, with hashes, into tools/requirements'
	@echo 'make image-digests       writes the digests of the images that ours start from (needs Docker and internet)'
	@echo 'make setup    what demo and test install, without running either'
	@echo 'make pictures     takes the pictures of docs/labelling.md and docs/ordering.md anew'
	@echo 'make screenshot   takes docs/editor.png anew'
	@echo 'make clean    removes .venv and what tools left in this folder'

demo:
	@$(SETUP) environment label-studio
	@.venv/bin/lasagna demo $(ARGS)

test:
	@$(SETUP) environment label-studio browser
	@$(MAKE) --no-print-directory lint
	$(PYTEST) $(ARGS)

test-fast:
	@$(SETUP) environment
	$(PYTEST) -m 'not slow and not label_studio and not browser' $(ARGS)

check:
	@$(SETUP) environment
	@$(MAKE) --no-print-directory lint

site:
	@$(SETUP) environment
	.venv/bin/python -m tools.docs
	.venv/bin/zensical build --strict --clean

update:
	@$(SETUP) update

audit:
	@$(SETUP) audit

sbom:
	@$(SETUP) sbom

# What backend/Dockerfile installs, with hashes: after `make update`. The images that it and Compose start from, by digest.
image-requirements image-digests:
	@$(SETUP) $@

.PHONY: lint
lint:
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/python -m tools.docs --check
	.venv/bin/zensical build --strict --clean

# An earlier Label Studio beside the present one, for the fault "upgrade" of `lasagna bench faults`.
older-label-studio:
	@$(SETUP) older-label-studio

setup:
	@$(SETUP) environment label-studio browser
	@echo 'Ready. Commands: .venv/bin/lasagna --help'

pictures:
	@$(SETUP) environment label-studio browser
	.venv/bin/pytest tests/field/test_editor_forms.py tests/field/test_unknown_labels.py tests/field/test_data_fields.py \
		tests/field/test_objects_in_editor.py \
		--pictures docs/pictures

screenshot:
	@$(SETUP) environment label-studio browser
	.venv/bin/pytest tests/backend/test_editor.py --screenshot docs/editor.png

clean:
	rm -rf .venv site .cache .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build lasagna_assist.egg-info uv.lock
	@echo 'Label Studio and uv stay in the cache folder ($$LASAGNA_CACHE, else ~/.cache/lasagna-assist).'
