# Everything is built once, in one profile: each cargo call below says --release --locked.
# Downloads and what is built from them stay under target/ and .venv/.

.DEFAULT_GOAL := help
.NOTPARALLEL:
export CARGO_TARGET_DIR := $(CURDIR)/target

# The CMake of setup-build comes first in the path, for the C and C++ parts.
CARGO_PATH := PATH="$(CURDIR)/.venv/build/bin:$$PATH"
CARGO := $(CARGO_PATH) cargo
BUILD := --release --locked
FOREBAY := ./target/release/forebay

.PHONY: help setup-build setup-test setup-kafka setup-nats setup build demo demo-kafka demo-nats test test-kills test-faults test-overload fuzz bench bench-forest bench-cache bench-batch bench-jetstream bench-service bench-submit bench-python bench-check check

help: ## Print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup-build: ## Install what the build needs: Debian packages, CMake
	@tests/setup/build

setup-test: ## Install what the tests need: a JDK, a Kafka broker, a NATS server, Python libraries, a browser
	@tests/setup/test

setup-kafka:
	@tests/setup/test kafka

setup-nats:
	@tests/setup/test nats

setup: setup-build setup-test ## Both of these

# Always asked for before the binary is run: `make test` leaves one with fail points in its place.
build: setup-build
	$(CARGO) build $(BUILD)

demo: build ## Stream 50,000 real records through an in-process broker
	@$(FOREBAY) demo

demo-kafka: setup-kafka build ## The same on its own Kafka broker: exactly once, one worker of two killed
	@tests/servers/with-kafka $(FOREBAY) demo --brokers '{brokers}'

demo-nats: setup-nats build ## The same on its own NATS server: request/reply, then JetStream, exactly once
	@tests/servers/with-nats $(FOREBAY) demo --nats '{nats}'

INDEXES := $(patsubst %,target/models/%.json,index index-onnx index-onnx_full index-xgboost index-forest index-treelite index-python index-onnx_trees index-tl2cgen index-preprocess index-quantize)
test: setup $(INDEXES) ## Run all tests, those against a real broker too
	@: >target/skips.txt
	FOREBAY_SKIPS=$(CURDIR)/target/skips.txt $(CARGO) test $(BUILD) --features failpoints
	@tests/setup/report-skips target/skips.txt

test-kills: setup $(INDEXES) ## Kill workers 20 times over 100,000 records, and beside a slow one at 20,000/s
	FOREBAY_KILLS=20 $(CARGO) test $(BUILD) --features failpoints --test kafka -- --test-threads 1 killed_at_random
	FOREBAY_RATE=20000 $(CARGO) test $(BUILD) --features failpoints --test kafka -- --test-threads 1 slow_record

test-faults: setup $(INDEXES) ## Each fault of JetStream 20 times over; ROW=words of a test's name runs that one
	FOREBAY_RUNS=20 FOREBAY_KILLS=20 $(CARGO) test $(BUILD) --features failpoints --test nats -- --test-threads 1 $(ROW)

test-overload: setup $(INDEXES) ## Send a worker twice what it can score, for 60 s
	FOREBAY_OVERLOAD_S=60 $(CARGO) test $(BUILD) --features failpoints --test kafka -- --test-threads 1 --nocapture twice_the_load

# Each is written last by its script, so it stands for all models of that script.
target/models/index.json: tests/models.py tests/requirements.txt $(wildcard tests/data/higgs/*) | setup-test
	@.venv/test/bin/python tests/models.py target/models

target/models/index-%.json: tests/models_%.py tests/models.py tests/requirements.txt $(wildcard tests/data/higgs/*) | setup-test
	@.venv/test/bin/python tests/models_$*.py target/models

target/models/index-forest.json: tests/xgboost_binary.py
target/models/index-treelite.json target/models/index-onnx_trees.json: tests/models_forest.py tests/xgboost_binary.py
target/models/index-onnx_trees.json: tests/models_onnx.py
target/models/index-quantize.json: tests/models_onnx.py tests/models_preprocess.py
target/models/index-tl2cgen.json: tests/models_treelite.py tests/models_forest.py tests/xgboost_binary.py

fuzz: setup target/models/index-forest.json target/models/index-treelite.json target/models/index-onnx_trees.json ## Damage a million model files a reader, five million JSON bodies, as many offset maps
	FOREST_MUTATIONS=1000000 $(CARGO) test $(BUILD) --test mutate_forest -- --nocapture
	cd tests/fuzz && $(CARGO_PATH) CARGO_TARGET_DIR=$(CURDIR)/target/fuzz cargo run --release --bin mutate -- 5000000
	cd tests/fuzz && $(CARGO_PATH) CARGO_TARGET_DIR=$(CURDIR)/target/fuzz cargo run --release --bin mutate_maps -- 5000000

bench: setup build ## Measure the worker beside its floor and its peers, on its own broker
	@tests/setup/bench
	$(CARGO) bench --locked --bench worker
	$(CARGO) bench --locked --bench allocations

bench-forest: build ## Measure the compiled forest beside every library that scores forests
	@tests/setup/bench-forest
	.venv/forest-peers/bin/python tests/peers/forest.py target/bench/forest $(FOREBAY) target/bench/forest.json

bench-cache: build ## Measure a lookup in the result cache beside scoring the row, and beside another cache
	@tests/setup/bench
	$(CARGO) bench --locked --bench cache

bench-jetstream: setup build $(INDEXES) ## Measure records of JetStream beside a bare loop of pull, publish and acknowledge
	$(CARGO) bench --locked --bench jetstream

bench-service: setup build ## Measure requests of NATS clients beside a bare echo service on the same server
	$(CARGO) bench --locked --bench service

# Simulated time: it may run beside other work.
bench-batch: build ## Simulate the batcher's rules beside Triton's and plain ones; JSON=1 prints JSON; half a minute
	@$(CARGO) bench --quiet --locked --bench simulate -- $(if $(JSON),--json)

bench-submit: build ## Measure what submitting costs beside plain queues, and how late deadlines are kept
	$(CARGO) bench --locked --bench submit

bench-python: setup-test build target/models/index-python.json ## Measure what a Python model's process costs a row beside predict itself
	$(CARGO) bench --locked --bench python

# Counts, not times: it may run beside other work.
bench-check: build ## Count instructions and allocations of the pure stages; ACCEPT=1 rewrites their table
	@tests/setup/bench-check
	$(CARGO) bench --locked --bench instructions -- $(if $(ACCEPT),--accept)

check: build ## Format, lints, docs, licences, schema drift, features, no fail points in the binary
	@tests/setup/check-failpoints $(FOREBAY)
	@rm -rf target/schemas
	$(FOREBAY) config schema --dir target/schemas
	diff -r -x third_party schemas target/schemas
	@tests/setup/check-tools
	cargo fmt --check
	$(CARGO) clippy $(BUILD) --all-targets --features failpoints -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(BUILD) --no-deps
	@$(CARGO_PATH) tests/setup/check-features
	@tests/setup/check-deny
