.PHONY: check fix test bench wheels docs

check:
	ruff format --check . && ruff check . && mypy && mypy --platform darwin && mypy --platform win32

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

# Cross-compiled by Zig's clang, which pip downloads (100 MB). Those for macOS and Windows are built here, not run.
wheels:
	for platform in manylinux_2_28_x86_64 manylinux_2_28_aarch64 macosx_11_0_arm64 win_amd64; do \
		LATENTDIFF_WHEEL_PLATFORM=$$platform pip wheel --no-deps --wheel-dir dist . || exit 1; \
	done

docs:
	pytest tests/test_readme.py
