"""Text to token shards: lmlab's fast path beside the `tokenizers` batch encoders, the same merges, alternating in one run.

    python benchmarks/corpus_tokens.py [--text FOLDER] [--megabytes 20] [--vocab 8192] [--rounds 5] [--threads 1]

Text: the files of a folder (default: Python's standard library), repeated or cut to about so many megabytes. Peers:
`Tokenizer.encode_batch` and `encode_batch_fast` of the library `tokenizers`. The ids of every document are compared
first. Figures are megabytes a CPU second of the whole process, medians of the rounds with the lowest and the highest; the time to
build each encoder is not in them and is printed apart. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmlab.corpus.shards import write_shards
from lmlab.device import processor
from lmlab.text.fast import fast_encoder
from lmlab.text.tokenizer import train


def read(folder: Path, size: int) -> list[str]:
    """Texts of a folder, about `size` bytes of them."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".py", ".txt", ".md", ".rst", ".json"))
    texts = [text for text in (_text(path) for path in files) if text]
    found: list[str] = []
    for text in itertools.cycle(texts):
        if size <= 0:
            return found
        found.append(text)
        size -= len(text.encode())
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def cpu(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(given.threads)  # of tokenizers; read at its first parallel call

    texts = read(given.text, int(given.megabytes * 1e6))
    size = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = train(texts[: max(1, len(texts) // 4)], given.vocab)
    plain = tokenizer._plain
    building = cpu(lambda: fast_encoder(plain))
    if tokenizer.encode_many(texts, given.threads) != tokenizer.encode_batch(texts):
        raise SystemExit("the ids differ: the comparison is void")

    def shards() -> None:
        with tempfile.TemporaryDirectory() as folder:
            rows = ((str(n), "text", text) for n, text in enumerate(texts))
            settings = {"end_of_text": tokenizer.eos_id, "vocabulary": tokenizer.vocab_size}
            write_shards(Path(folder) / "tokens", rows, tokenizer.encode_arrays, threads=given.threads, **settings)

    works: dict[str, Callable[[], Any]] = {
        "tokenizers encode_batch": lambda: plain.encode_batch(texts, add_special_tokens=False),
        "tokenizers encode_batch_fast": lambda: plain.encode_batch_fast(texts, add_special_tokens=False),
        "lmlab encode_many": lambda: tokenizer.encode_many(texts, given.threads),
        "lmlab encode_arrays": lambda: tokenizer.encode_arrays(texts),
        "lmlab encode_arrays and shards written": shards,
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(given.rounds):
        for name, work in works.items():
            seconds[name].append(cpu(work))
    rates = {name: sorted(size / each for each in found) for name, found in seconds.items()}
    middle = {name: statistics.median(found) for name, found in rates.items()}
    if given.json:
        print(json.dumps({"megabytes": size, "documents": len(texts), "rates": rates, "building_s": building}))
        return
    print(
        f"{processor()['name']}; {size:.1f} MB in {len(texts):,} documents, {tokenizer.vocab_size:,} entries, "
        f"{given.threads} thread(s), {given.rounds} rounds; building the fast encoder: {building:.2f} CPU s\n"
    )
    print("| encoder | MB a CPU second | over encode_batch | over encode_batch_fast |\n|---|---|---|---|")
    for name, found in rates.items():
        over = [middle[name] / middle[f"tokenizers {peer}"] for peer in ("encode_batch", "encode_batch_fast")]
        print(f"| {name} | {middle[name]:.1f} [{found[0]:.1f}, {found[-1]:.1f}] | {over[0]:.1f} | {over[1]:.1f} |")


if __name__ == "__main__":
    main()
