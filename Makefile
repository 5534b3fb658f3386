# make toy | setup | test | lint | docs | notebooks | wheel | env | clean. Each target prepares what it needs.
.PHONY: toy setup test lint docs notebooks wheel env clean help
PYTEST_ARGS ?=
TOY_ARGS ?=

help:
	@echo "make toy     setup, then the whole story on a drawn world; QUICK=1 for a small one"
	@echo "make setup   environment in .venv, nothing compiled; OPS=compiled compiles mmcv's operators (minutes)"
	@echo "make test    setup, then all tests"
	@echo "make lint    setup, then ruff, mypy, codespell"
	@echo "make docs    setup, then the documentation site in work_dirs/site; a warning is an error"
	@echo "make notebooks  setup, then every notebook on the run that make toy left behind"
	@echo "make wheel   setup, then the package built, installed in fresh environments and used there"
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

# The variable silences an announcement of the theme's next version.
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
