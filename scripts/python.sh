#!/usr/bin/env bash
# Builds the Python wheel by scripts/wheel.sh, installs it alone into a clean environment, and runs its tests there:
#   scripts/python.sh                                 by the release profile, quick; and its API documentation
#   scripts/python.sh dist                            as it ships; and a crash of it is read
#   scripts/python.sh dist aarch64-unknown-linux-gnu  as it ships for ARM, in the Python of Debian 12 for ARM under qemu
# With AMPOULE_GPU set it is the package `ampoule-gpu`, tested on whatever GPU there is, software too. Leaves the environment in
# target/python/clean, for ARM in target/python/clean-TARGET, of that package in clean-gpu. A public name or signature that changes fails:
# AMPOULE_WRITE=1 writes bindings/python/api.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-release} target=${2:-}
clean=$PWD/target/python/clean${target:+-$target}${AMPOULE_GPU:+-gpu}
[ -z "${AMPOULE_GPU:-}" ] || scripts/gpu.sh --driver
scripts/licences.py
wheel=$(scripts/wheel.sh "$@")
rm -rf "$clean"
if [ -z "$target" ]; then
    "${PYTHON:-python3}" -m venv "$clean"
    "$clean/bin/pip" install --quiet --no-index "$wheel"
else
    root=$(scripts/debian12_arm64.sh)
    mkdir -p "$clean/bin" "$clean/lib/python3.11/site-packages"
    # An environment of Python's whose interpreter is qemu with that of ARM: children that tests start run in it too.
    echo "home = /usr/bin" >"$clean/pyvenv.cfg"
    cat >"$clean/bin/python" <<EOF
#!/bin/sh
exec $root/../usr/bin/qemu-aarch64 -0 "\$0" -L $root $root/usr/bin/python3.11 "\$@"
EOF
    chmod +x "$clean/bin/python"
    export AMPOULE_PATIENCE=30
    # pip of ARM, which refuses a wheel that is not for it.
    PYTHONPATH=/usr/lib/python3/dist-packages "$clean/bin/python" -m pip install --quiet --no-index --no-compile \
        --target "$clean/lib/python3.11/site-packages" "$wheel"
fi
"$clean/bin/python" bindings/python/tests/api.py
if [ -z "$target" ]; then
    # It looks for what a NamedTuple's fields are made of in another module.
    PYTHONPATH=$(echo "$clean"/lib/python*/site-packages) target/python/tools/bin/python -W error \
        -W 'ignore:Error parsing type annotation ForwardRef' -m pdoc \
        --output-directory target/python/docs ampoule
    [ "$profile $(uname -m)" != "dist x86_64" ] || "$clean/bin/python" bindings/python/tests/crash.py "${wheel%/*}"/*.debug
fi
"$clean/bin/python" bindings/python/tests/test_ampoule.py
