"""The published Pythia scores as a table for `lmlab scale emergence`: a row a size, data set (as it is, deduplicated), checkpoint
and task, with compute, accuracy with no and with five examples and, for LAMBADA, the log-probability of the right word.

    python benchmarks/pythia_emergence.py $LMLAB_DATA/pythia_scores/scores.csv.gz pythia.csv [FIRST_STEP]
    lmlab scale emergence pythia.csv --hard acc --soft logp --unit data --family size

Scores with five examples begin at step 3,000: for `--few-shot acc5` that is the FIRST_STEP.
"""

from __future__ import annotations

import collections
import csv
import gzip
import math
import sys
from pathlib import Path

SIZES = {"70m": 70e6, "160m": 160e6, "410m": 410e6, "1b": 1e9, "1.4b": 1.4e9}
BATCH = 2_097_152
"""Tokens a step (2304.01373)."""
COLUMNS = ("size", "data", "task", "step", "compute", "acc", "acc5", "logp")


def table(source: Path, task: str = "lambada_openai", first: int = 1) -> list[dict[str, object]]:
    """Rows of the checkpoints from step `first` on, smallest size first; runs with other batches are left out."""
    found: dict[tuple[str, str, int], dict[str, float]] = collections.defaultdict(dict)
    with gzip.open(source, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            size, _, data = row["model"].replace("-bf16", "").partition("-")
            if row["task"] == task and "BS" not in data and int(row["step"]) >= first:
                name = row["metric"] + ("5" if row["shots"] == "5" else "")
                found[size, data or "standard", int(row["step"])][name] = float(row["value"])
    return [
        dict(zip(COLUMNS, (
            size, data, task, step, 6 * SIZES[size] * BATCH * step, each["acc"], each.get("acc5", ""), -math.log(each["ppl"]),
        )))
        for (size, data, step), each in sorted(found.items(), key=lambda each: (SIZES[each[0][0]], each[0]))
        if {"acc", "ppl"} <= set(each)
    ]  # fmt: skip


def write(rows: list[dict[str, object]], out: Path) -> None:
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    write(table(Path(sys.argv[1]), first=int(sys.argv[3]) if len(sys.argv) > 3 else 1), Path(sys.argv[2]))
