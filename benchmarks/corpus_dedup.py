"""MinHash deduplication against datatrove, with labels; two cores against one; memory against size.

python benchmarks/corpus_dedup.py peer   [--megabytes 40] [--rounds 3]
python benchmarks/corpus_dedup.py cores  [--megabytes 1000] [--rounds 3] [--engine processes]
python benchmarks/corpus_dedup.py memory [--megabytes 100 1000]

Documents are fragments of the Python files of this machine, drawn with a seed, so that no two are alike by nature; a
quarter of them are then copied with a known share of their words replaced. So each document that goes is right (a
labelled copy, or the original of one) or wrong. Every measured run is a process of its own, started for it: start-up
counts, CPU seconds are of the process and its children, and compiled kernels are in numba's cache. `cores` measures the
build itself, inside the process. Needs the extra [bench].
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

EDITS = (0.0, 0.005, 0.01, 0.02, 0.05)
SETTINGS = {"shingle": 5, "bands": 16, "rows": 8}


def fragments(most: int = 300_000) -> list[str]:
    """Pieces of about 100 bytes of real text: lines of the Python files here, joined until they are long enough."""
    found, held = [], ""
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "lib2to3" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        for line in text.splitlines():
            held = f"{held} {line.strip()}".strip()
            if len(held) > 100:
                found.append(held)
                held = ""
        if len(found) >= most:
            break
    return found


def documents(megabytes: float, seed: int = 1):
    """(id, text, id of what it is a copy of or None, share of words replaced)."""
    draw, pieces = random.Random(seed), fragments()
    size = number = 0
    while size < megabytes * 1_000_000:
        text = "\n".join(draw.choices(pieces, k=draw.randint(10, 60)))
        yield f"d{number}", text, None, None
        size += len(text)
        if draw.random() < 0.25:
            share = EDITS[number % len(EDITS)]
            words = text.split(" ")
            changed = set(draw.sample(range(len(words)), round(share * len(words))))
            copy = " ".join(f"w{draw.randrange(10**6)}" if i in changed else word for i, word in enumerate(words))
            yield f"c{number}", copy, f"d{number}", share
            size += len(copy)
        number += 1


def write(folder: Path, megabytes: float, shards: int) -> dict[str, tuple[str, float]]:
    """JSON Lines files, documents dealt out in turn; returns what is a copy of what."""
    labels = {}
    (folder / "data").mkdir(parents=True)
    files = [(folder / "data" / f"{i:04d}.jsonl").open("w", encoding="utf-8") for i in range(shards)]
    for n, (each, text, of, share) in enumerate(documents(megabytes)):
        files[n % shards].write(json.dumps({"id": each, "text": text}) + "\n")
        if of is not None:
            labels[each] = (of, share)
    for file in files:
        file.close()
    return labels


# --- the sides: each is run in a process of its own --------------------------------------------------------------


def run_lmlab(folder: Path, out: Path, threshold: float) -> None:
    """Read, compare, write what stays: the engine's tasks with no other step, on one thread."""
    from lmlab.corpus import engine
    from lmlab.corpus.build import Shard
    from lmlab.corpus.config import CorpusConfig, SourceConfig
    from lmlab.corpus.dedup.index import NearDuplicates
    from lmlab.corpus.dedup.passes import documents_pass
    from lmlab.corpus.dedup.shuffle import Part
    from lmlab.corpus.readers import listing

    source = SourceConfig(name="s", path=str(folder / "data"))
    config = CorpusConfig(sources=[source])

    def do(title: str, tasks: list[engine.Task]) -> None:
        engine.run(tasks, threads=1, title=title)

    tasks = []
    for i, file in enumerate(listing(source, "bench").files):
        shard = Shard(source, [file], config, 0.0, out / "rejected" / f"{i}.jsonl")
        tasks.append(engine.Task(shard.tables, [], out / "read" / f"part-{i:05d}.parquet", shard.identity))
    do("reading", tasks)
    parts = [Part(i, task.out, task.key) for i, task in enumerate(tasks)]
    near = NearDuplicates(threshold=threshold, **SETTINGS)
    parts = documents_pass(parts, near, True, out / "work", do)
    do("writing", [engine.Task(p.final, [], out / "documents" / p.path.name, p.key) for p in parts])


def run_datatrove(folder: Path, out: Path) -> None:
    """Its four stages, one task each, with its word splitter replaced by a fast one. Its hash function is wrapped to
    encode strings, which the xxhash of today asks for and datatrove 0.10.1 does not do."""
    import xxhash
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature, minhash
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )  # fmt: skip
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    class Fast:
        @staticmethod
        def word_tokenize(text: str) -> list[str]:
            return text.split()

    minhash.load_word_tokenizer = lambda language: Fast()
    minhash.create_hash_func = lambda config: lambda text: xxhash.xxh64_intdigest(text.encode())
    config = MinhashConfig(
        n_grams=SETTINGS["shingle"], num_buckets=SETTINGS["bands"], hashes_per_bucket=SETTINGS["rows"]
    )
    reader = lambda: JsonlReader(str(folder / "data"))  # noqa: E731
    sigs, buckets, ids = str(out / "sigs"), str(out / "buckets"), str(out / "ids")
    for name, pipeline in {
        "sign": [reader(), MinhashDedupSignature(sigs, config=config)],
        "buckets": [MinhashDedupBuckets(sigs, buckets, config=config)],
        "cluster": [MinhashDedupCluster(buckets, ids, config=config)],
        "filter": [reader(), MinhashDedupFilter(ids), JsonlWriter(str(out / "kept"), compression=None)],
    }.items():
        tasks = SETTINGS["bands"] if name == "buckets" else 1
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(out / "logs" / name)).run()


def run_build(folder: Path, out: Path, threads: int, heldout: float, engine: str) -> None:
    """A whole build, timed inside, with every default step but two: the rules drop nothing, so that as much as possible
    is compared, and languages are not told (that step has its own benchmark)."""
    from lmlab.corpus.config import CorpusConfig
    from lmlab.corpus.stage import STAGE
    from lmlab.progress import Metrics
    from lmlab.run import Context

    out.mkdir(parents=True, exist_ok=True)
    off = {"enabled": False}
    config = CorpusConfig.model_validate(
        {
            "sources": [{"name": "s", "path": str(folder / "data")}], "threads": threads, "engine": engine,
            "prose_rules": off, "language": off, "shard_bytes": 32 << 20, "heldout_fraction": heldout,
        }
    )  # fmt: skip
    began, cpu = time.perf_counter(), sum(os.times()[:4])
    STAGE.run(Context("corpus", "corpus", config, {}, out, 0, Metrics(out)))
    used = {"seconds": time.perf_counter() - began, "cpu": sum(os.times()[:4]) - cpu}
    rows = {
        line["phase"]: line["seconds"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    }
    print(json.dumps({**used, "phases": rows}))


SIDES = {
    "lmlab, verified at 0.7": lambda folder, out: run_lmlab(folder, out, 0.7),
    "lmlab, not verified": lambda folder, out: run_lmlab(folder, out, 0.0),
    "datatrove": run_datatrove,
}


def child(arguments: list[str]) -> tuple[float, float, float, str]:
    """(CPU seconds, seconds, peak megabytes, standard output) of this script with other arguments."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    said, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{arguments} failed:\n{errors[-3000:]}")
    peak, cpu = json.loads(errors.strip().splitlines()[-1])
    return cpu, time.perf_counter() - began, peak, said


def report_use() -> None:
    """The last line on standard error: peak resident megabytes, and CPU seconds with all children."""
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
    print(json.dumps([max(own.ru_maxrss, others.ru_maxrss) / 1024, cpu]), file=sys.stderr)


def kept(side: str, out: Path) -> set[str]:
    if side == "datatrove":
        lines = (line for path in (out / "kept").rglob("*.jsonl") for line in path.open(encoding="utf-8"))
        return {json.loads(line)["id"] for line in lines}
    import pyarrow.parquet as pq

    names = {}
    for path in sorted((out.parent / "data").glob("*.jsonl")):
        for row, line in enumerate(path.open(encoding="utf-8")):
            names[f"s/{path.name}#{row}"] = json.loads(line[: line.index(",")] + "}")["id"]
    tables = [pq.read_table(path, columns=["id", "keep"]) for path in (out / "documents").glob("*.parquet")]
    return {names[row["id"]] for each in tables for row in each.to_pylist() if row["keep"]}


def peer(folder: Path, megabytes: float, rounds: int) -> None:
    labels = write(folder, megabytes, 4)
    print(f"{megabytes:g} MB, {len(labels):,} labelled copies, {rounds} rounds; one process, one thread\n")
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}
    lines = {}
    for n in range(rounds + 1):  # the first round compiles and fills caches, and is not counted
        for side in SIDES:
            out = folder / f"out-{n}-{len(lines)}-{abs(hash(side))}"
            used, _, peak, _ = child(["side", "--side", side, "--folder", str(folder), "--out", str(out)])
            if n:
                cpu[side].append(used)
            if n == rounds:
                stays = kept(side, out)
                right = [sum(c not in stays or o not in stays for c, (o, s) in labels.items() if s == e) for e in EDITS]
                of = [sum(s == e for _, s in labels.values()) for e in EDITS]
                every = set(labels) | {o for o, _ in labels.values()}
                gone = every - stays
                total = sum(1 for path in (folder / "data").glob("*.jsonl") for _ in path.open()) - len(stays)
                wrong = total - len(gone)
                extra = sum(c not in stays and o not in stays for c, (o, _) in labels.items())
                recall = " / ".join(f"{r / n:.3f}" for r, n in zip(right, of, strict=True))
                precision = 1 - (wrong + extra) / max(1, total)
                lines[side] = (peak, total, recall, precision)
    base = statistics.median(cpu["datatrove"])
    edits = " / ".join(f"{e:g}" for e in EDITS)
    print(f"| | CPU s (median; all) | times | peak MB | gone | recall at {edits} edited | precision |")
    print("|---|---|---|---|---|---|---|")
    for side, (peak, total, recall, precision) in lines.items():
        median = statistics.median(cpu[side])
        every = ", ".join(f"{c:.1f}" for c in cpu[side])
        print(
            f"| {side} | {median:.1f} ({every}) | {base / median:.1f} | {peak:.0f} | {total:,} | {recall} | {precision:.4f} |"
        )


def cores(folder: Path, megabytes: float, rounds: int, engine: str) -> None:
    write(folder, megabytes, max(4, round(megabytes / 32)))
    print(
        f"a whole build of {megabytes:g} MB without start-up, {rounds} rounds; load before: {os.getloadavg()[0]:.1f}\n"
    )
    print("| threads | seconds | CPU s |\n|---|---|---|")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for n in range(rounds):
        for threads, measured in seconds.items():
            out = folder / f"out-{n}-{threads}"
            arguments = [
                "build",
                "--folder",
                str(folder),
                "--out",
                str(out),
                "--threads",
                str(threads),
                "--engine",
                engine,
            ]
            found = json.loads(child(arguments)[3])
            subprocess.run(["rm", "-rf", str(out)], check=True)
            measured.append(found["seconds"])
            print(f"| {threads} | {found['seconds']:.1f} | {found['cpu']:.1f} |", flush=True)
    one, two = (statistics.median(values) for values in seconds.values())
    print(f"\ntwo threads are {one / two:.2f} times as fast as one (medians)")


def memory(folder: Path, sizes: list[float], threads: int) -> None:
    print(f"whole builds on {threads} threads\n\n| MB | documents | peak MB | CPU s |\n|---|---|---|---|")
    for size in sizes:
        place = folder / f"{size:g}"
        write(place, size, max(4, round(size / 32)))
        out = place / "out"
        # As much held out whatever the size: the n-grams of held-out text are an index, and grow with it.
        arguments = ["build", "--folder", str(place), "--out", str(out), "--threads", str(threads)]
        _, _, peak, said = child([*arguments, "--heldout", str(0.02 * 50 / size)])
        read = json.loads((out / "results.json").read_text(encoding="utf-8"))["read"]["documents"]
        print(f"| {size:g} | {read:,} | {peak:.0f} | {json.loads(said)['cpu']:.0f} |", flush=True)
        subprocess.run(["rm", "-rf", str(place)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["peer", "cores", "memory", "side", "build"])
    parser.add_argument("--megabytes", type=float, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", default="threads", choices=["threads", "processes"])
    parser.add_argument("--heldout", type=float, default=0.001)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.what == "side":
        SIDES[given.side](given.folder, given.out)
        report_use()
    elif given.what == "build":
        run_build(given.folder, given.out, given.threads, given.heldout, given.engine)
        report_use()
    else:
        with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
            if given.what == "memory":
                memory(Path(temporary), given.megabytes or [100.0, 1000.0], given.threads)
            else:
                size = (given.megabytes or [40.0 if given.what == "peer" else 1000.0])[0]
                (
                    peer(Path(temporary), size, given.rounds)
                    if given.what == "peer"
                    else cores(Path(temporary), size, given.rounds, given.engine)
                )


if __name__ == "__main__":
    main()
