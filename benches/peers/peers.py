"""Ampoule beside onnxruntime, CTranslate2, rten and candle: token ids in, last hidden states out, all in one run.

    peers.py prepare --work --minilm --ampoule      checkpoints of four shapes and each peer's form of them
    peers.py compare --work --minilm --peers --out  times them by turns, in an order drawn anew, writes OUT.csv and OUT.svg
    peers.py threads --work --minilm --peers --out  ours with one thread, with two, and twice at once by turns, to
                                                    OUT.threads.csv
    peers.py start --work --minilm --peers --out    each as a new process up to its first hidden states: processor time and memory,
                                                    to OUT.start.csv
    peers.py report --out                           the table of an OUT.csv

run.sh calls the first four. `peers.py worker ENGINE MODEL THREADS` is one engine in a process of its own."""

import argparse, concurrent.futures, csv, datetime, json, math, os, pathlib, platform, random, shutil, statistics, subprocess, sys, time

SHAPES = [(1, 16), (1, 32), (1, 128), (1, 256), (1, 512), (8, 128)]  # sequences, tokens of each
STUDENTS = {"3x384": (3, 384, 12, 1536), "4x312": (4, 312, 12, 1200), "4x192": (4, 192, 4, 768)}
CALIBRATION = pathlib.Path(__file__).parents[2] / "examples/produce/data/transfer.txt"
THREADS = {"OMP_NUM_THREADS", "RAYON_NUM_THREADS", "RTEN_NUM_THREADS"}


def checkpoints(work, minilm):
    """MiniLM-L6 and students of random weights with its vocabulary: nothing here is faster for what the weights say."""
    import torch, transformers

    yield "MiniLM-L6", pathlib.Path(minilm)
    for name, (layers, hidden, heads, inner) in STUDENTS.items():
        folder = work / name / "hf"
        if not (folder / "model.safetensors").exists():
            torch.manual_seed(0)
            config = transformers.AutoConfig.from_pretrained(minilm)
            config.num_hidden_layers, config.hidden_size = layers, hidden
            config.num_attention_heads, config.intermediate_size = heads, inner
            transformers.BertModel(config).save_pretrained(folder)
            for file in ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"]:
                if (pathlib.Path(minilm) / file).exists():
                    shutil.copy(pathlib.Path(minilm) / file, folder)
        yield name, folder


def prepare(work, minilm, ampoule):
    import ctranslate2, onnx, torch, transformers
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    for name, folder in checkpoints(work, minilm):
        out = work / name
        out.mkdir(parents=True, exist_ok=True)
        # Ours is made anew, with what this checkout makes of it.
        subprocess.run([ampoule, "quantize", "--model", folder, "--calibration", CALIBRATION, "--out", out / "ampoule.int8.safetensors"],
                       check=True, stdout=subprocess.DEVNULL)
        if (out / "done").exists():
            continue
        config = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False).eval()

        class Encoder(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, ids, mask, types):
                return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types, return_dict=False)[0]

        ids = torch.randint(1000, 2000, (2, 8))
        axes = {n: {0: "batch", 1: "tokens"} for n in ["input_ids", "attention_mask", "token_type_ids", "last_hidden_state"]}
        raw, fused = out / "raw.onnx", out / "fused.onnx"
        torch.onnx.export(
            Encoder(), (ids, torch.ones_like(ids), torch.zeros_like(ids)), str(raw), dynamo=False, opset_version=17,
            input_names=list(axes)[:3], output_names=["last_hidden_state"], dynamic_axes=axes)
        made = optimizer.optimize_model(
            str(raw), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=1)
        print(name, "fused:", {k: v for k, v in made.get_fused_operator_statistics().items() if v}, file=sys.stderr)
        made.save_model_to_file(str(fused))
        vnni = "avx512_vnni" in flags() or "avx_vnni" in flags() or "asimddp" in flags()
        for source in [raw, fused]:
            for channel in [False, True]:
                to = source.with_name(f"{source.stem}.int8{'.channels' if channel else ''}.onnx")
                # Without VNNI their guide reduces the range, else sums saturate.
                quantize_dynamic(
                    str(source), str(to), weight_type=QuantType.QInt8, per_channel=channel, reduce_range=not vnni,
                    extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(out / "ct2"), force=True)
        (out / "done").touch()


def flags():
    for line in open("/proc/cpuinfo"):
        if line.startswith(("flags", "Features")):
            return line.split(":")[1].split()
    return []


def onnxruntime_engine(model, threads):
    import numpy, onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Flush denormals, as their guide says.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(ids):
        ids = numpy.array(ids, dtype=numpy.int64)
        values = {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "token_type_ids": numpy.zeros_like(ids)}
        return session.run(["last_hidden_state"], {n: values[n] for n in names})[0]

    return run


def ctranslate2_engine(model, threads):
    import ctranslate2, numpy

    folder, kind = model.rsplit(":", 1)
    encoder = ctranslate2.Encoder(folder, device="cpu", compute_type=kind, inter_threads=1, intra_threads=threads)
    return lambda ids: numpy.array(encoder.forward_batch(ids).last_hidden_state)


def worker(engine, model, threads):
    run = {"onnxruntime": onnxruntime_engine, "ctranslate2": ctranslate2_engine}[engine](model, threads)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        cpu, wall = time.process_time(), time.perf_counter()
        output = run(asked["ids"])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        output = output.flatten().tolist() if asked["full"] else []
        print(json.dumps({"cpu_ms": cpu * 1e3, "wall_ms": wall * 1e3, "output": output}), flush=True)


class Worker:
    """An engine with one setting, in its own process on the given cores."""

    def __init__(self, engine, precision, setting, command, cores, extra=None):
        self.engine, self.precision, self.setting, self.extra = engine, precision, setting, extra
        env = dict(os.environ) | {name: str(len(cores)) for name in THREADS} | (extra or {})
        # These slow a current BLAS; no engine here may be held back by this machine's settings.
        for name in ["OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"]:
            env.pop(name, None)
        self.process = subprocess.Popen(
            [str(c) for c in command], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores))
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{engine} {setting} does not start")

    def ask(self, ids, full=False):
        self.process.stdin.write(json.dumps({"ids": ids, "full": full}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def workers(work, name, minilm, peers, threads):
    folder, out = (minilm if name == "MiniLM-L6" else work / name / "hf"), work / name
    cores = range(threads)
    python = [sys.executable, os.path.abspath(__file__), "worker"]
    yield Worker("ampoule", "int8", "", [peers, "ampoule", out / "ampoule.int8.safetensors", threads], cores)
    yield Worker("ampoule", "f32", "", [peers, "ampoule", folder, threads], cores)
    for source in ["raw", "fused"]:
        yield Worker("onnxruntime", "f32", source, [*python, "onnxruntime", out / f"{source}.onnx", threads], cores)
        for channels in ["", ".channels"]:
            file = out / f"{source}.int8{channels}.onnx"
            yield Worker("onnxruntime", "int8", source + channels, [*python, "onnxruntime", file, threads], cores)
    for kind, precision in [("float32", "f32"), ("int8", "int8")]:
        for setting, extra in [("", {}), ("packed", {"CT2_USE_EXPERIMENTAL_PACKED_GEMM": "1"}), ("mkl", {"CT2_USE_MKL": "1"})]:
            command = [*python, "ctranslate2", f"{out / 'ct2'}:{kind}", threads]
            yield Worker("ctranslate2", precision, setting, command, cores, extra)
    for precision, file in [("f32", "raw.onnx"), ("int8", "raw.int8.onnx")]:
        yield Worker("rten", precision, "", [peers, "rten", out / file, threads], cores)
    yield Worker("candle", "f32", "", [peers, "candle", folder, threads], cores)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def machine():
    """What every row says of where it was measured."""
    name = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    family = [next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith(k)), "") for k in ["cpu family", "model\t"]]
    has = [f for f in flags() if f in {"avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}]
    return {"date": datetime.date.today().isoformat(), "cpu": name, "family": "/".join(family), "flags": " ".join(has)}


def token_ids():
    """The same sequences of every shape for all."""
    draw = random.Random(0)
    return [[[101, *(draw.randrange(1000, 29000) for _ in range(tokens - 2)), 102] for _ in range(count)]
            for count, tokens in SHAPES]


def progress(name, turn, turns):
    if sys.stderr.isatty():
        print(f"\r{name}: round {turn + 1} of {turns}", end="", file=sys.stderr)


def vacant(path):
    """Refuses to write over what was measured before."""
    if path.exists():
        raise SystemExit(f"{path} is there already; name another with --out, or move it away")
    return path


def write(rows, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def compare(work, minilm, peers, out, threads, rounds, models):
    rows, path = [], vacant(out.with_name(f"{out.name}.csv"))
    for name in models:
        engines = list(workers(work, name, minilm, peers, threads))
        texts = token_ids()
        reference = next(e for e in engines if (e.engine, e.precision) == ("onnxruntime", "f32"))
        expected = reference.ask(texts[2], True)["output"]
        alike = {e: cosine(e.ask(texts[2], True)["output"], expected) for e in engines}
        times, order = {}, random.Random(0)
        for turn in range(rounds + 2):  # two to warm up
            for shape, ids in zip(SHAPES, texts):
                # No engine always follows the same one.
                for engine in order.sample(engines, len(engines)):
                    took = engine.ask(ids)
                    if turn >= 2:
                        times.setdefault((engine, shape), []).append((took["cpu_ms"], took["wall_ms"]))
            progress(name, turn, rounds + 2)
        for (engine, (count, tokens)), took in times.items():
            cpu, wall = zip(*took)
            rows.append(machine() | {
                "model": name, "engine": engine.engine, "precision": engine.precision, "setting": engine.setting,
                "threads": threads, "sequences": count, "tokens": tokens, "rounds": rounds,
                "cpu_ms_min": round(min(cpu), 3), "cpu_ms_median": round(statistics.median(cpu), 3),
                "wall_ms_min": round(min(wall), 3), "wall_ms_median": round(statistics.median(wall), 3),
                "cosine": round(alike[engine], 5)})
        for engine in engines:
            engine.end()
    write(rows, path)
    print(report(rows))
    picture(rows, f"{out}.svg")


def pin(worker):
    """Each thread that computes to a core of its own: what onnxruntime does by itself, and some kernels pack threads on one core."""
    folder = f"/proc/{worker.process.pid}/task"
    for task in os.listdir(folder):
        name = pathlib.Path(folder, task, "comm").read_text().strip()
        # The process's first thread calls, and computes too.
        if task == str(worker.process.pid):
            os.sched_setaffinity(int(task), [0])
        elif name.startswith("ampoule-"):
            os.sched_setaffinity(int(task), [int(name.removeprefix("ampoule-"))])


def threads_compared(work, minilm, peers, out, rounds, models):
    """One thread, two threads, and two processes of one thread at once, which is what the machine's two cores have to give.

    Each after an untimed call of its own: one thread's process also makes half of the calls at once, so that its weights would be in a
    cache more often than those of two threads.
    """
    rows, path = [], vacant(out.with_name(f"{out.name}.threads.csv"))
    print("two threads over one, and two processes over one: of the minima, of the medians")
    print(f"{'model':10} {'precision':>9} {'shape':>8} {'wall ms: one':>12} {'two':>8} {'threads':>11} {'processes':>11}")
    for name in models:
        folder = minilm if name == "MiniLM-L6" else work / name / "hf"
        for precision, model in [("int8", work / name / "ampoule.int8.safetensors"), ("f32", folder)]:
            one, other = (Worker("ampoule", precision, "", [peers, "ampoule", model, 1], [core]) for core in range(2))
            two = Worker("ampoule", precision, "", [peers, "ampoule", model, 2], range(2))
            pin(two)
            both = concurrent.futures.ThreadPoolExecutor(2)
            ways = {
                "one": lambda ids: one.ask(ids)["wall_ms"],
                "two": lambda ids: two.ask(ids)["wall_ms"],
                "both": lambda ids: max(both.map(lambda worker: worker.ask(ids)["wall_ms"], [one, other])),
            }
            times = {shape: {way: [] for way in ways} for shape in SHAPES}
            for turn in range(rounds + 2):
                for shape, ids in zip(SHAPES, token_ids()):
                    for way in random.Random(turn).sample(list(ways), len(ways)):
                        ways[way](ids)
                        took = ways[way](ids)
                        if turn >= 2:
                            times[shape][way].append(took)
                progress(f"{name} {precision}", turn, rounds + 2)
            for (count, tokens), taken in times.items():
                row, ratios = {}, {"two": [], "both": []}
                for of, f in [("min", min), ("median", statistics.median)]:
                    row |= {f"{way}_ms_{of}": round(f(taken[way]), 3) for way in ways}
                    ratios["two"].append(f(taken["one"]) / f(taken["two"]))
                    ratios["both"].append(2 * f(taken["one"]) / f(taken["both"]))
                threads, processes = ("{:.2f}, {:.2f}".format(*ratios[way]) for way in ["two", "both"])
                print(f"{name:10} {precision:>9} {f'{count}x{tokens}':>8} {min(taken['one']):12.2f} {min(taken['two']):8.2f} "
                      f"{threads:>11} {processes:>11}", flush=True)
                rows.append(machine() | {"model": name, "precision": precision, "sequences": count, "tokens": tokens,
                                         "rounds": rounds} | row)
            for engine in [one, other, two]:
                engine.end()
    write(rows, path)


def start(work, minilm, peers, out, rounds):
    """From the start of a process to the hidden states of one sentence, its end counted too; files are in the system's cache."""
    rows, path = [], vacant(out.with_name(f"{out.name}.start.csv"))
    ids = json.dumps({"ids": [[101, *range(2000, 2014), 102]], "full": False}) + "\n"
    print(f"{'MiniLM-L6':30} {'cpu ms min':>10} {'median':>8} {'MiB':>7}")
    for worker in list(workers(work, "MiniLM-L6", minilm, peers, 1)):
        worker.end()
        cpu, memory = [], []
        for _ in range(rounds):
            again = Worker(worker.engine, worker.precision, worker.setting, worker.process.args, range(1), worker.extra)
            again.process.stdin.write(ids)
            again.process.stdin.close()
            _, status, used = os.wait4(again.process.pid, 0)
            if status:
                raise SystemExit(f"{worker.engine} {worker.setting} failed")
            cpu.append((used.ru_utime + used.ru_stime) * 1e3)
            memory.append(used.ru_maxrss / 1024)
        rows.append(machine() | {
            "model": "MiniLM-L6", "engine": worker.engine, "precision": worker.precision, "setting": worker.setting,
            "rounds": rounds, "cpu_ms_min": round(min(cpu), 1), "cpu_ms_median": round(statistics.median(cpu), 1),
            "mib_max": round(max(memory), 1)})
        name = f"{worker.engine} {worker.precision} {worker.setting}"
        print(f"{name:30} {min(cpu):10.1f} {statistics.median(cpu):8.1f} {max(memory):7.1f}", flush=True)
    write(rows, path)


def cells(rows, key):
    """Of each model and shape the best of each engine and precision, over its settings."""
    found = {}
    for row in rows:
        cell = found.setdefault((row["model"], int(row["sequences"]), int(row["tokens"])), {})
        who = (row["engine"], row["precision"])
        cell[who] = min(cell.get(who, math.inf), float(row[key]))
    return found


def report(rows):
    lines = []
    unit = "cpu_ms" if int(rows[0]["threads"]) == 1 else "wall_ms"
    for key in [f"{unit}_min", f"{unit}_median"]:
        ratios = {"int8": [], "f32": []}
        lines += [f"{key}, {rows[0]['threads']} thread(s)",
                  f"{'model':10} {'shape':>8} {'int8':>8} {'best int8 peer':>24} {'ratio':>6} {'f32':>8} {'onnxruntime f32':>16} {'ratio':>6} {'f32/int8':>8}"]
        for (model, count, tokens), cell in cells(rows, key).items():
            peer, best = min(((e, t) for (e, p), t in cell.items() if p == "int8" and e != "ampoule"), key=lambda x: x[1])
            ours, floats, theirs = cell["ampoule", "int8"], cell["ampoule", "f32"], cell["onnxruntime", "f32"]
            ratios["int8"].append(ours / best)
            ratios["f32"].append(floats / theirs)
            lines.append(f"{model:10} {f'{count}x{tokens}':>8} {ours:8.2f} {peer:>15} {best:8.2f} {ours / best:6.2f} "
                         f"{floats:8.2f} {theirs:16.2f} {floats / theirs:6.2f} {floats / ours:8.2f}")
        for precision, values in ratios.items():
            lines.append(f"{precision}: geometric mean {statistics.geometric_mean(values):.3f}, largest {max(values):.3f}")
    return "\n".join(lines)


def picture(rows, path):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ampoule"
    import matplotlib.pyplot as plt

    unit = "cpu_ms" if int(rows[0]["threads"]) == 1 else "wall_ms"
    found = cells(rows, f"{unit}_median")
    models = list(dict.fromkeys(model for model, _, _ in found))
    engines = [("ampoule", "int8"), ("onnxruntime", "int8"), ("ctranslate2", "int8"), ("rten", "int8"), ("ampoule", "f32"), ("onnxruntime", "f32")]
    colours = ["#c2185b", "#5b8db8", "#7fb77e", "#c9a15a", "#e8a0bf", "#b8cfe0"]
    figure, axes = plt.subplots(len(models), 1, figsize=(9, 2.6 * len(models)), squeeze=False)
    for axis, model in zip(axes[:, 0], models):
        shapes = [(c, t) for m, c, t in found if m == model]
        for i, (who, colour) in enumerate(zip(engines, colours)):
            heights = [found[model, c, t][who] / found[model, c, t]["ampoule", "int8"] for c, t in shapes]
            axis.bar([x + i / 7 for x in range(len(shapes))], heights, 1 / 7, color=colour, label=" ".join(who))
        axis.set_xticks([x + 2.5 / 7 for x in range(len(shapes))], [f"{t}" if c == 1 else f"{c} x {t}" for c, t in shapes])
        axis.set_ylabel(f"{model}\ntime / ours")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(ncol=3, frameon=False, fontsize=8)
    axes[-1, 0].set_xlabel(f"tokens ({rows[0]['threads']} thread(s), {rows[0]['flags']})")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    if sys.argv[1:2] == ["worker"]:
        return worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["prepare", "compare", "threads", "start", "report"])
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--minilm", help="the published all-MiniLM-L6-v2 folder")
    parser.add_argument("--ampoule", help="the command line")
    parser.add_argument("--peers", help="this folder's program")
    parser.add_argument("--out", type=pathlib.Path, help="without its ending")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", nargs="+", default=["MiniLM-L6", *STUDENTS])
    a = parser.parse_args()
    if a.verb == "prepare":
        prepare(a.work, a.minilm, a.ampoule)
    elif a.verb == "start":
        start(a.work, a.minilm, a.peers, a.out, a.rounds)
    elif a.verb == "threads":
        threads_compared(a.work, a.minilm, a.peers, a.out, a.rounds, a.models)
    elif a.verb == "report":
        print(report(list(csv.DictReader(open(f"{a.out}.csv")))))
    else:
        compare(a.work, a.minilm, a.peers, a.out, a.threads, a.rounds, a.models)


if __name__ == "__main__":
    main()
