#!/usr/bin/env bash
# Builds the Python wheel and prints its path: its library stripped, what a crash is read by beside it, every licence in it, and no newer
# glibc needed than Debian 12's.
#   scripts/wheel.sh                                  quick, by the release profile
#   scripts/wheel.sh dist                             as it ships
#   scripts/wheel.sh dist aarch64-unknown-linux-gnu   the same for ARM, by the root of scripts/chroot.sh
# Leaves target/python/PROFILE/TARGET: the wheel and, as it ships, the .debug file of scripts/symbols.sh. With AMPOULE_GPU set the package
# is `ampoule-gpu`, whose module has the same name and computes on GPUs too: of the two, one can be installed.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
profile=${1:-release} target=${2:-$host} root=$PWD
name=ampoule${AMPOULE_GPU:+-gpu} out=target/python/$profile/$target${AMPOULE_GPU:+-gpu} tools=target/python/tools
file=${name//-/_} most=${AMPOULE_GPU:+10} most=${most:-4}
python=${PYTHON:-python3}
"$python" -m venv --help >/dev/null 2>&1 && "$python" -m ensurepip --version >/dev/null 2>&1 ||
    { apt-get -q update && apt-get -qy install python3 python3-venv; } >&2
[ -x "$tools/bin/wheel" ] ||
    { "$python" -m venv "$tools" && "$tools/bin/pip" install --quiet 'maturin>=1.16,<2' 'wheel>=0.45' 'pdoc>=15' typing_extensions; } >&2
# By the release profile with the library itself, of which nothing is compiled twice then.
scripts/library.sh $([ "$profile" = release ] || echo generator)
rm -rf "$out"
mkdir -p "$out"

# maturin reads from the library what uniffi left there, so that it is stripped after it.
settings=(CARGO_TERM_COLOR=never)
if [ "$profile" = dist ]; then
    # With lines for who reads a crash, and without the names of this machine's folders.
    settings+=(CARGO_PROFILE_DIST_STRIP=none CARGO_PROFILE_DIST_DEBUG=line-tables-only)
    flags="-C link-arg=-Wl,--build-id=sha1"
fi
if [ "$target" = "$host" ]; then
    enter=() options=() checkout=$root cargo=${CARGO_HOME:-$HOME/.cargo} objcopy=objcopy
    settings+=(CARGO_TARGET_DIR="$root/target/bindings" PATH="$root/target/bindgen/debug:$PATH")
elif [ "$profile $target" = "dist aarch64-unknown-linux-gnu" ]; then
    scripts/debian12_arm64.sh >/dev/null
    enter=(scripts/chroot.sh) options=(--target "$target") checkout=/checkout cargo=/cargo objcopy=aarch64-linux-gnu-objcopy
    settings+=(CARGO_TARGET_DIR=/checkout/target/sid PATH=/checkout/target/bindgen/debug:/usr/bin
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc)
    flags+=" -C link-arg=--sysroot=/debian-12-arm64"
else
    echo "no way to build for $target by the profile $profile is known here" >&2
    exit 1
fi
[ -z "${flags:-}" ] || settings+=(RUSTFLAGS="$flags --remap-path-prefix=$cargo=crates --remap-path-prefix=$checkout=ampoule")
# Of its own name, and beside: maturin reads the manifest by that of the folder.
mkdir "$out/project"
cp -rLp bindings/python/. "$out/project"
sed -i -e "s/^name = \"ampoule\"$/name = \"$name\"/" -e "s|^manifest-path = .*|manifest-path = \"$checkout/bindings/Cargo.toml\"|" \
    "$out/project/pyproject.toml"
"${enter[@]}" env "${settings[@]}" bash -c 'cd "$1" && shift && "$@"' - "$checkout/$out/project" \
    "$checkout/$tools/bin/maturin" build --quiet --locked --profile "$profile" "${options[@]}" --out "$checkout/$out/whole" \
    ${AMPOULE_GPU:+--features wgpu} >&2

"$tools/bin/wheel" unpack --dest "$out/whole" "$out"/whole/*.whl >/dev/null
library=$(ls "$out/whole/$file"-*/ampoule/_native/*.so) files=$(ls -d "$out/whole/$file"-*/)
version=$(basename "$files") version=${version#"$file"-}
if [ "$profile" = dist ]; then
    debug=$name-$version-$target.debug
    "${enter[@]}" env OBJCOPY=$objcopy scripts/symbols.sh "$library" "$out/$debug"
    ! grep -aqF -e "$cargo/" -e "$checkout/" "$library" || { echo "the library names folders of this machine" >&2; exit 1; }
else
    objcopy --strip-all "$library"
fi
newest=$(readelf --version-info --wide "$library" | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -1)
[ "$(printf '%s\n' "${newest:?no symbol of glibc at all}" GLIBC_2.36 | sort -V | tail -1)" = GLIBC_2.36 ] ||
    { echo "the library needs $newest, and Debian 12 has 2.36" >&2; exit 1; }
# A symbol that Debian 12 has not at all is left without a version.
unknown=$(readelf --dyn-syms --wide "$library" | awk '$5 == "GLOBAL" && $7 == "UND" && $8 !~ /@/ { print $8 }')
[ -z "$unknown" ] || { echo "the library calls what nothing in Debian 12 has:" $unknown >&2; exit 1; }
for licence in LICENSE-MIT LICENSE-APACHE NOTICE THIRD-PARTY.txt; do
    cmp "$files/$file"-*.dist-info/licenses/$licence bindings/python/$licence >&2
done
# Zips hold times: that of the commit.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s) "$tools/bin/wheel" pack --dest "$out" "$files" >/dev/null
wheel=$(ls "$out"/*.whl)
tag=$(sed -nE 's/.*manylinux_2_([0-9]+)_.*/\1/p' <<<"$wheel")
[ "${tag:-99}" -le 36 ] || { echo "$wheel is for a newer glibc than Debian 12's 2.36" >&2; exit 1; }
bytes=$(wc -c <"$wheel")
echo "$bytes bytes, $(wc -c <"$library") of them the library before they are packed; $newest: $(basename "$wheel")" >&2
[ "$bytes" -le "${most}000000" ] || { echo "the wheel is heavier than $most MB" >&2; exit 1; }
rm -r "$out/whole" "$out/project"
echo "$wheel"
