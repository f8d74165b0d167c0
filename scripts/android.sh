#!/usr/bin/env bash
# The library for Android's four processors, compiled with its standard library by Debian's Rust, and the Android archive around it.
#
# Without the NDK (this is what was run): linked against stubs that have the names of bindings/android/bionic.csv and nothing behind
# them, which shows what it would ask of a phone and how heavy it is, and makes target/android/ampoule-unlinked.aar: never ship it. With the
# NDK in ANDROID_NDK_HOME (not run here): linked by it, which makes target/android/ampoule.aar.
#
# Either is audited by scripts/android_audit.py, which has to refuse what is planted for it, too. Once scripts/kotlin.sh has run; without
# the NDK it needs root and debootstrap, as scripts/chroot.sh does. `scripts/android.sh ABI...` does some of arm64-v8a armeabi-v7a x86_64 x86.
# `scripts/android.sh --gpu ABI...` does the same for libraries that compute on a GPU too: ampoule-gpu.aar.
set -euo pipefail
cd "$(dirname "$0")/.."
out=target/android classes=target/kotlin/android/maven/classes
[ -d "$classes" ] || { echo "$classes is not there; try: scripts/kotlin.sh" >&2; exit 1; }
gpu= kind=library jni=$out/jni name=ampoule
if [ "${1:-}" = --gpu ]; then gpu=wgpu kind=gpu-library jni=$out/gpu name=ampoule-gpu; shift; fi
if [ $# -eq 0 ]; then set -- arm64-v8a armeabi-v7a x86_64 x86; fi
rm -rf "$jni" "$out/planted" "$out/jna" "$out/$name"{,-unlinked}.aar
mkdir -p "$jni" "$out/planted"
python3 scripts/android_audit.py unwinder >"$out/unwinder"
# A library of each name that the NDK has one of, with the names alone; and what the audit has to refuse: a function of Android 9, pages of
# 4 KB.
cat >"$out/stubs.sh" <<'END'
set -eu
triple=$1 abi=$2 folder=/checkout/target/android/stubs/$2 column=$3
rm -rf "$folder"; mkdir -p "$folder"
for library in libc libm libdl liblog libunwind libgcc; do
    names=$(awk -F, -v l="$library.so" -v c="$column" '$2 == l && $c != "" { print $1 "," $c }' /checkout/bindings/android/bionic.csv)
    case $library in
        libc) names="$names
getrandom,LIBC_P" ;;
        libunwind) names=$(cat /checkout/target/android/unwinder) ;;
    esac
    {
        echo .text
        echo "$names" | awk -F, 'NF { print ".globl " $1 "\n.type " $1 ",%function\n" $1 ":" }'
    } | llvm-mc -triple "$triple" -filetype obj -o "$folder/$library.o"
    echo "$names" | awk -F, 'NF == 2 { of[$2] = of[$2] " " $1 ";" } END { for (v in of) print v " {" of[v] " };" }' >"$folder/$library.map"
    versions=
    if [ -s "$folder/$library.map" ]; then versions="--version-script $folder/$library.map"; fi
    ld.lld -shared -soname "$library.so" $versions -o "$folder/$library.so" "$folder/$library.o"
done
echo ".globl uniffi_ampoule_native_planted
uniffi_ampoule_native_planted:
.data
.globl planted
planted:
${4} getrandom" | llvm-mc -triple "$triple" -filetype obj -o "$folder/planted.o"
ld.lld -shared -z max-page-size=16384 -L "$folder" -lc -o "/checkout/target/android/planted/newer-$abi.so" "$folder/planted.o"
ld.lld -shared -z max-page-size=4096 -L "$folder" -lc -o "/checkout/target/android/planted/pages-$abi.so" "$folder/planted.o"
END
# For these targets rustc speaks to a C compiler, whatever it is told; this one is lld.
cat >"$out/cc" <<'END'
#!/usr/bin/env bash
arguments=()
for argument; do
    case $argument in
        -Wl,*) IFS=, read -ra some <<<"${argument#-Wl,}"; arguments+=("${some[@]}") ;;
        -nodefaultlibs | -nostartfiles | -m* | -rdynamic) ;;
        *) arguments+=("$argument") ;;
    esac
done
exec ld.lld "${arguments[@]}"
END
chmod +x "$out/cc"
for abi; do
    features=flex
    case $abi in
        arm64-v8a) target=aarch64-linux-android triple=aarch64-linux-android column=3 word=.xword features= ;;
        armeabi-v7a) target=armv7-linux-androideabi triple=armv7-linux-androideabi column=4 word=.long ;;
        x86_64) target=x86_64-linux-android triple=x86_64-linux-android column=5 word=.quad features= ;;
        x86) target=i686-linux-android triple=i686-linux-android column=6 word=.long features= ;;
        *) echo "no ABI of Android: $abi" >&2; exit 1 ;;
    esac
    echo "== $abi"
    if [ -n "${ANDROID_NDK_HOME:-}" ]; then
        clang=$(echo "$ANDROID_NDK_HOME"/toolchains/llvm/prebuilt/*/bin/clang)
        [ -x "$clang" ] || { echo "$ANDROID_NDK_HOME holds no NDK: there is no $clang" >&2; exit 1; }
        link=(-C "linker=$clang" -C "link-arg=--target=${triple}26")
        rust=(env)
        build=$out/build
    else
        scripts/chroot.sh bash /checkout/$out/stubs.sh "$triple" "$abi" "$column" "$word"
        link=(-C "linker=/checkout/$out/cc" -C "link-arg=-L/checkout/$out/stubs/$abi")
        rust=(scripts/chroot.sh env)
        build=/checkout/$out/build
    fi
    features=$features${gpu:+${features:+,}$gpu}
    link+=(-C link-arg=-Wl,-z,max-page-size=16384 -C link-arg=-Wl,--pack-dyn-relocs=android)
    # The standard library of these targets is compiled too, which the stable compiler does where it is told that it may.
    "${rust[@]}" RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$build" cargo rustc --quiet -p ampoule-bindings --lib --crate-type cdylib \
        --profile dist ${features:+--features "$features"} -Zbuild-std=std,panic_unwind --target "$target" -- "${link[@]}"
    mkdir -p "$jni/$abi"
    cp "$out/build/$target/dist/libampoule_bindings.so" "$jni/$abi/"
    python3 scripts/android_audit.py "$kind" "$abi" "$jni/$abi/libampoule_bindings.so"
    scripts/size.sh "$target" "${features/,/ }" "$jni/$abi/libampoule_bindings.so"
    if [ -z "${ANDROID_NDK_HOME:-}" ]; then
        for planted in newer pages; do
            if python3 scripts/android_audit.py "$kind" "$abi" "$out/planted/$planted-$abi.so" >"$out/planted/said"; then
                echo "the audit let $out/planted/$planted-$abi.so pass" >&2
                exit 1
            fi
            grep -q "$(case $planted in newer) echo 'getrandom' ;; pages) echo 'aligned to 0x1000' ;; esac)" "$out/planted/said" ||
                { cat "$out/planted/said" >&2; exit 1; }
        done
    fi
done
echo "== JNA's own libraries"
jna=$(sed -n 's/.*"\(net.java.dev.jna:jna:[0-9.]*\)@aar".*/\1/p' bindings/android/build.gradle.kts)
mvn --batch-mode --quiet org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy "-Dartifact=$jna:aar" -DoutputDirectory="$PWD/$out/jna" >&2
for abi; do
    unzip -qo "$out/jna"/*.aar "jni/$abi/*" -d "$out/jna"
    python3 scripts/android_audit.py foreign "$abi" "$out/jna/jni/$abi"/*.so
done
echo "== the archive"
aar=$out/$name-unlinked.aar
[ -z "${ANDROID_NDK_HOME:-}" ] || aar=$out/$name.aar
python3 scripts/android_audit.py pack "$aar" "$jni" "$classes"
python3 scripts/android_audit.py aar "$aar" "$@"
