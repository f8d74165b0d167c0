#!/usr/bin/env bash
# Strips a library in place, and leaves what is needed to read a crash of it in a file beside it that is not shipped:
#   scripts/symbols.sh LIBRARY DEBUG_FILE
#   addr2line -Cfipe DEBUG_FILE ADDRESS     an address of a crash, from the library's start, as a tombstone of Android has it
# OBJCOPY is that of the library's processor. Both files have one build id (readelf -n), which a crash report names.
set -euo pipefail
library=$1 debug=$2 objcopy=${OBJCOPY:-objcopy}
readelf --notes "$library" | grep -q 'Build ID' || { echo "$library has no build id" >&2; exit 1; }
readelf --sections --wide "$library" | grep -q '\.debug_line' || { echo "$library has no table of lines" >&2; exit 1; }
"$objcopy" --only-keep-debug --compress-debug-sections "$library" "$debug"
"$objcopy" --strip-all --add-gnu-debuglink="$debug" "$library"
chmod 644 "$debug"
