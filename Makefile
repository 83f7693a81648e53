.PHONY: check fix test bench docs

check:
	ruff format --check . && ruff check . && mypy

fix:
	ruff check --fix . && ruff format .

test:
	pytest

bench:
	python -m benchmarks.pipeline

docs:
	pytest tests/test_readme.py
