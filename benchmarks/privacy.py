"""How much redaction finds, and how much of what it replaces was right.

    python benchmarks/privacy.py [--texts 4000] [--seed 0] [--labels tests/corpus/privacy_labels.jsonl] [--json]

Two sets: generated texts with look-alikes (`privacy_set.py`, which shares nothing with the detectors), and passages of
real text labelled by hand, stored as references (file, place, hash, spans) and read from the running Python's library
and, where LMLAB_DATA names the folder, from public benchmark files. A label is found if a span of its kind overlaps it; a
span is right if a label of its kind overlaps it. Intervals are Wilson's, 95%. Needs the extra [privacy].
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from lmlab.corpus.privacy.config import Redact
from lmlab.corpus.privacy.find import detectors, find
from lmlab.measure import proportion
from privacy_passages import passages
from privacy_set import generate

EVERYTHING = Redact(phones=True, handles=True, recogniser="keywords")


def measure(texts: Iterable[tuple[str, list[tuple[int, int, str]]]], config: Redact) -> dict[str, dict[str, list[int]]]:
    """kind -> {recall: [found, labels], precision: [right, spans]}."""
    chosen = detectors(config)
    counts: dict[str, dict[str, list[int]]] = {}

    def count(kind: str, what: str, hit: bool) -> None:
        pair = counts.setdefault(kind, {"recall": [0, 0], "precision": [0, 0]})[what]
        pair[0] += hit
        pair[1] += 1

    for text, labels in texts:
        spans = [(span.start, span.end, span.kind) for span in find(text, chosen)]
        for start, end, kind in labels:
            count(kind, "recall", any(k == kind and s < end and start < e for s, e, k in spans))
        for start, end, kind in spans:
            count(kind, "precision", any(k == kind and s < end and start < e for s, e, k in labels))
    return counts


def main() -> None:
    """Measure both sets and print a table each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--labels", type=Path, default=Path(__file__).parent.parent / "tests/corpus/privacy_labels.jsonl"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    generated = [(each.text, each.spans) for each in generate(options.texts, options.seed)]
    real, absent = passages(options.labels)
    sets = {"generated": (generated, ""), "labelled by hand": (real, f", {absent} more are not on this machine")}
    found = {}
    for name, (texts, note) in sets.items():
        counts = measure(texts, EVERYTHING)
        found[name] = {"texts": len(texts), "kinds": counts}
        if not options.json:
            print(
                f"\n{name}: {len(texts):,} texts{note}\n\n| kind | labels | recall | replaced | precision |\n|---|---|---|---|---|"
            )
            for kind, pair in sorted(counts.items()):
                recall, precision = pair["recall"], pair["precision"]
                cells = [str(proportion(*each)) if each[1] else "" for each in (recall, precision)]
                print(f"| {kind} | {recall[1]} | {cells[0]} | {precision[1]} | {cells[1]} |")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
