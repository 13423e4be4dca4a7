"""A whole build on one core and on two, and its memory: reading, rules, language, privacy, copies, tokens, shards.

    python benchmarks/corpus_cores.py cores  [--megabytes 1000] [--rounds 3] [--engine auto] [--text FOLDER]
    python benchmarks/corpus_cores.py memory [--megabytes 100 400 1000] [--engine auto]
    python benchmarks/corpus_cores.py make FOLDER [--megabytes 1000]

Documents are windows of the text found on this machine (as in corpus.py), of four in five the sentences of each paragraph
shuffled, so that they are no copies of each other; one in fifty is an exact copy. Steps are a recipe's defaults and Gopher's
rules, then a byte-level BPE of 8,192 entries, trained before on other text, and shards. Each run is a process of its own.
Seconds are those of the work: imports are not in them, nor is the start of the server that worker processes come from; its CPU
seconds are. Memory is the peak of what all processes hold (PSS, asked five times a second), so that shared pages count
once. The figures of one round alternate between one core and two.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import psutil

import corpus

FILE_BYTES = 32e6


def documents(megabytes: float, seed: int = 11) -> Iterator[str]:
    draw = random.Random(seed)
    for text in corpus.documents(megabytes, list(corpus._texts()), seed):
        yield _shuffled(text, draw) if draw.random() < 0.8 else text


def _shuffled(text: str, draw: random.Random) -> str:
    """The sentences of each paragraph in another order."""
    between = "\n\n" if "\n\n" in text else "\n"
    paragraphs = []
    for paragraph in text.split(between):
        sentences = re.split(r"(?<=[.!?])\s+", paragraph)
        draw.shuffle(sentences)
        paragraphs.append(" ".join(sentences) if len(sentences) > 2 else paragraph)
    return between.join(paragraphs)


def make(folder: Path, megabytes: float) -> None:
    """Files of JSON Lines of about FILE_BYTES."""
    folder.mkdir(parents=True)
    draw, file, size, number, count = random.Random(5), None, FILE_BYTES, 0, 0
    for text in documents(megabytes):
        if file is None or size >= FILE_BYTES:
            if file is not None:
                file.close()
            file, size, number = (folder / f"{number:03d}.jsonl").open("w", encoding="utf-8"), 0, number + 1
        for _ in range(2 if draw.random() < 0.02 else 1):
            size += file.write(json.dumps({"text": text, "id": str(count)}, ensure_ascii=False) + "\n")
            count += 1
    if file is not None:
        file.close()


def tokenizer(folder: Path) -> Path:
    """A tokenizer of 8,192 entries, trained on the first 8 MB of the text found here."""
    from lmlab.text.tokenizer import train

    place = folder / "tokenizer"
    if not place.exists():
        train(list(islice(corpus.documents(8, list(corpus._texts()), 3), 100_000)), 8192).save(place)
    return place


def build(source: Path, out: Path, tokens: Path, threads: int, engine: str) -> None:
    """The corpus stage, then token shards of both splits; prints seconds and CPU seconds by phase."""
    from lmlab.corpus.config import CorpusConfig
    from lmlab.corpus.shards import write_shards
    from lmlab.corpus.stage import STAGE
    from lmlab.corpus.store import documents
    from lmlab.progress import Metrics
    from lmlab.run import Context
    from lmlab.text.tokenizer import Tokenizer

    with contextlib.suppress(ImportError):  # metrics go there where it is installed
        import torch.utils.tensorboard  # noqa: F401
    model = Tokenizer.load(tokens)
    model.encode_arrays(["built at its first use"])
    config = CorpusConfig.model_validate(
        {
            "sources": [{"name": "s", "path": str(source)}], "threads": threads, "engine": engine,
            "rule_sets": ["gopher"], "heldout_fraction": 0.001,
        }
    )  # fmt: skip
    if engine != "threads" and threads > 1:
        from lmlab.corpus import engine as engines

        with engines.workers("processes", threads=threads):  # starts the server; it stays
            time.sleep(6)
    began, used = time.perf_counter(), time.process_time()
    STAGE.run(Context("corpus", "corpus", config, {}, out, 0, Metrics(out)))
    built, driver = time.perf_counter(), time.process_time() - used
    for split in ("train", "heldout"):
        rows = ((row["id"], row["source"], row["text"]) for row in documents(out, split))
        write_shards(
            out / "tokens" / split, rows, model.encode_arrays, threads=threads,
            end_of_text=model.eos_id, vocabulary=model.vocab_size, tokenizer=model.fingerprint,
        )  # fmt: skip
    ended = time.perf_counter()
    lines = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    phases = {line["phase"]: line["seconds"] for line in lines}
    print(driver, "CPU s of the driver in the build", file=sys.stderr)
    print(json.dumps({"build": built - began, "tokens": ended - built, "seconds": ended - began, "phases": phases}))


def pss(pid: int) -> float:
    """Megabytes that a process holds, shared pages divided among those that share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def run(source: Path, threads: int, engine: str, tokens: Path) -> dict[str, float]:
    """One build in a process of its own: its seconds, CPU seconds with its children's, and peak megabytes of all."""
    out = Path(tempfile.mkdtemp(dir=source.parent))
    command = [sys.executable, __file__, "build", str(source), str(out / "out"), str(tokens), str(threads), engine]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, cpu, over = [0.0], {}, threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            total = 0.0
            try:
                for each in [(top := psutil.Process(process.pid)), *top.children(recursive=True)]:
                    total += pss(each.pid)
                    times = each.cpu_times()
                    cpu[each.pid] = times.user + times.system
            except (psutil.Error, OSError):  # it has just ended
                continue
            peak[0] = max(peak[0], total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    said, _ = process.communicate()
    over.set()
    watcher.join()
    shutil.rmtree(out)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    print(sorted((round(each, 1) for each in cpu.values()), reverse=True), "CPU s of each process", file=sys.stderr)
    return {**json.loads(said.splitlines()[-1]), "peak": peak[0], "cpu": sum(cpu.values())}


def cores(source: Path, rounds: int, engine: str, tokens: Path) -> None:
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    print("| cores | seconds | build | tokens | CPU s | peak MB | load before |\n|---|---|---|---|---|---|---|")
    for _ in range(rounds):
        for threads, rows in found.items():
            load = os.getloadavg()[0]
            row = run(source, threads, engine, tokens)
            rows.append(row)
            cells = [f"{row[name]:.1f}" for name in ("seconds", "build", "tokens", "cpu", "peak")]
            print(f"| {threads} | {' | '.join(cells)} | {load:.1f} |", flush=True)
            print(row["phases"], file=sys.stderr)
    for name in ("seconds", "build", "tokens"):
        ratios = [one[name] / two[name] for one, two in zip(found[1], found[2], strict=True)]
        print(
            f"\n{name}: two cores are {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def memory(sources: dict[float, Path], engine: str, tokens: Path) -> None:
    print("| MB | cores | peak MB | seconds |\n|---|---|---|---|")
    for size, source in sources.items():
        row = run(source, 2, engine, tokens)
        print(f"| {size:g} | 2 | {row['peak']:.0f} | {row['seconds']:.0f} |", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["build"]:
        source, out, tokens, threads, engine = sys.argv[2:]
        Path(out).mkdir(parents=True)
        build(Path(source), Path(out), Path(tokens), int(threads), engine)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cores", "memory", "make"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--megabytes", type=float, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="auto", choices=["auto", "threads", "processes"])
    parser.add_argument("--text", type=Path, help="files of JSON Lines that are there already (cores)")
    given = parser.parse_args()
    if given.what == "make":
        make(given.folder, (given.megabytes or [1000.0])[0])
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokens = tokenizer(folder)
        sizes = given.megabytes or ([1000.0] if given.what == "cores" else [100.0, 400.0, 1000.0])
        sources = {}
        for size in sizes:
            sources[size] = given.text or folder / f"{size:g}"
            if given.text is None:
                make(sources[size], size)
        if given.what == "cores":
            cores(sources[sizes[0]], given.rounds, given.engine, tokens)
        else:
            memory(sources, given.engine, tokens)


if __name__ == "__main__":
    main()
