# make setup | test | lint | env | clean. Each target prepares what it needs.
.PHONY: setup test lint env clean help
PYTEST_ARGS ?=

help:
	@echo "make setup   environment in .venv (about ten minutes the first time)"
	@echo "make test    setup, then all tests"
	@echo "make lint    setup, then ruff, mypy, codespell"
	@echo "make env     versions and an operator check"

setup:
	@bash tools/setup_env.sh

test: setup
	.venv/bin/python -m pytest $(PYTEST_ARGS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/codespell

env: setup
	.venv/bin/python -m smartclip_det.utils.env

clean:
	rm -rf .venv .uv uv.lock .pytest_cache .mypy_cache .ruff_cache build *.egg-info
