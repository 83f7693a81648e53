.PHONY: check fix test bench docs

check:
	ruff format --check . && ruff check . && mypy

fix:
	ruff check --fix . && ruff format .

test:
	pytest

bench:
	python -m benchmarks.unet
	python -m benchmarks.unet --latents 32
	python -m benchmarks.unet --shape emoji
	python -m benchmarks.decode
	python -m benchmarks.decode --shape emoji
	python -m benchmarks.pipeline
	python -m benchmarks.coldstart
	python -m benchmarks.memory
	python -m benchmarks.training

docs:
	pytest tests/test_readme.py
