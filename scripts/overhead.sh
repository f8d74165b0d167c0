#!/usr/bin/env bash
# What a call of 128 tokens costs in Python and Kotlin beside Rust, in turn, once scripts/python.sh and scripts/kotlin.sh have run.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release -p ampoule-bindings --example clock --target-dir target/bindings
clock=$PWD/target/bindings/release/examples/clock
target/python/clean/bin/python bindings/python/tests/overhead.py "$clock"
mvn --batch-mode --quiet --file bindings/kotlin/pom.xml dependency:build-classpath -Dmdep.outputFile="$PWD/target/kotlin/classpath" >&2
java -Dampoule.root="$PWD" -cp "target/kotlin/maven/classes:target/kotlin/maven/test-classes:$(cat target/kotlin/classpath)" \
    rs.ampoule.Overhead "$clock"
