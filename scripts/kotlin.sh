#!/usr/bin/env bash
# Generates the Kotlin side of the library, builds it with its facade, and runs its tests on the JVM.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v mvn >/dev/null || { apt-get -q update && apt-get -qy install maven openjdk-17-jdk-headless; } >&2
scripts/library.sh
library=target/bindings/release/libampoule_bindings.so out=target/kotlin
case $(uname -m) in
    x86_64) folder=linux-x86-64 ;;
    aarch64) folder=linux-aarch64 ;;
    *) echo "JNA's folder for $(uname -m) is not known here" >&2; exit 1 ;;
esac
rm -rf "$out/uniffi" "$out/native" "$out/samples"
# Else the counts below were those of an earlier run where nothing compiles.
rm -rf "$out"/maven/{surefire-reports,classes,test-classes}
mkdir -p "$out/native/$folder" "$out/samples"
sed -n '/^```kotlin$/,/^```$/{ /^```/d; p }' bindings/kotlin/README.md >"$out/samples/Guide.kt"
target/bindgen/debug/uniffi-bindgen generate --library "$library" --language kotlin --no-format --out-dir "$out/uniffi" 2>"$out/bindgen.log" ||
    { cat "$out/bindgen.log" >&2; exit 1; }
strip --strip-unneeded -o "$out/native/$folder/libampoule_bindings.so" "$library"
if ! mvn --batch-mode --quiet --file bindings/kotlin/pom.xml verify "$@"; then failed=1; fi
# Surefire's counts, in one line.
awk -F'"' '/^<testsuite /{ for (i = 1; i < NF; i++) { if ($i ~ / tests=$/) n += $(i+1); if ($i ~ / (failures|errors)=$/) bad += $(i+1)
    if ($i ~ / skipped=$/) skipped += $(i+1) } } END { printf "%d passed, %d failed", n - bad - skipped, bad; if (skipped) printf ", %d skipped", skipped
    print ""; exit !n }' <(cat "$out"/maven/surefire-reports/TEST-*.xml 2>/dev/null | tr '\n' ' ' | sed 's/<testsuite /\n<testsuite /g; s/>/>\n/g')
exit "${failed:-0}"
