#!/usr/bin/env bash
# Makes a Debian sid root, once, with what the checks for other processors and systems need and Debian 12 lacks: Rust with the standard
# libraries of aarch64, armhf and wasm32 and the sources of it for Android and iOS, cross linkers, qemu, Swift. Then runs the command given
# in it, on this checkout at /checkout, e.g.
#   scripts/chroot.sh rustc --version
# Needs root, debootstrap and 9 GB in $AMPOULE_CHROOT. With AMPOULE_SID=swift a root of Debian 13 with Swift alone will do, which is made
# sooner and takes a third of that. In place of a command, --why-not prints why none can be made or entered here, or nothing, and --mirror
# where packages are fetched from.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(uname)" = Linux ] || { echo "a root of Debian is entered on Linux alone" >&2; exit 1; }
root=${AMPOULE_CHROOT:-$HOME/.cache/ampoule/sid} suite=sid
packages='rustc cargo gcc libc6-dev lld nodejs libstd-rust-dev-wasm32
    gcc-aarch64-linux-gnu libc6-dev:arm64 libgcc-s1:arm64 libstd-rust-dev:arm64 qemu-user
    gcc-arm-linux-gnueabihf libc6-dev:armhf libgcc-s1:armhf libstd-rust-dev:armhf rust-src llvm swiftlang binaryen'
if [ "${AMPOULE_SID:-}" = swift ] && [ ! -e "$root/ready" ]; then
    root=$root-swift suite=trixie packages='libc6-dev swiftlang'
fi
if [ "${1:-}" = --mirror ]; then
    # From where this machine has its Debian from, if it is one.
    mirror=
    ! grep -q '^ID=debian$' /etc/os-release || mirror=$(sed -nE 's/^URIs: *(https?:[^ ]*).*/\1/p; s/^deb +(\[[^]]*\] *)?(https?:[^ ]*).*/\2/p' \
        /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1 || true)
    echo "${mirror:-http://deb.debian.org/debian}"
    exit
fi
if [ "${1:-}" = --why-not ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "a root folder is mounted and entered by root alone"
    elif ! unshare --mount true 2>/dev/null; then
        echo "nothing can be mounted in this container"
    elif ! command -v debootstrap >/dev/null && ! { apt-get -q update && apt-get -qy install debootstrap; } >&2; then
        echo "debootstrap cannot be installed"
    fi
    exit
fi
[ "$(id -u)" = 0 ] || { echo "a root folder is mounted and entered by root alone; try: sudo $0" >&2; exit 1; }
if [ ! -e "$root/ready" ]; then
    command -v debootstrap >/dev/null || { echo "debootstrap is not installed; try: apt-get install debootstrap" >&2; exit 1; }
    # Beside, one at a time, and anew after a run that was ended, which may have left its /proc there.
    making=$root.making
    mkdir -p "$(dirname "$root")"
    exec 9>"$root.lock"
    flock 9
    [ ! -e "$root/ready" ] || exec scripts/chroot.sh "$@" 9>&-
    umount --lazy "$making/proc" "$making/sys" 2>/dev/null || true
    rm -rf --one-file-system "$making"
    mkdir -p "$making"
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$making" "$(scripts/chroot.sh --mirror)" >&2
    echo 'Acquire::Check-Valid-Until "false";' >"$making/etc/apt/apt.conf.d/90ampoule"
    [ ! -e /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$making/etc/ssl/certs/ca-certificates.crt"
    cp /etc/resolv.conf /etc/hosts "$making/etc/"
    chroot "$making" bash -c 'set -e
        export DEBIAN_FRONTEND=noninteractive
        case " $* " in *:arm64*) dpkg --add-architecture arm64; dpkg --add-architecture armhf ;; esac
        apt-get -q update
        apt-get -qy --no-install-recommends install "$@"' chroot $packages >&2
    touch "$making/ready"
    mv -T "$making" "$root"
    exec 9>&-
fi
# A mount space of its own: nothing is left behind, whatever ends this.
exec unshare --mount bash -c '
    root=$1 checkout=$2 registry=$3; shift 3
    mkdir -p "$root/checkout" "$root/cargo"
    mount --bind "$checkout" "$root/checkout"
    mount --bind "$registry" "$root/cargo"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    exec chroot "$root" env --chdir=/checkout CARGO_HOME=/cargo HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin RUSTC=rustc "$@"
' chroot "$root" "$PWD" "${CARGO_HOME:-$HOME/.cargo}" "$@"
