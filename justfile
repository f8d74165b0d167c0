# What a change has to pass.
check:
    .ci/run

# The long checks too: other back ends, every random string, killed runs, a full disk. Prints what it skips, and why.
full: check
    scripts/full.sh

# Everything in one style.
format:
    cargo fmt --all
