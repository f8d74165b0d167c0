#!/usr/bin/env bash
# Makes the root of Debian 12 for ARM, once, against whose glibc 2.36 libraries for ARM are linked, and in whose Python they are tested.
# Prints where it is: in the root of scripts/chroot.sh, so that it can be seen from there. 300 MB.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/chroot.sh true
root=${AMPOULE_CHROOT:-$HOME/.cache/ampoule/sid}/debian-12-arm64
if [ ! -e "$root" ]; then
    rm -rf "$root.new"
    # Nothing of it runs before qemu does, so packages are unpacked and not configured.
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,python3-pip,libc6-dev,libgcc-12-dev \
        bookworm "$root.new" "$(scripts/chroot.sh --mirror)" >&2
    for package in "$root.new"/var/cache/apt/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar --extract --directory "$root.new" --keep-directory-symlink
    done
    rm -rf "$root.new"/var/cache/apt/archives/*.deb "$root.new/debootstrap"
    mv "$root.new" "$root"
fi
echo "$root"
