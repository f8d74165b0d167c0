"""How soon a cancelled call of 3 MB ends, beside how late an idle thread wakes, and whether a hundred thousand calls of eight threads leave
anything behind: `python soak.py`. Linux only."""

import pathlib
import statistics
import sys
import threading
import time

import ampoule

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUNDLE = ROOT / "models/clinical-en.int8.safetensors"
SENTENCE = "Started on lisinopril for hypertension; developed angioedema.\n"
CANCELS, WARM, CALLS, THREADS = 1_000, 10_000, 90_000, 8
failed = []


def check(what, holds):
    print(f"{'ok' if holds else 'FAILED'}: {what}")
    if not holds:
        failed.append(what)


def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


def delays(begin):
    """Milliseconds from a thread's signal to the end of what it ends, over and over."""
    took = []
    for i in range(CANCELS):
        wait, end = begin()
        sent = []

        def signal():
            time.sleep(0.002 + i % 10 / 1000)
            sent.append(time.perf_counter())
            end()

        thread = threading.Thread(target=signal)
        thread.start()
        wait()
        ended = time.perf_counter()
        thread.join()
        took.append((ended - sent[0]) * 1000)
    return statistics.median(took), max(took)


with ampoule.Extractor.open(BUNDLE, threads=1) as model:
    text = SENTENCE * (3_000_000 // len(SENTENCE))

    def idle():
        event = threading.Event()
        return event.wait, event.set

    def call():
        token = ampoule.CancelToken()

        def wait():
            try:
                # As any thread but the main one calls.
                ampoule._run(model._model.extract_packed_within, text, 0, token, None)
                failed.append("a call that was not cancelled")
            except ampoule.Cancelled:
                pass
            except Exception as error:
                failed.append(type(error).__name__)

        return wait, token.cancel

    idle_median, idle_worst = delays(idle)
    median, worst = delays(call)
    print(f"{CANCELS} cancelled calls: {median:.1f} ms, at worst {worst:.1f}; idle {idle_median:.1f} ms, {idle_worst:.1f}")
    check("the median within 50 ms, the worst within 150", median <= 50 and worst <= 150)

    texts = (SENTENCE, "No known allergies.", "")
    expected = [model.extract(text) for text in texts]
    live = ampoule.live_objects()

    def calls(count):
        def some(i):
            for call in range(count // THREADS):
                if call % 100 == i:
                    next(model.stream(SENTENCE))
                if model.extract(texts[call % 3]) != expected[call % 3]:
                    failed.append("another answer")

        threads = [threading.Thread(target=some, args=(i,)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    calls(WARM)
    before = resident()
    calls(CALLS)
    grown = resident() - before
    print(f"{CALLS} calls of {THREADS} threads: {before} bytes before, {grown} more after")
    check("at most 8 MB more", grown <= 8_000_000)
    end = time.monotonic() + 5
    while ampoule.live_objects() != live and time.monotonic() < end:
        time.sleep(0.01)
    check("as many live objects as before", ampoule.live_objects() == live)
sys.exit(bool(failed))
