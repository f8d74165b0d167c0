#!/usr/bin/env bash
# The long checks of the bindings, once scripts/python.sh, scripts/kotlin.sh and scripts/swift.sh have run: what a call of 128 tokens costs
# in Python, Kotlin and Swift beside Rust, in turn; how soon a cancelled one ends; and what a hundred thousand leave behind.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release -p ampoule-bindings --example clock --target-dir target/bindings
clock=$PWD/target/bindings/release/examples/clock
python=target/python/clean/bin/python
mvn --batch-mode --quiet --file bindings/kotlin/pom.xml dependency:build-classpath -Dmdep.outputFile="$PWD/target/kotlin/classpath" >&2
kotlin() { # of a heap that stands still, so that what grows is the library's
    java -Xms256m -Xmx256m -XX:+AlwaysPreTouch -Dampoule.root="$PWD" \
        -cp "target/kotlin/maven/classes:target/kotlin/maven/test-classes:$(cat target/kotlin/classpath)" "$@"
}
echo "== Python"
"$python" bindings/python/tests/overhead.py "$clock"
"$python" bindings/python/tests/soak.py
echo "== Kotlin"
kotlin rs.ampoule.Overhead "$clock"
kotlin rs.ampoule.Soak
echo "== Swift"
export AMPOULE_SID=swift
why=$(scripts/chroot.sh --why-not)
if [ -n "$why" ]; then
    echo "skipped: no Swift 6 here: $why"
    exit 0
fi
for product in Overhead Soak; do
    scripts/chroot.sh swift build --configuration release --product "$product" --package-path /checkout/target/swift/ampoule \
        --scratch-path /checkout/target/swift/build-release -Xlinker -L/checkout/target/bindings/release \
        -Xlinker -rpath=/checkout/target/bindings/release >"target/swift/$product.log" 2>&1 || { cat "target/swift/$product.log" >&2; exit 1; }
done
swift() { scripts/chroot.sh env AMPOULE_ROOT=/checkout "target/swift/build-release/release/$1" "${@:2}"; }
swift Overhead /checkout/target/bindings/release/examples/clock
swift Soak
