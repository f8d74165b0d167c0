"""A step of training beside torch's: the same shapes, batches, loss, dropout and AdamW, all in one run.

    train.py compare --work --minilm --ampoule --out   times both by turns, in an order drawn anew, writes OUT.csv
    train.py report --out                              the table of an OUT.csv

`--ampoule` is the bench `train` of this checkout (`cargo bench -p ampoule-distill --bench train --no-run` says where it is). A step is
forward, backward, clipping and update of 16 sequences of 64 tokens. `hard` is fine-tuning; `soft` adds soft targets whose logits are
given: torch has them in memory, ours asks a teacher of one layer as wide as a head. Torch has four settings (attention, AdamW), of
which the best counts. `train.py worker FOLDER DATA THREADS TERMS SETTING [cpu|cuda]` is torch in a process of its own."""

import argparse, csv, json, os, pathlib, random, statistics, sys, time

from peers import STUDENTS, Worker, checkpoints, machine, progress, vacant, write

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples/produce"))
SEQUENCES, TOKENS, STEPS = 16, 64, 200
SETTINGS = ["sdpa,fused", "sdpa,foreach", "eager,fused", "eager,foreach"]
LABELS = ["O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease"]


def texts(vocabulary, path):
    """Sentences of words that are one token each, with entities here and there."""
    draw = random.Random(0)
    words = [w for w in vocabulary.read_text(encoding="utf-8").split("\n") if w.isascii() and w.isalpha() and w.islower()]
    with open(path, "w") as file:
        for _ in range(STEPS * SEQUENCES):
            tag = 0
            for _ in range(TOKENS - 2):
                tag = draw.choice([0, 0, 0, 1, 3] + [tag + 1] * (tag in (1, 3)) + [tag] * (tag in (2, 4)))
                file.write(f"{draw.choice(words)}\t{LABELS[tag]}\n")
            file.write("\n")


def worker(folder, data, threads, terms, setting, device="cpu"):
    import reference, torch

    torch.set_num_threads(threads)
    attention, update = setting.split(",")
    model = reference.load(folder, LABELS, 0.1)
    model.set_attn_implementation(attention)
    model.to(device).train()
    optimizer = reference.optimizer_for(model, 1.5e-4, False)
    for group in optimizer.param_groups:
        group[update] = True
    vocabulary = {w: i for i, w in enumerate((pathlib.Path(folder) / "vocab.txt").read_text(encoding="utf-8").split("\n"))}
    rows = [[line.split("\t") for line in text.splitlines()] for text in open(data).read().strip().split("\n\n")]
    batches = []
    for begin in range(0, len(rows), SEQUENCES):
        part = rows[begin : begin + SEQUENCES]
        ids = torch.tensor([[101, *(vocabulary[word] for word, _ in row), 102] for row in part])
        tags = torch.tensor([[-100, *(LABELS.index(tag) for _, tag in row), -100] for row in part])
        logits = torch.randn(*ids.shape, len(LABELS))
        batches.append(tuple(x.to(device) for x in (ids, torch.ones_like(ids), tags, logits)))
    covered = torch.ones(SEQUENCES, len(LABELS), dtype=torch.bool, device=device)

    def step(ids, mask, tags, teacher):
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = reference.partial_label_loss(logits, tags, covered, 0)
        if terms == "soft":
            student, teacher = ((x / 2).log_softmax(-1)[tags != -100] for x in (logits, teacher))
            loss = 0.5 * loss + 4 * torch.nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        cpu, wall = time.process_time(), time.perf_counter()
        loss = step(*batches[number % len(batches)])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(json.dumps({"cpu_ms": cpu * 1e3, "wall_ms": wall * 1e3, "tokens": SEQUENCES * TOKENS, "loss": loss}), flush=True)


def memory(worker):
    """The most that a process held, in MiB."""
    status = open(f"/proc/{worker.process.pid}/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def compare(work, minilm, ampoule, out, threads, rounds, models, settings):
    rows, path = [], vacant(out.with_name(f"{out.name}.csv"))
    data, order = work / "train.tsv", random.Random(0)
    texts(pathlib.Path(minilm) / "vocab.txt", data)
    for name, folder in checkpoints(work, minilm):
        for count in threads if name in models else []:
            for terms in ["hard", "soft"]:
                run = [folder, data, count, terms]
                workers = [Worker("ampoule", "f32", "", [ampoule, *run, "cpu"], range(count))]
                for setting in settings:
                    command = [sys.executable, os.path.abspath(__file__), "worker", *run, setting]
                    workers.append(Worker("torch", "f32", setting, command, range(count)))
                times = {worker: [] for worker in workers}
                for turn in range(rounds + 2):  # two to warm up
                    for one in order.sample(workers, len(workers)):
                        took = one.ask([])
                        assert took["tokens"] == SEQUENCES * TOKENS
                        if turn >= 2:
                            times[one].append((took["cpu_ms"], took["wall_ms"]))
                    progress(f"{name} {count} {terms}", turn, rounds + 2)
                for one, took in times.items():
                    cpu, wall = zip(*took)
                    rows.append(machine() | {
                        "model": name, "engine": one.engine, "setting": one.setting, "terms": terms, "threads": count,
                        "rounds": rounds, "cpu_ms_min": round(min(cpu), 2), "cpu_ms_median": round(statistics.median(cpu), 2),
                        "wall_ms_min": round(min(wall), 2), "wall_ms_median": round(statistics.median(wall), 2),
                        "mib_max": round(memory(one), 1)})
                    one.end()
    write(rows, path)
    print(report(rows))


def report(rows):
    """Wall times of a step, ours over torch's best setting."""
    lines = [f"{'model':10} {'terms':>5} {'threads':>7} {'ms min':>8} {'torch':>8} {'ratio':>6} {'median':>8} {'torch':>8} {'ratio':>6} "
             f"{'MiB':>7} {'torch':>7}"]
    for key in dict.fromkeys((row["model"], row["terms"], row["threads"]) for row in rows):
        of = [row for row in rows if (row["model"], row["terms"], row["threads"]) == key]
        line = f"{key[0]:10} {key[1]:>5} {key[2]:>7}"
        for column in ["wall_ms_min", "wall_ms_median"]:
            ours, theirs = (min(float(row[column]) for row in of if row["engine"] == e) for e in ["ampoule", "torch"])
            line += f" {ours:8.1f} {theirs:8.1f} {ours / theirs:6.2f}"
        most = [min(float(row["mib_max"]) for row in of if row["engine"] == engine) for engine in ["ampoule", "torch"]]
        lines.append(line + " {:7.0f} {:7.0f}".format(*most))
    return "\n".join(lines)


def main():
    if sys.argv[1:2] == ["worker"]:
        return worker(sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["compare", "report"])
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--minilm", help="the published all-MiniLM-L6-v2 folder")
    parser.add_argument("--ampoule", help="the bench `train`")
    parser.add_argument("--out", type=pathlib.Path, help="without its ending")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--models", nargs="+", default=["MiniLM-L6", "3x384", "4x192"], choices=["MiniLM-L6", *STUDENTS])
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS)
    a = parser.parse_args()
    if a.verb == "report":
        print(report(list(csv.DictReader(open(f"{a.out}.csv")))))
    else:
        compare(a.work, a.minilm, a.ampoule, a.out, a.threads, a.rounds, a.models, a.settings)


if __name__ == "__main__":
    main()
