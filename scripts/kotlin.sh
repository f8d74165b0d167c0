#!/usr/bin/env bash
# Generates the Kotlin side of the library, builds it with its facade, and runs its tests on the JVM; then what is Android's alone, and the
# sample app, against Android's own classes. At last the shrinkers: see scripts/shrink.sh. With AMPOULE_GPU set the library computes on GPUs
# too, and the package is `ampoule-gpu`; its tests take whatever GPU there is, software too.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v mvn >/dev/null && command -v aapt >/dev/null && command -v python3 >/dev/null && command -v unzip >/dev/null &&
    [ -e /usr/share/android-framework-res/framework-res.apk ] ||
    { apt-get -q update && apt-get -qy install maven openjdk-17-jdk-headless aapt android-framework-res python3 unzip; } >&2
[ -z "${AMPOULE_GPU:-}" ] || scripts/gpu.sh --driver
scripts/library.sh
library=target/bindings/release/libampoule_bindings.so out=target/kotlin
case $(uname -m) in
    x86_64) folder=linux-x86-64 ;;
    aarch64) folder=linux-aarch64 ;;
    *) echo "JNA's folder for $(uname -m) is not known here" >&2; exit 1 ;;
esac
rm -rf "$out/uniffi" "$out/native" "$out/samples"
# Else the counts below were those of an earlier run where nothing compiles.
rm -rf "$out"/{,android/}maven/{surefire-reports,classes,test-classes}
mkdir -p "$out/native/$folder" "$out/samples"
rm -rf "$out/licences"
mkdir -p "$out/licences/META-INF/ampoule"
cp LICENSE-APACHE LICENSE-MIT NOTICE "$out/licences/META-INF/ampoule/"
cp bindings/THIRD-PARTY.txt "$out/licences/META-INF/ampoule/"
guide() { sed -n '/^```kotlin$/,/^```$/{ /^```/d; p }' "bindings/$1/README.md"; }
guide kotlin >"$out/samples/Guide.kt"
target/bindgen/debug/uniffi-bindgen generate --library "$library" --language kotlin --no-format --out-dir "$out/uniffi" 2>"$out/bindgen.log" ||
    { cat "$out/bindgen.log" >&2; exit 1; }
strip --strip-unneeded -o "$out/native/$folder/libampoule_bindings.so" "$library"
# The sample app as a package, for Android's classes to read: with a bundle that is stored, as `noCompress` says, and others.
app=$out/android
rm -rf "$app"/{assets,r,samples,config} "$app/note.apk"
mkdir -p "$app"/{assets,r,samples,config/com/android/tools}
guide android >"$app/samples/Guide.kt"
cp models/clinical-en.int8.safetensors bindings/tests/labels.safetensors "$app/assets/"
cp models/clinical-en.int8.safetensors "$app/assets/compressed.bundle"
head -c 1000000 models/clinical-en.int8.safetensors >"$app/assets/cut.safetensors"
aapt package -f -m -J "$app/r" -F "$app/note.apk" -M examples/android/src/main/AndroidManifest.xml -S examples/android/src/main/res \
    -A "$app/assets" -0 safetensors --min-sdk-version 26 --target-sdk-version 26 -I /usr/share/android-framework-res/framework-res.apk
cat >"$app/config/com/android/tools/test_config.properties" <<END
android_merged_manifest=$PWD/examples/android/src/main/AndroidManifest.xml
android_resource_apk=$PWD/$app/note.apk
android_custom_package=rs.ampoule.example
END
mvn --batch-mode --quiet --file bindings/android/pom.xml org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
    -Dartifact=androidx.test:monitor:1.8.0:aar -DoutputDirectory="$PWD/$app/monitor" >&2
unzip -qo "$app"/monitor/monitor-*.aar classes.jar -d "$app/monitor"
for project in kotlin android; do
    pom=bindings/$project/pom.xml
    if [ "$project${AMPOULE_GPU:+-gpu}" = kotlin-gpu ]; then
        # Beside, since folders are named from there.
        pom=bindings/kotlin/.pom-gpu.xml
        trap 'rm -f bindings/kotlin/.pom-gpu.xml' EXIT
        sed 's|^  <artifactId>ampoule</artifactId>$|  <artifactId>ampoule-gpu</artifactId>|' bindings/kotlin/pom.xml >"$pom"
    fi
    mvn --batch-mode --quiet -Dstyle.color=never --file "$pom" verify "$@" || failed=1
done
# Surefire's counts, in one line.
awk -F'"' '/^<testsuite /{ for (i = 1; i < NF; i++) { if ($i ~ / tests=$/) n += $(i+1); if ($i ~ / (failures|errors)=$/) bad += $(i+1)
    if ($i ~ / skipped=$/) skipped += $(i+1) } } END { printf "%d passed, %d failed", n - bad - skipped, bad; if (skipped) printf ", %d skipped", skipped
    print ""; exit !n }' <(cat "$out"/{,android/}maven/surefire-reports/TEST-*.xml 2>/dev/null | tr '\n' ' ' |
    sed 's/<testsuite /\n<testsuite /g; s/>/>\n/g')
[ -z "${failed:-}" ] || exit "$failed"
scripts/shrink.sh
echo "target/kotlin/maven/ampoule${AMPOULE_GPU:+-gpu}-0.1.0.jar"
