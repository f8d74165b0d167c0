"""The package as installed: the scenario, threads, signals, misuse, and what is never said of a text.

    python bindings/python/tests/test_ampoule.py

reads `bindings/scenario.json` and, where the Rust tests left it, `target/tmp/sentences.json`. AMPOULE_PATIENCE is how many times longer
than a processor's own an emulated one's calls may take to end.
"""

import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest
import zipfile
from array import array

import ampoule
from ampoule._native import ampoule_native as native

ROOT = pathlib.Path(__file__).resolve().parents[3]
SCENARIO = json.loads((ROOT / "bindings/scenario.json").read_text())
BUNDLE = ROOT / SCENARIO["bundles"]["entities"]
LABELS = ROOT / SCENARIO["bundles"]["labels"]
SENTENCE = "Started on lisinopril for hypertension; developed angioedema."
CANARY = "zyxquell"
PATIENCE = float(os.environ.get("AMPOULE_PATIENCE", 1))
# The file's scores are those of x86-64. Kernels of other processors add floats in another order, their logits are within a thousandth of
# the plain kernel's, and an entity's score adds those of all its words: at most 0.0013 apart in the file, by NEON.
TOLERANCE = SCENARIO["tolerance"] * (1 if platform.machine() == "x86_64" else 2)


def long_text():
    sentence = SCENARIO["long"]["sentence"]
    return sentence * (SCENARIO["long"]["bytes"] // len(sentence))


def as_json(entity):
    return {
        "label": entity.label,
        "score": entity.score,
        "utf8": [entity.utf8.start, entity.utf8.stop],
        "utf16": [entity.utf16.start, entity.utf16.stop],
        "scalars": [entity.start, entity.end],
    }


def child(code, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


class Case(unittest.TestCase):
    def same_entities(self, found, expected, tolerance):
        found = [as_json(entity) for entity in found]
        for one, other in zip(found, expected):
            self.assertLessEqual(abs(one["score"] - other["score"]), tolerance)
        without = [[{**entity, "score": 0} for entity in entities] for entities in (found, expected)]
        self.assertEqual(*without)


class Scenario(Case):
    def test_texts_have_what_the_file_says(self):
        with ampoule.Extractor.open(BUNDLE) as extractor, ampoule.Embedder.open(BUNDLE) as embedder, \
                ampoule.Classifier.open(LABELS) as classifier:
            self.assertEqual(extractor.labels, SCENARIO["labels"]["entities"])
            self.assertEqual(classifier.labels, SCENARIO["labels"]["labels"])
            self.assertEqual(embedder.width, SCENARIO["width"])
            compared = 0
            for case in SCENARIO["cases"]:
                text = case["text"]
                found = extractor.extract(text)
                self.same_entities(found, case["entities"], TOLERANCE)
                for entity in found:
                    # Each unit cuts out the same piece.
                    piece = text[entity.start : entity.end]
                    self.assertEqual(text.encode()[entity.utf8.start : entity.utf8.stop].decode(), piece)
                    units = text.encode("utf-16-le")[2 * entity.utf16.start : 2 * entity.utf16.stop]
                    self.assertEqual(units.decode("utf-16-le"), piece)
                    compared += 1
                if "labels" in case:
                    scores = classifier.classify(text)
                    self.assertEqual([s.label for s in scores], [s["label"] for s in case["labels"]])
                    for score, expected in zip(scores, case["labels"]):
                        self.assertAlmostEqual(score.score, expected["score"], delta=TOLERANCE)
                    vector = array("f", embedder.embed(text))
                    self.assertEqual(len(vector), embedder.width)
                    for value, expected in zip(vector, case["vector"]):
                        self.assertAlmostEqual(value, expected, delta=TOLERANCE)
            self.assertGreater(compared, 80)

    def test_surrogates_count_as_one_character(self):
        with ampoule.Extractor.open(BUNDLE) as extractor:
            for case in SCENARIO["surrogates"]:
                units = array("H", case["units"]).tobytes()
                text = units.decode("utf-16-le", "surrogatepass")
                self.assertRegex(text, "[\ud800-\udfff]")
                self.same_entities(extractor.extract(text), case["entities"], TOLERANCE)
                self.assertEqual(list(extractor.stream(text)), extractor.extract(text))
                self.assertEqual(list(extractor.extract_batch([text])), [extractor.extract(text)])

    def test_errors_are_those_of_the_file(self):
        kinds = {"extractor": ampoule.Extractor, "classifier": ampoule.Classifier, "embedder": ampoule.Embedder}
        with tempfile.TemporaryDirectory() as folder:
            for case in SCENARIO["errors"]:
                path = ROOT / case["path"]
                if "bytes" in case or "replace" in case:
                    changed = path.read_bytes()[: case.get("bytes")]
                    old, new = (part.encode() for part in case.get("replace", ["", ""]))
                    path = pathlib.Path(folder) / "changed.safetensors"
                    path.write_bytes(changed.replace(old, new, 1))
                options = {key: case[key] for key in ("kernel", "min_score_by_label", "device") if key in case}
                with self.subTest(case["name"]), self.assertRaises(getattr(ampoule, case["error"])) as raised:
                    kinds[case["model"]].open(path, **options)
                self.assertGreater(len(str(raised.exception)), 10)

    def test_a_thousand_sentences_are_rusts_to_the_last_bit(self):
        path = ROOT / "target/tmp/sentences.json"
        if not path.exists():
            self.skipTest(f"{path} is not there; cargo test --release --workspace --test scenario leaves it")
        sentences = json.loads(path.read_text())
        if sentences["kernel"] not in ampoule.self_check():
            self.skipTest(f"Rust computed them by the kernel {sentences['kernel']}, which this processor has not")
        with ampoule.Extractor.open(ROOT / sentences["bundle"]) as extractor:
            self.assertEqual(extractor.report().kernel, sentences["kernel"])
            self.assertEqual(len(sentences["cases"]), 1000)
            for case in sentences["cases"]:
                self.same_entities(extractor.extract(case["text"]), case["entities"], 0)


class Calls(Case):
    @classmethod
    def setUpClass(cls):
        cls.extractor = ampoule.Extractor.open(BUNDLE, threads=1)
        cls.expected = cls.extractor.extract(SENTENCE)

    @classmethod
    def tearDownClass(cls):
        cls.extractor.close()

    def test_slices_of_the_text_are_the_entities(self):
        found = [(e.label, SENTENCE[e.start : e.end]) for e in self.expected]
        self.assertEqual(
            found, [("Chemical", "lisinopril"), ("Disease", "hypertension"), ("Disease", "angioedema")]
        )

    def test_batches_and_streams_give_what_single_calls_give(self):
        texts = ["", SENTENCE, "é lisinopril"] * 70
        found = list(self.extractor.extract_batch(iter(texts)))
        self.assertEqual(len(found), len(texts))
        for text, entities in zip(texts, found):
            self.assertEqual([e[:3] for e in entities], [e[:3] for e in self.extractor.extract(text)])
        text = (SENTENCE + " 😀\r\n") * 400
        self.assertEqual(list(self.extractor.stream(text)), self.extractor.extract(text))
        self.assertEqual(list(self.extractor.extract_batch([])), [])
        with ampoule.Embedder.open(BUNDLE) as embedder:
            vectors = list(embedder.embed_batch(texts))
            self.assertEqual(len(vectors), len(texts))
            self.assertEqual({len(v) for v in vectors}, {4 * embedder.width})
        with ampoule.Classifier.open(LABELS) as classifier:
            scores = list(classifier.classify_batch(texts))
            self.assertEqual(len(scores), len(texts))

    def test_an_endless_iterator_is_read_as_far_as_it_is_asked_for(self):
        given = []

        def texts():
            while True:
                given.append(None)
                yield SENTENCE

        found = self.extractor.extract_batch(texts())
        self.assertEqual(len(next(found)), 3)
        self.assertLessEqual(len(given), 64)

    def test_a_token_ends_a_call_and_rust_stops(self):
        text, token = long_text(), ampoule.CancelToken()
        before = self.extractor.report().computed_tokens
        errors = []

        def call():
            try:
                self.extractor.extract(text, cancel=token)
            except ampoule.AmpouleError as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        while self.extractor.report().computed_tokens < before + 2_000:
            time.sleep(0.001)
        self.assertEqual(self.extractor.report().running_calls, 1)
        token.cancel()
        thread.join()
        self.assertIsInstance(errors[0], ampoule.Cancelled)
        ended = self.extractor.report()
        self.assertEqual(ended.running_calls, 0)
        time.sleep(0.05)
        self.assertEqual(self.extractor.report().computed_tokens, ended.computed_tokens)
        # Before the start, and after the end.
        self.assertTrue(token.cancelled)
        for call in (self.extractor.extract, lambda t, cancel: list(self.extractor.stream(t, cancel=cancel)),
                     lambda t, cancel: list(self.extractor.extract_batch([t], cancel=cancel))):
            with self.assertRaises(ampoule.Cancelled):
                call(SENTENCE, cancel=token)
        late = ampoule.CancelToken()
        self.assertEqual(self.extractor.extract(SENTENCE, cancel=late), self.expected)
        late.cancel()
        self.assertEqual(self.extractor.extract(SENTENCE), self.expected)

    def test_time_runs_out(self):
        for timeout in (0, 0.03):
            with self.assertRaises(ampoule.Cancelled):
                self.extractor.extract(long_text(), timeout=timeout)
        for timeout in (1e300, float("inf")):
            self.assertEqual(self.extractor.extract(SENTENCE, timeout=timeout), self.expected)
        self.assertRaises(ampoule.Cancelled, self.extractor.extract, SENTENCE, timeout=float("-inf"))
        self.assertRaises(ampoule.FixInput, self.extractor.extract, SENTENCE, timeout=float("nan"))

    def test_a_text_is_no_batch(self):
        self.assertRaises(TypeError, self.extractor.extract_batch, SENTENCE)

    def test_a_stream_gives_entities_at_once_and_stops_when_it_is_closed(self):
        text = long_text()
        stream = self.extractor.stream(text)
        entity = next(stream)
        self.assertEqual(text[entity.start : entity.end], "lisinopril")
        self.assertEqual(self.extractor.report().running_calls, 1)
        stream.close()
        end = time.monotonic() + 2 * PATIENCE
        while self.extractor.report().running_calls:
            self.assertLess(time.monotonic(), end)
            time.sleep(0.001)

    def test_eight_threads_and_two_models(self):
        with ampoule.Extractor.open(BUNDLE, threads=1) as other:
            wrong = []

            def calls(i):
                for call in range(25):
                    model = (self.extractor, other)[(i + call) % 2]
                    if model.extract(SENTENCE) != self.expected:
                        wrong.append(i)

            threads = [threading.Thread(target=calls, args=(i,)) for i in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(wrong, [])

    def test_reports_and_trim(self):
        self.extractor.extract(SENTENCE)
        report = self.extractor.report()
        self.assertEqual((report.precision, report.threads), ("int8", 1))
        self.assertIn(report.kernel, ampoule.self_check())
        self.assertGreater(report.workspace_bytes, 0)
        check = self.extractor.self_check()
        self.assertGreater(check.cases, 0)
        self.assertTrue(0 <= check.largest_difference <= check.allowed, check)
        self.extractor.trim()
        self.assertEqual(self.extractor.report().workspace_bytes, 0)
        self.assertEqual(self.extractor.extract(SENTENCE), self.expected)
        self.assertRegex(ampoule.version(), r"^\d+\.\d+\.\d+$")


class Misuse(Case):
    def test_a_closed_model_is_an_error_whenever(self):
        before = ampoule.live_objects()
        model = ampoule.Extractor.open(BUNDLE, threads=1)
        text, token, errors = long_text(), ampoule.CancelToken(), []

        def call():
            try:
                model.extract(text, cancel=token)
            except ampoule.AmpouleError as error:
                errors.append(type(error))

        thread = threading.Thread(target=call)
        thread.start()
        while not model.report().running_calls:
            time.sleep(0.001)
        model.close()
        model.close()
        for use in (lambda: model.extract(SENTENCE), lambda: model.extract_batch([SENTENCE]).__next__(), model.report,
                    lambda: model.stream(SENTENCE), lambda: model.labels, model.trim):
            self.assertRaises(ampoule.Closed, use)
        self.assertEqual(ampoule.live_objects(), before + 1)
        token.cancel()
        thread.join()
        self.assertEqual((errors, ampoule.live_objects()), ([ampoule.Cancelled], before))

    def test_a_forgotten_model_is_freed(self):
        before = ampoule.live_objects()
        stream = ampoule.Extractor.open(BUNDLE, threads=1).stream(SENTENCE)
        self.assertEqual(len(list(stream)), 3)
        del stream
        self.assertEqual(ampoule.live_objects(), before)

    def test_options_that_are_none(self):
        for options, error in [
            ({"treads": 1}, TypeError), ({"device": "tpu"}, ampoule.FixInput), ({"load": "fast"}, ampoule.FixInput),
            ({"threads": -1}, ValueError), ({"threads": 100_000}, ampoule.FixInput),
            ({"temperature": 0.0}, ampoule.FixInput), ({"threads": "many"}, TypeError),
        ]:
            with self.subTest(options), self.assertRaises(error):
                ampoule.Extractor.open(BUNDLE, **options)
        with ampoule.Extractor.open(BUNDLE, min_score_by_label={"Disease": 1.0}, threads=1, device="cpu") as model:
            self.assertEqual([e.label for e in model.extract(SENTENCE)], ["Chemical"])
            for text in (None, b"bytes", 7):
                with self.assertRaises(TypeError):
                    model.extract(text)
        with self.assertRaises(TypeError):
            ampoule.Extractor()

    def test_bundles_in_zips_in_memory_and_replaced_while_open(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            offsets = set()
            for extra in range(4):
                path = folder / f"{extra}.zip"
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("x" * (extra + 1), "")
                    archive.write(BUNDLE, "model.safetensors")
                    entry = archive.getinfo("model.safetensors")
                # Its name stands between the entry's header and its data.
                offset = entry.header_offset + 30 + len(entry.filename)
                offsets.add(offset % 4)
                for load in ("map", "copy"):
                    with ampoule.Extractor.open_at(path, offset, entry.file_size, load=load, verify=True) as model:
                        self.assertEqual(len(model.extract(SENTENCE)), 3)
            self.assertEqual(offsets, {0, 1, 2, 3})
            with self.assertRaises(ampoule.FixInput):
                ampoule.Extractor.open_at(path, offset, entry.file_size + 10**6)
            with ampoule.Extractor.from_bytes(BUNDLE.read_bytes()) as model:
                self.assertEqual(len(model.extract(SENTENCE)), 3)
            path = folder / "model.safetensors"
            shutil.copy(BUNDLE, path)
            with ampoule.Extractor.open(path, load="map") as model:
                (folder / "new").write_text("no bundle")
                os.replace(folder / "new", path)
                self.assertEqual(len(model.extract(SENTENCE)), 3)
                self.assertRaises(ampoule.FetchBundle, ampoule.Extractor.open, path)

    def test_after_a_fork_a_model_says_so_and_does_not_hang(self):
        for threads in (1, 3):
            with self.subTest(threads=threads), ampoule.Extractor.open(BUNDLE, threads=threads) as model:
                model.extract(SENTENCE)
                if not (pid := os.fork()):
                    try:
                        model.extract(SENTENCE)
                    except ampoule.Closed:
                        model.close()
                        os._exit(7)
                    os._exit(1)
                self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 7)
                self.assertEqual(len(model.extract(SENTENCE)), 3)

    def test_a_signal_at_any_moment_of_a_long_call_stops_the_work(self):
        process = child(f"""
import ampoule, signal, time
model = ampoule.Extractor.open({str(BUNDLE)!r}, threads=1)
text = "No known allergies. " * 150_000
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
calls = [lambda: model.extract(text), lambda: list(model.stream(text)), lambda: list(model.extract_batch([text]))]
for moment in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003 * (moment + 1))
        calls[moment % 3]()
    except KeyboardInterrupt:
        pass
    time.sleep(0.02)
    end = time.monotonic() + {2 * PATIENCE}
    while model.report().running_calls:
        assert time.monotonic() < end, moment
        time.sleep(0.001)
print("stopped", flush=True)
""")
        out, err = process.communicate(timeout=120 * PATIENCE)
        self.assertEqual((process.returncode, out, err), (0, "stopped\n", ""))

    def test_a_signal_while_a_text_is_copied_frees_nothing_twice(self):
        builder = native._UniffiRustBufferBuilder()
        builder.write(SENTENCE.encode())
        # As when a signal's handler raises before the result is assigned.
        grown = native._UniffiRustBuffer.reserve(builder.rbuf, 1 << 20)
        self.assertEqual((builder.rbuf.capacity, builder.rbuf.len, bool(builder.rbuf.data)), (0, 0, False))
        builder.discard()
        self.assertEqual(grown.data[: grown.len], SENTENCE.encode())
        grown.free()

    def test_ctrl_c_ends_a_long_call_at_once(self):
        for call in ("model.extract(text)", "list(model.stream(text))", "list(model.extract_batch([text]))"):
            # Who runs this in the background may have told its children to ignore it.
            process = child(f"""
import ampoule, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
model = ampoule.Extractor.open({str(BUNDLE)!r}, threads=1)
text = "No known allergies. " * 150_000
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print(time.time(), model.report().running_calls, flush=True)
    print(len(model.extract({SENTENCE!r})))
""")
            self.assertEqual(process.stdout.readline(), "ready\n")
            time.sleep(0.3)
            sent = time.time()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60 * PATIENCE)
            self.assertEqual((process.returncode, err), (0, ""))
            ended, running, found = out.split()
            self.assertEqual(found, "3")
            if "stream" not in call:
                self.assertEqual(running, "0")
            # Others may have the processor; on a quiet machine it is a few milliseconds.
            self.assertLess(float(ended) - sent, 2.0 * PATIENCE)
            print(f"{call}: ended {1000 * (float(ended) - sent):.0f} ms after Ctrl-C")

    def test_files_of_another_version_are_told(self):
        package = pathlib.Path(ampoule.__file__).parent
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(package, pathlib.Path(folder) / "ampoule")
            native = pathlib.Path(folder) / "ampoule/_native/ampoule_native.py"
            source = native.read_text()
            changed = re.sub(r"(checksum_method_extractor_extract\(\) != )\d+", r"\g<1>70000", source)
            self.assertNotEqual(changed, source)
            native.write_text(changed)
            process = child("import ampoule", cwd=folder)
            _, err = process.communicate()
            self.assertIn("ImportError", err)
            self.assertIn("install the package again", err)


class Guide(Case):
    def test_the_readmes_lines_run(self):
        readme = (ROOT / "bindings/python/README.md").read_text()
        (code,) = re.findall("```python\n(.*?)```", readme, re.DOTALL)
        out, err = child(code, cwd=ROOT / "models").communicate()
        self.assertEqual(err, "")
        self.assertRegex(out, r"^Chemical lisinopril [01]\.\d+\nDisease hypertension [01]\.\d+\nDisease angioedema [01]\.\d+\n$")


class Silence(Case):
    def test_no_error_holds_the_text(self):
        text = (CANARY + " " + SENTENCE + "\n") * 20_000
        said, errors = [], []

        def fails(call):
            try:
                call()
            except Exception as error:
                errors.append(error)
                said.extend([str(error), repr(error), repr(error.args), repr(vars(error))])
                said.append("".join(traceback.format_exception(type(error), error, error.__traceback__)))
                self.assertIsNone(error.__cause__)
                self.assertIsNone(error.__context__)

        def in_thread(call):
            thread = threading.Thread(target=fails, args=(call,))
            thread.start()
            thread.join()

        token = ampoule.CancelToken()
        token.cancel()
        with ampoule.Extractor.open(BUNDLE, threads=1) as model, ampoule.Embedder.open(BUNDLE, threads=1) as embedder, \
                ampoule.Classifier.open(LABELS, threads=1) as classifier:
            for run in (fails, in_thread):
                run(lambda: model.extract(text, timeout=0.01))
                run(lambda: list(model.stream(text, timeout=0.01)))
                run(lambda: list(model.extract_batch([text], cancel=token)))
                run(lambda: model.extract(CANARY + "\ud800", cancel=token))
                run(lambda: embedder.embed(text, timeout=0.01))
                run(lambda: classifier.classify(text, cancel=token))
                run(lambda: model.extract(CANARY.encode()))
        fails(lambda: model.extract(text))
        self.assertEqual(len(errors), 15)
        self.assertNotIn(CANARY, "".join(said))

    def test_nothing_is_printed(self):
        process = child(f"""
import ampoule
model = ampoule.Extractor.open({str(BUNDLE)!r}, threads=1)
for text in ("{CANARY}", "{CANARY} \\ud800", "", "{CANARY} " * 10_000):
    model.extract(text)
    try:
        model.extract(text, timeout=0)
    except ampoule.Cancelled:
        pass
model.close()
""")
        out, err = process.communicate()
        self.assertEqual((process.returncode, out, err), (0, "", ""))


class Counted(unittest.TestCase):
    def test_a_result_tells_what_computed_it(self):
        for kind, call in [(ampoule.Extractor, "extract"), (ampoule.Embedder, "embed"), (ampoule.Classifier, "classify")]:
            bundle = LABELS if kind is ampoule.Classifier else BUNDLE
            with self.subTest(kind), kind.open(bundle) as model:
                getattr(model, call)(SENTENCE)
                once = model.computed
                self.assertGreater(once.cpu_tokens, 10)
                self.assertEqual(once.gpu_tokens, 0)
                counted = model.counted()
                self.assertIs(type(counted), kind)
                self.assertEqual(counted.computed, (0, 0))
                result = getattr(counted, call)(SENTENCE)
                self.assertEqual(result, getattr(counted, call)(SENTENCE))
                self.assertEqual(counted.computed, (2 * once.cpu_tokens, 0))
                self.assertEqual(model.computed, once)
                other = model.counted()
                with counted:
                    pass
                with self.assertRaises(ampoule.Closed):
                    getattr(counted, call)(SENTENCE)
                self.assertEqual(getattr(model, call)(SENTENCE), result)
                model.close()
                with self.assertRaises(ampoule.Closed):
                    getattr(other, call)(SENTENCE)
        with ampoule.Extractor.open(BUNDLE) as extractor:
            stream, batch = extractor.counted(), extractor.counted()
            self.assertEqual(list(stream.stream(SENTENCE)), *batch.extract_batch([SENTENCE]))
            self.assertEqual(stream.computed, batch.computed)
            self.assertGreater(batch.computed.cpu_tokens, 10)


class Gpu(unittest.TestCase):
    """In the package `ampoule-gpu`, on whatever GPU there is; in the other one, that there is none."""

    IS_THERE = bool(os.environ.get("AMPOULE_GPU"))

    def test_a_gpu_warms_up_and_computes_the_same(self):
        if not self.IS_THERE:
            with self.assertRaisesRegex(ampoule.UseCpu, "without GPU support"):
                ampoule.Extractor.open(BUNDLE, device="gpu")
        with ampoule.Extractor.open(BUNDLE, device="gpu_or_cpu", adapter="", gpu_from_tokens=1) as extractor:
            if not self.IS_THERE:
                self.assertIsNone(extractor.warm_up())
                self.assertIsNone(extractor.report().gpu)
                return
            # Before the GPU is ready, too.
            expected = [(e.label, e.start, e.end) for e in extractor.extract(SENTENCE)]
            self.assertEqual(len(expected), 3)
            tokens = sum(extractor.computed)
            heard = []
            report = extractor.warm_up(heard.append)
            self.assertEqual((report.state, report.reason), ("ready", None))
            self.assertTrue(report.adapter)
            self.assertEqual((report.precision, report.warm_up_done, report.from_tokens), ("f32", report.warm_up_of, 1))
            self.assertGreater(report.check.cases, 0)
            self.assertLessEqual(report.check.largest_difference, report.check.allowed)
            done = [of.warm_up_done for of in heard]
            self.assertEqual(done, sorted(done))
            self.assertGreater(len(done), 1)
            self.assertEqual(heard[-1], report)
            self.assertTrue(all(of.state == "warming" and of.warm_up_of == report.warm_up_of for of in heard[:-1]))
            call = extractor.counted()
            self.assertEqual([(e.label, e.start, e.end) for e in call.extract(SENTENCE)], expected)
            self.assertEqual(call.computed, (0, tokens))
            gpu = extractor.report().gpu
            self.assertEqual(gpu.state, "ready")
            self.assertGreaterEqual(gpu.unverified_batches, 1)
            self.assertGreater(gpu.computed_tokens, 10)

    def test_who_waits_for_a_gpu_can_stop(self):
        if not self.IS_THERE:
            self.skipTest("this package has no GPU")
        token = ampoule.CancelToken()
        token.cancel()
        with ampoule.Extractor.open(BUNDLE, device="gpu_or_cpu", adapter="") as extractor:
            with self.assertRaises(ampoule.Cancelled):
                extractor.warm_up(cancel=token)
            self.assertEqual((extractor.report().gpu.state, extractor.report().running_calls), ("warming", 0))
            # A signal's handler that raises while it waits, as Ctrl-C.
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with self.assertRaises(KeyboardInterrupt):
                extractor.warm_up()
            self.assertEqual(extractor.report().gpu.state, "warming")
            self.assertEqual(len(extractor.extract(SENTENCE)), 3)

    def test_an_adapter_that_is_not_there_is_named_in_the_error(self):
        with self.assertRaisesRegex(ampoule.UseCpu, "no such adapter" if self.IS_THERE else "without GPU support"):
            ampoule.Extractor.open(BUNDLE, device="gpu", adapter="no such adapter")


if __name__ == "__main__":
    result = unittest.TextTestRunner(verbosity=1).run(unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"]))
    failed = len({getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors})
    skipped = len(result.skipped)
    print(f"{result.testsRun - failed - skipped} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(failed > 0)
