"""The corpus against its peers: rules and MinHash against datatrove, tokens against `tokenizers`, on the same documents.

    python benchmarks/corpus.py                          # all four parts: 64 MB, three rounds, rules on one core and two
    python benchmarks/corpus.py --part rules --megabytes 16 --rounds 1
    python benchmarks/corpus.py --part agreement         # document by document, and why where the two differ

Needs the extra `[bench]`. Each contender is a process of its own that reads the same JSON Lines files and writes what it
keeps; CPU seconds are the whole process's, imports and all, and contenders take turns. datatrove's word splitter (spaCy)
and sentence splitter are replaced by `str.split` and one regular expression, so that rules are compared and not
tokenizers; it would be several times slower without. Documents are windows of text found on this machine (documentation,
docstrings, and the texts under LMLAB_DATA where that is set), drawn with a fixed seed; half are unwrapped, a line a
paragraph, as web text is. Rules are Gopher's quality and repetition rules and C4's. The parts `dedup` and `tokens` are
`corpus_dedup.py` and `corpus_tokens.py`, which say what they measure.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import html
import json
import math
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

SHARDS = 8
OTHERS = {"dedup": ("corpus_dedup.py", "peer"), "tokens": ("corpus_tokens.py",)}
C4_SETTINGS = {"min_line_words": 3, "min_sentences": 5}  # datatrove's defaults
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


# --- documents -------------------------------------------------------------------------------------------------


def _texts() -> Iterator[str]:
    """Text of this machine: documentation files, the docstrings of Python's library, and the texts of LMLAB_DATA."""
    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    prose = (".md", ".rst", ".txt", ".html")
    for root, endings in ((library, (*prose, ".py")), (packages, prose), (Path("/usr/share/doc"), prose)):
        for path in sorted(root.rglob("*")):
            name = path.name.removesuffix(".gz")
            if not name.endswith(endings) or path.is_symlink() or (root == library and "site-packages" in path.parts):
                continue
            try:
                raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                text = raw.decode("utf-8")
                if name.endswith(".py"):
                    text = _docstrings(text)
            except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if name.endswith(".html"):
                text = html.unescape(re.sub(r"<[^<>]*>", "", re.sub(r"(?s)<(script|style).*?</\1>", "", text)))
            yield text
    if data := os.environ.get("LMLAB_DATA"):
        for name in ("books/alice", "books/sherlock", "wikitext2/valid", "tinyshakespeare/input"):
            yield gzip.decompress((Path(data) / f"{name}.txt.gz").read_bytes()).decode()


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def library_texts() -> Iterator[str]:
    """The docstrings of some of Python's own modules: enough for a test."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py")):
        yield _docstrings(path.read_text(encoding="utf-8"))


def _docstrings(code: str) -> str:
    found = (ast.get_docstring(node) for node in ast.walk(ast.parse(code)) if isinstance(node, _DOCUMENTED))
    return "\n\n".join(each for each in found if each)


def documents(megabytes: float, texts_of: Iterable[str], seed: int = 0) -> Iterator[str]:
    """About so many MB of documents of 200 to 20,000 characters, each a window of one text; no paragraph over 4,000."""
    draw = random.Random(seed)
    pieces = ([p for p in re.split(r"\n\s*\n", text) if p.strip() and len(p) < 4000] for text in texts_of)
    texts = [paragraphs for paragraphs in pieces if len(paragraphs) > 3]
    texts.sort(key=lambda paragraphs: (len(paragraphs), paragraphs[:1]))
    weights = [math.sqrt(sum(map(len, paragraphs))) for paragraphs in texts]
    left = megabytes * 1e6
    while left > 0:
        paragraphs = draw.choices(texts, weights)[0]
        wanted = 200 * math.exp(draw.random() * math.log(100))
        at, size, window = draw.randrange(len(paragraphs)), 0, []
        while size < wanted and at < len(paragraphs):
            window.append(paragraphs[at])
            size, at = size + len(paragraphs[at]), at + 1
        if draw.random() < 0.5:
            window = [re.sub(r"\s*\n\s*", " ", paragraph).strip() for paragraph in window]
        text = ("\n\n" if draw.random() < 0.5 else "\n").join(window)
        left -= len(text.encode("utf-8", "ignore"))
        yield text.encode("utf-8", "ignore").decode()


def write_documents(folder: Path, megabytes: float) -> tuple[int, int]:
    """SHARDS files of JSON Lines; (documents, bytes of text)."""
    folder.mkdir(parents=True)
    files = [(folder / f"{i:02d}.jsonl").open("w", encoding="utf-8") for i in range(SHARDS)]
    count = size = 0
    for text in documents(megabytes, _texts()):
        files[count % SHARDS].write(json.dumps({"text": text, "id": str(count)}, ensure_ascii=False) + "\n")
        count, size = count + 1, size + len(text.encode())
    for file in files:
        file.close()
    return count, size


# --- contenders ------------------------------------------------------------------------------------------------


def _datatrove_filters() -> list[Any]:
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
        c4_filters,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    for module in (gopher_quality_filter, gopher_repetition_filter):
        module.split_into_words = lambda text, language: text.split()
    c4_filters.split_into_sentences = lambda text, language: _SENTENCE.split(text)
    return [GopherQualityFilter(), GopherRepetitionFilter(), C4QualityFilter()]


def run_datatrove(source: Path, out: Path, cores: int) -> None:
    """datatrove's own executor; on two cores two of them, each with half of the files, which costs it no queue."""
    if cores > 1:
        _both([[sys.executable, __file__, "--do", "datatrove", str(source), str(out), f"1:{i}"] for i in range(cores)])
        return
    _datatrove_part(source, out, 0, SHARDS)


def _datatrove_part(source: Path, out: Path, first: int, many: int) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from loguru import logger

    logger.remove()
    steps = [JsonlReader(str(source)), *_datatrove_filters(), JsonlWriter(str(out), compression=None)]
    LocalPipelineExecutor(
        steps, tasks=SHARDS, local_tasks=many, local_rank_offset=first, workers=1, logging_dir=str(out / f"log{first}")
    ).run()


def _both(commands: list[list[str]]) -> None:
    started = [subprocess.Popen(command) for command in commands]
    if any([process.wait() for process in started]):
        raise SystemExit("a half of the work failed")


def _lmlab_steps() -> list[Any]:
    from lmlab.corpus.characters import Spaceless
    from lmlab.corpus.steps.c4 import C4, C4Step
    from lmlab.corpus.steps.gopher import Gopher, GopherStep

    return [GopherStep(Gopher(), Spaceless()), C4Step(C4.model_validate(C4_SETTINGS), Spaceless())]


def run_lmlab(source: Path, out: Path, cores: int) -> None:
    """The corpus stage's own tasks, less every step but the two; all documents are written, with signals and reasons."""
    from lmlab.corpus import build, engine, readers
    from lmlab.corpus.config import CorpusConfig

    config = CorpusConfig.model_validate({"sources": [{"name": "web", "path": str(source)}], "shard_bytes": 1 << 20})
    tasks = build.read_tasks(config, [readers.listing(config.sources[0], "sources[0]")], out)
    steps = _lmlab_steps()
    engine.run([engine.Task(t.source, steps, t.out, t.identity) for t in tasks], threads=cores, title="rules")


CONTENDERS: dict[str, Callable[[Path, Path, int], None]] = {"datatrove": run_datatrove, "lmlab": run_lmlab}


def timed(name: str, source: Path, cores: int, size: int) -> dict[str, float]:
    """One process from start to end: its CPU seconds with its children's, wall seconds, and MB a CPU second."""
    with tempfile.TemporaryDirectory() as out:
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, __file__, "--do", name, str(source), out, str(cores)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": wall, "rate": size / 1e6 / cpu}


# --- agreement -------------------------------------------------------------------------------------------------


def agreement(megabytes: float, texts_of: Iterable[str]) -> dict[str, Any]:
    """Decisions, reasons and cleaned texts of both, document by document."""
    import pyarrow as pa
    from datatrove.data import Document

    from lmlab.corpus.engine import apply
    from lmlab.corpus.steps.step import DOCUMENT

    texts = list(documents(megabytes, texts_of))
    theirs: list[tuple[bool, str]] = []
    filters = _datatrove_filters()
    for text in texts:
        document, verdict = Document(text=text, id="0"), True
        for step in filters:
            verdict = step.filter(document)
            if verdict is not True:
                break
        theirs.append((True, document.text) if verdict is True else (False, _reason(verdict)))
    rows = [{"id": str(i), "text": t, "kind": "prose", "keep": True, "bytes_read": 0} for i, t in enumerate(texts)]
    table = apply(_lmlab_steps(), pa.Table.from_pylist(rows, schema=DOCUMENT))
    ours = zip(table["keep"].to_pylist(), table["text"].to_pylist(), table["reason"].to_pylist(), strict=True)
    result: Counter[str] = Counter(documents=len(texts))
    differing = []
    for text, (kept, what), (keep, cleaned, reason) in zip(texts, theirs, ours, strict=True):
        result["kept by datatrove"] += kept
        result["kept by lmlab"] += keep
        result["same decision"] += kept == keep
        result["both keep, same text"] += kept and keep and what == cleaned
        if kept != keep or (kept and what != cleaned):
            differing.append({"datatrove": what if not kept else "kept", "lmlab": reason or "kept", "text": text})
    return {**result, "agreement": result["same decision"] / len(texts), "differing": differing}


def _reason(verdict: Any) -> str:
    return verdict[1] if isinstance(verdict, tuple) else "dropped"


# --- the whole -------------------------------------------------------------------------------------------------


def rules(megabytes: float, rounds: int, cores: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "documents"
        count, size = write_documents(source, megabytes)
        print(f"rules: {count:,} documents, {size / 1e6:.1f} MB of text, {rounds} rounds, medians\n")
        timed("lmlab", source, 1, size)  # compile, and fill the page cache
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(rounds):
            for n in cores:
                for name in CONTENDERS:
                    found.setdefault((name, n), []).append(timed(name, source, n, size))
    print("| what | cores | CPU s | wall s | MB a CPU second | times datatrove |\n|---|---|---|---|---|---|")
    middle = {key: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for key, runs in found.items()}
    for (name, n), row in middle.items():
        ratio = middle["datatrove", n]["cpu"] / row["cpu"]
        spread = [a["cpu"] / b["cpu"] for a, b in zip(found["datatrove", n], found[name, n], strict=True)]
        print(
            f"| {name} | {n} | {row['cpu']:.2f} | {row['wall']:.2f} | {row['rate']:.1f} | {ratio:.1f} "
            f"({min(spread):.1f} to {max(spread):.1f}) |"
        )


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "--do":
        name, source, out, cores = sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5]
        if ":" in cores:  # half of the files
            many = SHARDS // 2
            _datatrove_part(source, out, int(cores[2:]) * many, many)
        else:
            CONTENDERS[name](source, out, int(cores))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["all", "rules", "agreement", "dedup", "tokens"], default="all")
    parser.add_argument("--megabytes", type=float, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    wanted = parser.parse_args()
    if wanted.part in ("all", "agreement"):
        found = agreement(min(wanted.megabytes, 16), _texts())
        differing = found.pop("differing")
        print("agreement:", json.dumps(found))
        for each, n in Counter((d["datatrove"], d["lmlab"]) for d in differing).most_common():
            print(f"  datatrove {each[0]!r:.60}, lmlab {each[1]!r}: {n}")
        Path(tempfile.gettempdir(), "lmlab-differing.json").write_text(
            json.dumps(differing, ensure_ascii=False, indent=1)
        )
    if wanted.part in ("all", "rules"):
        rules(wanted.megabytes, wanted.rounds, wanted.cores)
    sizes = ["--megabytes", f"{wanted.megabytes:g}", "--rounds", f"{wanted.rounds}"]
    for part, (script, *arguments) in OTHERS.items():
        if wanted.part in ("all", part):
            print(f"\n{part}:", flush=True)
            subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *arguments, *sizes], check=True)


if __name__ == "__main__":
    main()
