"""A GPU by wgpu beside torch-CUDA on the same one, in one run of at most nine minutes, the smallest figures first.

    gpu.py run --gpu FILE --ampoule FILE [--train FILE] --vocabulary FOLDER --work FOLDER --out NAME   writes NAME.csv as it goes
    gpu.py report --out NAME                                                                          the table of a NAME.csv

`--gpu` and `--train` are the benches of these names, `--ampoule` the command line; without `--train` no steps of training are timed. Cargo
prints where they are:

    cargo bench -p ampoule --features wgpu --bench gpu --no-run
    cargo bench -p ampoule-distill --features ampoule/autodiff-wgpu --bench train --no-run
    cargo build --release -p ampoule-cli

The model is MiniLM-L6's shape with random weights, its tokens those of `--vocabulary`, a folder with MiniLM-L6's tokenizer (and its `vocab.txt`, to
train). Needs torch and transformers. Token ids go
in and last hidden states come back to the processor, of torch too. Torch computes as it does by default (scaled dot product attention,
float32 without TF32) and in float16. `gpu.py worker FOLDER TYPE` is torch in a process of its own. A worker is ready when its model is
open: ours has compiled its kernels then, and computed its golden cases; `cold` with an empty cache of the driver's, `warm` with the same one
once more."""

import argparse, csv, datetime, json, os, pathlib, random, shutil, statistics, subprocess, sys, time

TOKENS, BATCHES, SENTENCES, STEPS = [16, 32, 64, 128, 256, 512], [1, 8, 32], 10_000, 20
OURS, THEIRS = ["f32", "f16", "int8"], ["float32", "float16"]


def torch_worker(folder, kind):
    import torch, transformers

    begin = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, kind)
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa", dtype=kind)
    model = model.to(device).eval()
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(json.dumps({"opened_s": time.perf_counter() - begin, "report": {"adapter": name, "torch": torch.__version__}}), flush=True)
    for line in sys.stdin:
        lengths = json.loads(line)
        begin = time.perf_counter()
        longest = max(lengths)
        ids = torch.tensor([[1000 + (i * 7 + j * 37) % 20_000 for j in range(longest)] for i in range(len(lengths))])
        begin = time.perf_counter()
        with torch.inference_mode():
            places = torch.arange(longest)
            even = min(lengths) == longest
            mask = None if even else (places < torch.tensor(lengths)[:, None]).long().to(device)
            states = model(input_ids=ids.to(device), attention_mask=mask).last_hidden_state.float().cpu()
        ms = (time.perf_counter() - begin) * 1e3
        rows = [row[:n] for row, n in zip(states, lengths)]
        print(json.dumps({"ms": ms, "mean": torch.cat(rows).abs().double().mean().item()}), flush=True)


class Worker:
    def __init__(self, engine, precision, command, cache=None):
        self.engine, self.precision = engine, precision
        env = dict(os.environ) | ({"__GL_SHADER_DISK_CACHE_PATH": str(cache), "__GL_SHADER_DISK_CACHE": "1"} if cache else {})
        self.process = subprocess.Popen(
            [str(c) for c in command], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        begin = time.perf_counter()
        self.ready = self.read()
        self.ready["process_s"] = time.perf_counter() - begin

    def read(self):
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
            if line.strip() == "ready":
                return {}
        raise RuntimeError(f"{self.engine} {self.precision} ended")

    def ask(self, what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self.read()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def checkpoint(work, vocabulary):
    """MiniLM-L6's shape; random weights, the same each time."""
    import torch, transformers

    folder = work / "minilm"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    transformers.BertModel(config).save_pretrained(folder)
    for file in ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"]:
        if (pathlib.Path(vocabulary) / file).exists():
            shutil.copy(pathlib.Path(vocabulary) / file, folder)
    return folder


def run(a):
    begin, rows = time.monotonic(), []
    a.work.mkdir(parents=True, exist_ok=True)

    def keep(**row):
        rows.append({"date": datetime.date.today().isoformat()} | row)
        print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
        columns = dict.fromkeys(k for row in rows for k in row)
        with open(a.out.with_name(f"{a.out.name}.csv"), "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def is_late(share=1.0):
        return time.monotonic() - begin > share * a.seconds

    folder = checkpoint(a.work, a.vocabulary)
    models = {}
    for precision in OURS:
        models[precision] = a.work / f"minilm.{precision}.safetensors"
        subprocess.run([a.ampoule, "quantize", "--model", folder, "--precision", precision, "--out", models[precision]],
                       check=True, stdout=subprocess.DEVNULL)
    workers = []
    for precision in OURS:
        cache = a.work / f"cache.{precision}"
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        for start in ["cold", "warm"]:
            worker = Worker("ampoule", precision, [a.gpu, models[precision], "gpu"], cache)
            first = worker.ask([64])["ms"]
            gpu = worker.ready["report"].get("gpu") or {}
            keep(what="open", engine="ampoule", precision=precision, start=start, seconds=worker.ready["opened_s"],
                 first_ms=first, adapter=gpu.get("adapter"), computes_in=gpu.get("precision"),
                 difference=(gpu.get("self_check") or {}).get("largest_difference"))
            if start == "cold":
                worker.end()
        workers.append(worker)
    workers.append(Worker("ampoule-cpu", "int8", [a.gpu, models["int8"], "cpu"]))
    for kind in THEIRS:
        try:
            worker = Worker("torch", kind, [sys.executable, os.path.abspath(__file__), "worker", folder, kind])
            keep(what="open", engine="torch", precision=kind, start="warm", seconds=worker.ready["opened_s"],
                 first_ms=worker.ask([64])["ms"], adapter=worker.ready["report"]["adapter"], torch=worker.ready["report"]["torch"])
            workers.append(worker)
        except (RuntimeError, KeyError) as error:
            print(f"no torch in {kind}: {error}", file=sys.stderr)

    draw = random.Random(0)

    def compare(what, calls, rounds, **more):
        """The same calls by turns, in an order drawn anew; times of the calls together. The processor has the small ones alone."""
        is_small = sum(map(sum, calls)) <= 4096
        those = [worker for worker in workers if is_small or worker.engine != "ampoule-cpu"]
        times = {worker: [] for worker in those}
        for turn in range(rounds + 1):  # one to warm up
            for worker in draw.sample(those, len(those)):
                answers = [worker.ask(call) for call in calls]
                if turn > 0:
                    times[worker].append(sum(answer["ms"] for answer in answers))
            if turn > 3 and is_late(0.8):
                break
        for worker, took in times.items():
            keep(what=what, engine=worker.engine, precision=worker.precision, rounds=len(took), ms_min=min(took),
                 ms_median=statistics.median(took), **more)

    for batch in BATCHES:
        for tokens in TOKENS:
            if not is_late(0.6):
                compare("latency", [[tokens] * batch], 20 if batch * tokens <= 4096 else 8, batch=batch, tokens=tokens)
    lengths = [draw.randint(8, 64) for _ in range(SENTENCES)]
    if not is_late(0.7):
        calls = [sorted(lengths)[at : at + 100] for at in range(0, SENTENCES, 100)]
        compare("throughput", calls, 3, sentences=SENTENCES)
    for worker in workers:
        worker.end()
    if a.train and not is_late(0.85):
        training(a, folder, keep)


def training(a, folder, keep):
    import train

    data = a.work / "train.tsv"
    train.texts(folder / "vocab.txt", data)
    ours = Worker("ampoule", "f32", [a.train, folder, data, "4", "hard", "gpu"])
    theirs = Worker("torch", "f32", [sys.executable, train.__file__, "worker", folder, data, "4", "hard", "sdpa,fused", "cuda"])
    times = {ours: [], theirs: []}
    for turn in range(STEPS + 10):
        for worker in times:
            took = worker.ask([])
            if turn >= 10:
                times[worker].append(took["wall_ms"])
    for worker, took in times.items():
        keep(what="training", engine=worker.engine, precision="f32", rounds=len(took), ms_min=min(took),
             ms_median=statistics.median(took), batch=train.SEQUENCES, tokens=train.TOKENS)
        worker.end()


def report(rows):
    """Medians, and ours over torch's in the same precision; int8 over torch's float16."""
    lines = [f"{'':12} {'tokens':>7} {'f32':>8} {'torch':>8} {'ratio':>6} {'f16':>8} {'torch':>8} {'ratio':>6} {'int8':>8} {'ratio':>6} {'CPU int8':>9}"]
    for key in dict.fromkeys((row["what"], row.get("batch"), row.get("tokens")) for row in rows if row["what"] != "open"):
        of = {(row["engine"], row["precision"]): float(row["ms_median"]) for row in rows
              if (row["what"], row.get("batch"), row.get("tokens")) == key}
        nan = float("nan")
        f32, f16, int8 = (of.get(("ampoule", p), nan) for p in OURS)
        t32, t16 = (of.get(("torch", p), of.get(("torch", "f32"), nan) if p == "float32" else nan) for p in THEIRS)
        name = f"{key[0]} x{key[1]}" if key[1] else key[0]
        lines.append(f"{name:12} {key[2] or '':>7} {f32:8.2f} {t32:8.2f} {f32 / t32:6.2f} {f16:8.2f} {t16:8.2f} {f16 / t16:6.2f} "
                     f"{int8:8.2f} {int8 / t16:6.2f} {of.get(('ampoule-cpu', 'int8'), nan):9.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        torch_worker(*sys.argv[2:])
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "report"])
    parser.add_argument("--gpu", help="the bench `gpu`")
    parser.add_argument("--ampoule", help="the command line")
    parser.add_argument("--train", help="the bench `train`")
    parser.add_argument("--vocabulary", help="a folder with MiniLM-L6's tokenizer")
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=480)
    a = parser.parse_args()
    if a.verb == "run":
        if missing := [name for name in ("gpu", "ampoule", "vocabulary", "work") if not getattr(a, name)]:
            parser.error(f"run needs --{' --'.join(missing)}")
        run(a)
    print(report(list(csv.DictReader(open(a.out.with_name(f"{a.out.name}.csv"))))))
