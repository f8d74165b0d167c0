#!/usr/bin/env bash
# The classes after R8 and after ProGuard, with no rules but those that an app gets with the library (bindings/android/consumer-rules.pro):
# the scenario runs on what they leave, on the JVM; without the rules it fails, else they would be for nothing. R8 also makes the sample
# app's Dalvik code. Once scripts/kotlin.sh has run.
set -euo pipefail
cd "$(dirname "$0")/.."
kotlin=$PWD/target/kotlin out=$PWD/target/kotlin/shrunk rules=$PWD/bindings/android/consumer-rules.pro
rm -rf "$out"
mkdir -p "$out/program" "$out/app"
classpath() { # POM SCOPE
    mvn --batch-mode --quiet --file "$1" dependency:build-classpath -DincludeScope="$2" -Dmdep.outputFile="$out/classpath" >&2
    cat "$out/classpath"
}
shrinkers=$(classpath bindings/android/shrinkers.xml runtime)
IFS=: read -ra program <<<"$(classpath bindings/kotlin/pom.xml runtime)"
IFS=: read -ra tests <<<"$(classpath bindings/kotlin/pom.xml test)"
libraries=()
for jar in "${tests[@]}"; do
    case $jar in */gson-* | */junit-jupiter-api-* | */opentest4j-* | */junit-platform-commons-*) libraries+=("$jar") ;; esac
done
# The library, and the scenario, as an app would be.
cp -r "$kotlin/maven/classes/." "$out/program/"
(cd "$kotlin/maven/test-classes" && cp --parents rs/ampoule/Scenario{,\$*}.class rs/ampoule/Fixtures*.class "$out/program/")
(cd "$out/program" && jar --create --file ../program.jar .)
program+=("$out/program.jar")
java_home=$(java -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java.home = //p')
echo '-keep class rs.ampoule.Scenario { public static void main(java.lang.String[]); }' >"$out/main.pro"
: >"$out/none.pro"
for jar in "${program[@]}"; do
    case $jar in */kotlinx-coroutines-core-*) unzip -p "$jar" META-INF/com.android.tools/proguard/coroutines.pro >"$out/coroutines.pro" ;; esac
done

r8() { java -Xmx1g -cp "$shrinkers" com.android.tools.r8.R8 --release "$@"; }
with_r8() { # RULES OUTPUT
    local with=()
    for jar in "${libraries[@]}"; do with+=(--classpath "$jar"); done
    r8 --classfile --lib "$java_home" "${with[@]}" --pg-conf "$1" --pg-conf "$out/main.pro" --output "$2" "${program[@]}"
}
with_proguard() {
    {
        # A jar's manifests and services may be there more than once.
        for jar in "${program[@]}"; do echo "-injars $jar(!META-INF/**)"; done
        echo "-outjars $2"
        # Without the parts for Kotlin, which would need the Kotlin that is shrunk.
        for jar in "${libraries[@]}"; do echo "-libraryjars $jar(!**Kt.class;!**Kt\$*.class)"; done
        for module in base desktop logging management; do
            echo "-libraryjars $java_home/jmods/java.$module.jmod(!**.jar;!module-info.class)"
        done
        echo "-include $1"
        # What coroutines bring themselves, which R8 finds; Android's plugin gives either to its shrinker.
        echo "-include $out/coroutines.pro"
        echo "-include $out/main.pro"
        # Its optimizer breaks coroutines (VerifyError); R8 is what optimizes here.
        echo -dontoptimize
        # Android has it; the JVM's coroutines name it.
        echo "-dontwarn android.annotation.SuppressLint"
    } >"$2.pro"
    java -Xmx1g -cp "$shrinkers" proguard.ProGuard "@$2.pro"
}
scenario() { java -Dampoule.root="$PWD" -cp "$1:$(IFS=:; echo "${libraries[*]}")" rs.ampoule.Scenario; }

for shrinker in r8 proguard; do
    echo "== $shrinker"
    "with_$shrinker" "$rules" "$out/$shrinker.jar" >"$out/$shrinker.log" 2>&1 || { tail -30 "$out/$shrinker.log" >&2; exit 1; }
    echo "$(du -cb "${program[@]}" | tail -1 | cut -f1) bytes of classes and libraries before, $(wc -c <"$out/$shrinker.jar") after"
    classes=$(unzip -Z1 "$out/$shrinker.jar" | grep -c '^rs/ampoule/' || true)
    if unzip -Z1 "$out/$shrinker.jar" | grep -q '^rs/ampoule/Extractor.class'; then
        echo "$shrinker renamed nothing: $classes classes bear their names" >&2
        exit 1
    fi
    scenario "$out/$shrinker.jar"
    # What it misses is let be, so that it fails where it runs, if it does.
    echo '-dontwarn **' >"$out/none.pro"
    "with_$shrinker" "$out/none.pro" "$out/$shrinker-without.jar" >"$out/$shrinker-without.log" 2>&1 ||
        { tail -30 "$out/$shrinker-without.log" >&2; exit 1; }
    if scenario "$out/$shrinker-without.jar" >"$out/$shrinker-without.said" 2>&1; then
        echo "the scenario passed after $shrinker without the rules: what are they for?" >&2
        exit 1
    fi
    echo "without the rules it fails, as it has to: $(grep -oE -m1 '[A-Za-z]*(Error|Exception)\b' "$out/$shrinker-without.said" || true)"
done

echo "== r8, for Android 8.0 and later"
echo '-keep class rs.ampoule.example.NoteActivity { <init>(); }' >"$out/app.pro"
IFS=: read -ra app <<<"$(classpath bindings/android/pom.xml test)"
inputs=() android=
for jar in "${app[@]}"; do
    case $jar in */android-all-8.0.0*) android=$jar ;; */kotlin-stdlib-*|*/kotlinx-coroutines-*|*/jna-*|*/annotations-13*) inputs+=("$jar") ;; esac
done
: "${android:?the classes of Android 8.0 are not among the dependencies}"
cp -r "$kotlin/android/maven/classes/rs" "$out/app/"
(cd "$kotlin/android/maven/test-classes" && find rs/ampoule/example -name '*.class' ! -name '*Test*' -exec cp --parents {} "$out/app/" \;)
(cd "$out/app" && jar --create --file ../app.jar .)
mkdir "$out/dex"
# Robolectric's jar of Android's classes has none of Java's.
r8 --min-api 26 --lib "$android" --lib "$java_home" --pg-conf "$rules" --pg-conf "$out/app.pro" --pg-conf examples/android/rules.pro --output "$out/dex" "${inputs[@]}" "$out/app.jar"
for name in uniffi_ampoule_bindings_fn_method_extractor_extract Lcom/sun/jna/Structure\$FieldOrder Lrs/ampoule/example/NoteActivity; do
    grep -qF "$name" "$out/dex/classes.dex" || { echo "the app's code lacks $name" >&2; exit 1; }
done
echo "$(wc -c <"$out/dex/classes.dex") bytes of Dalvik code"
