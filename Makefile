# make toy | setup | test | lint | docs | notebooks | wheel | env | clean. Each target sets up the environment first.
.PHONY: toy setup test lint docs notebooks wheel env clean help
PYTEST_ARGS ?=
TOY_ARGS ?=

help:
	@echo "make toy     setup, then the full pipeline on the toy world; QUICK=1 for a small run"
	@echo "make setup   environment in .venv without compiling; OPS=compiled compiles mmcv's operators (minutes)"
	@echo "make test    setup, then all tests"
	@echo "make lint    setup, then ruff, mypy, codespell"
	@echo "make docs    setup, then the documentation site in work_dirs/site; warnings are errors"
	@echo "make notebooks  setup, then all notebooks on the run of make toy"
	@echo "make wheel   setup, then build the package, install it in fresh environments and test it there"
	@echo "make env     versions and an operator check"

setup:
	@OPS="$(OPS)" bash tools/setup_env.sh

toy: setup
	.venv/bin/python tools/toy.py $(if $(QUICK),--quick) $(TOY_ARGS)

test: setup
	.venv/bin/python -m pytest $(PYTEST_ARGS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/codespell

# The variable silences an announcement about the theme's next version.
docs: setup
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
	@echo "open work_dirs/site/index.html"

notebooks: setup
	.venv/bin/python docs/notebooks/make.py

wheel: setup
	.venv/bin/python .ci/check_wheel.py

env: setup
	.venv/bin/python -m smartclip_det.utils.env

clean:
	rm -rf .venv .uv uv.lock .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
