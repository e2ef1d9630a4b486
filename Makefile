# Every target sets up what it needs: scripts/setup.sh finds or installs CMake and libclang, and says so.

TARGET = $${CARGO_TARGET_DIR:-target}

.PHONY: help setup build demo test lint bench
.DEFAULT_GOAL := help

help:
	@echo "make demo    build ggsteer and show it at work on a sample model"
	@echo "make test    what CI runs: formatting, clippy, documentation, all tests"
	@echo "make lint    formatting, clippy and documentation only"
	@echo "make bench   benchmarks"
	@echo "make build   target/release/ggsteer, compiled for this processor"

setup:
	@sh scripts/setup.sh
	@ls $(TARGET)/release/build/llama-cpp-sys-2-*/output >/dev/null 2>&1 || \
		echo "building llama.cpp once, about 5 minutes on 2 cores"

build: setup
	+cargo build --release

demo: build
	@$(TARGET)/release/ggsteer demo

# Everything in the release profile, so that llama.cpp is built once.
test: lint
	@sh scripts/setup.sh test
	+cargo test --release

lint: setup
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || \
		{ echo "error: rustfmt or clippy is missing: run 'rustup component add rustfmt clippy'" >&2; exit 1; }
	cargo fmt --check
	+cargo clippy --release --all-targets -- -D warnings
	+RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps

bench: setup
	+cargo bench
