"""What a call of 128 tokens costs in Python beside Rust, blocks of both in turn: `python overhead.py CLOCK`, which is
`bindings/examples/clock.rs`, built. Prints microseconds, medians over blocks of medians, and the least block of each side: what else
runs on the machine takes more from the side that needs more of its cache, which the least do not show. Over `LIMIT` of the time of
Rust in the least, or twice that in the median, fails."""

import os
import pathlib
import statistics
import subprocess
import sys
import time

import ampoule

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUNDLE = ROOT / "models/clinical-en.int8.safetensors"
TOKENS, CALLS, BLOCKS = 128, 10, 301
LIMIT = 0.05


def text_of(model, most):
    """Of a corpus, as many words as make so many tokens, the two special ones counted; one more would be a second window."""
    words = (ROOT / "examples/produce/data/bc5cdr/test.tsv").read_text().split("\n")
    words = [line.split("\t")[0] for line in words if line]
    text, tokens = "", 0
    for n in range(1, len(words)):
        before = model.report().computed_tokens
        model.extract(" ".join(words[:n]))
        count = model.report().computed_tokens - before
        if count > most:
            break
        text, tokens = " ".join(words[:n]), count
    return text, tokens


def median_us(call):
    took = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e6


start = time.perf_counter()
with ampoule.Extractor.open(BUNDLE, threads=1) as model:
    model.extract("Started on lisinopril.")
    print(f"open to first entity: {(time.perf_counter() - start) * 1000:.1f} ms")
    text, tokens = text_of(model, TOKENS)
    # Both on the same core, which the one that waits leaves to the other.
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    rust = subprocess.Popen([sys.argv[1], BUNDLE, text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rust_us():
        rust.stdin.write(f"{CALLS}\n")
        rust.stdin.flush()
        return float(rust.stdout.readline())

    pairs = [(rust_us(), median_us(lambda: model.extract(text))) for _ in range(BLOCKS)]
    rust.stdin.close()
    here, there = (statistics.median(side) for side in zip(*pairs))
    more = statistics.median(b / a for a, b in pairs) - 1
    least = min(b for _, b in pairs) / min(a for a, _ in pairs) - 1
    print(
        f"{tokens} tokens, {len(model.extract(text))} entities: Rust {here:.0f} us, Python {there:.0f} us, {100 * more:+.1f} %"
        f" (least {100 * least:+.1f} %)"
    )
    if least > LIMIT or more > 2 * LIMIT:
        sys.exit(f"a call costs more than {100 * LIMIT:.0f} % over Rust's")
