# Every target sets up what it needs: scripts/setup.sh finds or installs CMake and libclang, and says so.

TARGET = $${CARGO_TARGET_DIR:-target}

.PHONY: help setup build demo test lint package bench deny msrv fuzz sanitize scale reliability
.DEFAULT_GOAL := help

help:
	@echo "make demo    build ggsteer and show it at work on a sample model"
	@echo "make test    what CI runs: formatting, clippy, documentation, all tests"
	@echo "make lint    formatting, clippy and documentation only"
	@echo "make package what a published crate holds, and that it is small enough"
	@echo "make bench   benchmarks"
	@echo "make deny    licences, sources and security advisories of the dependencies"
	@echo "make msrv    the oldest compiler that Cargo.toml promises"
	@echo "make fuzz    two minutes of hostile input for every reader of files"
	@echo "make sanitize  the tests under Miri, AddressSanitizer, ThreadSanitizer and Valgrind"
	@echo "make scale   models of up to 20 GB of random weights, rewritten and verified: 43 GB of disk"
	@echo "make reliability  all of these, and every table of docs/reliability.md anew"
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
	@$(MAKE) --no-print-directory package >/dev/null

# Everything that the build reads, and no model: a crate may have 10 MB.
package:
	@cargo package --list --allow-dirty --quiet >$(TARGET)/package.txt
	@for file in Cargo.lock Cargo.toml LICENSE-APACHE LICENSE-MIT README.md prompt-sets/declined.txt src/lib.rs src/main.rs; do \
		grep -qx "$$file" $(TARGET)/package.txt || { echo "error: the package lacks $$file" >&2; exit 1; }; done
	@size=$$(xargs cat <$(TARGET)/package.txt 2>/dev/null | wc -c); [ "$$size" -lt 10000000 ] || \
		{ echo "error: the package has $$size bytes, a crate may have 10000000" >&2; exit 1; }
	@! grep -E '\.gguf$$|^tests/|^benches/' $(TARGET)/package.txt || \
		{ echo "error: these do not belong into the package" >&2; exit 1; }
	@cat $(TARGET)/package.txt

bench: setup
	+cargo bench

fuzz:
	@sh scripts/fuzz.sh

scale: setup
	+@sh scripts/scale.sh

# Ends with 2 where the advisories cannot be had.
deny:
	sh scripts/deny.sh

reliability: setup
	@sh scripts/setup.sh test
	sh scripts/reliability.sh

# Nothing is linked, so llama.cpp is not compiled.
msrv: setup
	@version=$$(sed -n 's/^rust-version = "\([0-9.]*\)"/\1/p' Cargo.toml); \
	case $$version in *.*.*) ;; *) version=$$version.0 ;; esac; \
	cargo +$$version --version >/dev/null 2>&1 || \
		{ echo "error: Rust $$version is missing: run 'rustup toolchain install $$version'" >&2; exit 1; }; \
	CARGO_TARGET_DIR=$(TARGET)/msrv CMAKE="$$PWD/scripts/cmake-stub.sh" cargo +$$version check --release --all-targets

sanitize: setup
	@sh scripts/sanitize.sh
