# make demo    build, fetch a small model, train a steering vector and show what it does (about ten minutes)
# make test    everything that must pass: formatting, lints, all tests on both test models
# make vectors train the vectors in vectors/ again
# make architectures  check random models of every architecture and type of weight, write docs/architectures.md
# make study   train and measure a vector on TruthfulQA, from raw data to docs/study.md (about two hours)
# make gates   measure conditional steering on TruthfulQA and MMLU, write the table of docs/interventions.md (about two hours)
# make adapters measure LoRA adapters against a constant vector, write the tables of docs/adapters.md (about two hours)
# make fuzz    give changed inputs to every reader, ten minutes each (FUZZ_SECONDS, FUZZ_READERS; fuzz/README.md)
# make torture kill, fill the disk and overload for an hour (TORTURE_MINUTES), write the table of docs/reliability.md
# make dist    build the portable archive and the wheel into dist/ (docs/install.md)
# make bench   measure speed and memory against llama.cpp, write docs/performance.md (about fifteen minutes, quiet machine)

.PHONY: demo test build lint models models-all setup vectors architectures bench study gates adapters fuzz torture dist help

help:
	@sed -n 's/^# make/make/p' Makefile

setup:
	scripts/setup.sh

build: setup
	cargo build --release

models: build
	target/release/bidpo models fetch smollm2

models-all: build
	target/release/bidpo models fetch smollm2 gemma

demo: models
	target/release/bidpo demo --out runs/demo

lint: setup
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	if command -v cargo-deny >/dev/null; then cargo deny --offline check bans licenses sources; \
	else echo "cargo-deny is not installed: licences, bans and sources of dependencies were not checked"; fi
	cargo clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --quiet

# One thread a test: a graph's threads wait for each other after each node, and scripts/run_tests.py already runs as many tests at once as there are cores.
test: export BIDPO_SETUP_TESTS = 1
test: models-all lint
	scripts/test.sh

vectors: models-all
	scripts/vectors.sh

# Written only if every check passed.
architectures: setup
	cargo run --release --example architectures > target/architectures.md
	mv target/architectures.md docs/architectures.md

bench: models-all
	scripts/bench.sh

fuzz: setup
	scripts/fuzz.sh

torture: build
	scripts/torture.py target/release/bidpo

dist: setup
	scripts/dist.sh

study: models
	scripts/study.sh

gates: models
	scripts/gates.sh

adapters: models
	scripts/adapters.sh
