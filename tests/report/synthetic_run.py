"""A run directory as the stages leave it, with numbers of a likely size, for the tests of the report."""

from __future__ import annotations

import functools
import json
import math
import random
from pathlib import Path
from typing import Any

ORDER = ("corpus", "tokenizer", "pretrain", "sft", "reward", "ppo", "evaluate")
FAMILIES = ("copy", "reverse", "case", "count", "look-up", "arithmetic", "docstring")
UNSEEN = FAMILIES[4:6]
SECONDS = dict(zip(ORDER, (21.4, 9.2, 238.0, 71.5, 44.0, 93.1, 66.6)))
STEPS = {"pretrain": 1600, "sft": 300, "reward": 150, "ppo": 80}
RIGHT = dict(zip(FAMILIES, (0.86, 0.62, 0.77, 0.48, 0.34, 0.28, 0.12)))
ITEMS = 32


def score(value: float, half: float, n: int) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def share(value: float, n: int) -> dict[str, Any]:
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.002) / n)
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def pair(before: float, after: float, half: float, n: int = 256) -> dict[str, Any]:
    """Before, after, and the change, which is sharper for being paired."""
    return {
        "before": score(before, half, n),
        "after": score(after, half, n),
        "change": score(after - before, 0.7 * half, n),
    }


def corpus() -> dict[str, Any]:
    sources = {
        "code": {"train": {"documents": 1198, "bytes": 14_203_113}, "heldout": {"documents": 88, "bytes": 911_002}},
        "docstrings": {
            "train": {"documents": 7011, "bytes": 4_110_233},
            "heldout": {"documents": 512, "bytes": 260_113},
        },
        "topics": {"train": {"documents": 74, "bytes": 731_220}, "heldout": {"documents": 6, "bytes": 44_018}},
    }
    for source in sources.values():
        source["read"] = {"documents": 9000, "bytes": 20_000_000}
    dropped = {
        "rules": {"documents": 1305, "bytes": 90_000, "reasons": {"too short": 1204, "too few letters": 101}},
        "exact_duplicates": {"documents": 310, "bytes": 70_000, "reasons": {"exact copy": 310}},
    }
    return {
        "documents": {"train": 8283, "heldout": 606},
        "bytes": {"train": 19_044_566, "heldout": 1_215_133},
        "rejected": 0,
        "sources": sources,
        "dropped": dropped,
        "redacted": {"e-mail": 214, "address": 31, "key": 2},
    }


def pretrain(jitter: float) -> dict[str, Any]:
    code = '    """Read up to size bytes."""\n    return self.raw.read(size)\n'
    return {
        "bits_per_byte": {
            "before": score(3.36, 0.02, 153),
            "after": score(1.094 + jitter, 0.024, 153),
            "xz": score(1.512, 0.031, 153),
            "xz_primed": score(1.301, 0.034, 153),
            "ngram": score(1.433, 0.028, 153),
            "excess": {"xz": score(-0.418, 0.02, 153)},
        },
        "parameters": 5_243_136,
        "tokens": 4_915_200,
        "flops": 1.2e14,
        "plan": {"steps": 1600, "precision": "bfloat16"},
        "samples": [
            {"prompt": "def read(self, size=-1):\n", "text": code},
            {"prompt": "Return a list of", "text": " the names of the modules that were imported & <loaded>."},
        ],
    }


def sft(jitter: float) -> dict[str, Any]:
    families = {f: {"before": share(0.01, 50), "after": share(RIGHT[f], 50)} for f in FAMILIES}
    samples = [
        {
            "id": f"{family}/{number}", "family": family, "prompt": f"{family.capitalize()} this: lantern {number}",
            "answer": "nretnal", "output": "nretnal", "parsed": "nretnal", "verdict": "right",
            "before": "the lantern is a\n", "verdict_before": "unparsed",
        }
        for family in FAMILIES
        for number in range(3)
    ]  # fmt: skip
    return {
        "exact_match": {
            "seen": {"before": share(0.011, 250), "after": share(0.62 + jitter, 250)},
            "unseen": {"before": share(0.0, 100), "after": share(0.09 + jitter, 100)},
            "families": families,
        },
        "verdicts": {f: {"before": {"right": 0, "wrong": 2}, "after": {"right": 30, "wrong": 20}} for f in FAMILIES},
        "samples": samples,
        "training": {"steps": 300, "rows": 19_200, "loss": 0.61},
    }


def reward(jitter: float) -> dict[str, Any]:
    answers = [
        {"text": "3", "rule_score": 1.4, "rank": 1, "reward": 1.21},
        {"text": "There are a few.", "rule_score": -0.2, "rank": 2, "reward": -0.4},
    ]
    return {
        "pair_accuracy": share(0.81 + jitter, 400),
        "pair_accuracy_by_kind": {"correct": share(0.86, 250), "shorter": share(0.74, 110)},
        "baselines": {"shorter": share(0.55, 400)},
        "calibration": {
            "expected_error": 0.041,
            "bins": [
                {"confidence": 0.55, "accuracy": share(0.57, 90)},
                {"confidence": 0.85, "accuracy": share(0.9, 31)},
            ],
        },
        "counts": {"train": {"prompts": 900, "pairs": 3600}, "test": {"prompts": 100, "pairs": 400}},
        "examples": [{"prompt": "Count the letter a in banana.", "answer": "3", "answers": answers}],
    }


def ppo(jitter: float) -> dict[str, Any]:
    return {
        "reward": pair(0.21, 1.12 + jitter, 0.09),
        "rule_score": pair(0.48, 0.66 + jitter, 0.05),
        "correct": {"before": share(0.44, 256), "after": share(0.51, 256), "change": score(0.07, 0.05, 256)},
        "kl": {"before": score(0.0, 0.0, 256), "after": score(2.31, 0.21, 256)},
        "entropy": {"before": score(1.02, 0.05, 256), "after": score(0.71, 0.05, 256)},
        "response_length": pair(14.2, 11.9, 0.8),
        "alarm": {"reward_hacking": False, "certain": False, "evidence": "both rose"},
        "samples": [
            {
                "family": "count", "prompt": "Count the letter a in banana.", "answer": "3", "before": "There is 2",
                "after": "3", "reward_before": -0.2, "reward_after": 1.4,
            }
        ],
    }  # fmt: skip


def items(seed: int) -> list[dict[str, Any]]:
    """items.jsonl of the evaluation: every model, family, way of asking and item."""
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for stage, gain in (("pretrain", 0.02), ("sft", 0.85), ("ppo", 0.95)):
        for text in range(153):
            bits = (1.06 if gain > 0.5 else 1.0) * 2048 * random.Random(text).uniform(0.8, 1.4)
            row = {"id": f"text/{text}", "stage": stage, "task": "bits_per_byte", "bits": bits, "bytes": 2048}
            rows.append({**row, "score": bits / 2048})
        for family in FAMILIES:
            asked = [(shots, "direct", "greedy") for shots in (0, 1, 4)]
            if family in ("arithmetic", "count"):
                asked += [(shots, "steps", "greedy") for shots in (0, 1, 4)]
                asked += [(0, "direct", "vote=8"), (0, "steps", "vote=8")]
            for shots, steps, decoding in asked:
                for item in range(ITEMS):
                    p = gain * RIGHT[family] + 0.02 * shots + (0.35 * gain if steps == "steps" else 0)
                    words = f"{steps}/{decoding}" if family in ("arithmetic", "count") else decoding
                    task = f"exact_match/{family}/shots={shots}/{words}"
                    # One draw an item and stage, so that conditions are paired as they are in a real run.
                    right = random.Random(f"{stage}{family}{item}{seed}").random() < p + 0.03 * chance.random()
                    rows.append({"id": f"{family}/{item}", "stage": stage, "task": task, "score": float(right)})
    return rows


def evaluate(seed: int) -> dict[str, Any]:
    stages: dict[str, dict[str, Any]] = {}
    for stage, bits in (("pretrain", 1.094), ("sft", 1.161), ("ppo", 1.172)):
        stages[stage] = {"bits_per_byte": score(bits, 0.024, 153)}
    found: dict[tuple[str, str], list[float]] = {}
    for row in (row for row in items(seed) if "bits" not in row):
        found.setdefault((row["stage"], row["task"]), []).append(row["score"])
    for (stage, task), rights in found.items():
        stages[stage][task] = share(sum(rights) / len(rights), len(rights))
    names = list(dict.fromkeys(task for each in stages.values() for task in each))
    return {
        "stages": stages,
        "pooled": {stage: {"exact_match/seen/shots=0": share(0.5, 160)} for stage in stages},
        "unparsed": {stage: {task: share(0.03, ITEMS) for task in names[1:4]} for stage in stages},
        "tasks": {name: f"What {name} asks." for name in names},
    }


def results(seed: int = 0) -> dict[str, dict[str, Any]]:
    """results.json of every stage."""
    jitter = random.Random(seed).uniform(-0.01, 0.01)
    return {
        "corpus": corpus(),
        "tokenizer": {
            "bytes_per_token": {"train": score(3.61, 0.02, 2000), "heldout": score(3.52, 0.05, 606)},
            "vocabulary": {"size": 4096, "special": 6, "used": {"train": 4090, "heldout": 3871}},
        },
        "pretrain": pretrain(jitter),
        "sft": sft(jitter),
        "reward": reward(jitter),
        "ppo": ppo(jitter),
        "evaluate": evaluate(seed),
    }


def metrics(name: str, seed: int = 0) -> list[dict[str, Any]]:
    """metrics.jsonl of a stage that learns."""
    chance = random.Random(f"{name}{seed}")
    rows: list[dict[str, Any]] = []
    for step in range(STEPS.get(name, 0)):
        noise, done = chance.gauss(0, 1), step / STEPS[name]
        row: dict[str, Any] = {"step": step, "lr": 3e-3 * min(1.0, step / 40 + 0.02) * (1 - 0.9 * done)}
        row |= {"seconds": 0.15 * step, "tokens_per_second": 21_800 + 300 * noise, "grad_norm": 1 + 0.1 * abs(noise)}
        if name in ("pretrain", "sft"):
            start, end = (8.3, 2.72) if name == "pretrain" else (3.9, 0.6)
            row["loss"] = row["lm"] = end + (start - end) * math.exp(-9 * done) + 0.06 * noise
        elif name == "reward":
            row |= {"loss": 0.69 - 0.3 * done + 0.04 * noise, "accuracy": min(1.0, 0.5 + 0.33 * done + 0.03 * noise)}
        else:
            row |= {"policy": 0.02 * noise, "value": 0.3 - 0.1 * done, "loss": 0.3 - 0.1 * done}
            if step % 4 == 0:
                rollout = {"reward": 0.21 + 0.9 * done + 0.08 * noise, "rule_score": 0.48 + 0.18 * done + 0.03 * noise}
                rows.append(
                    {"step": step, **rollout, "kl": 2.3 * done + 0.05 * abs(noise), "entropy": 1.02 - 0.31 * done}
                )
        rows.append(row)
    return rows


def config(name: str) -> dict[str, Any]:
    shape = {"layers": 6, "d_model": 256, "heads": 8}
    optimizer = {"name": "muon", "learning_rate": 3e-3, "matrix_learning_rate": 0.02}
    return {
        "pretrain": {"minutes": 4.0, "model": shape, "optimizer": optimizer, "clip": 1.0},
        "ppo": {"minutes": 1.5, "kl_coefficient": 0.05, "clip": 0.2, "train": {"optimizer": optimizer}},
    }.get(name, {"items": ITEMS})


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@functools.cache
def files(seed: int) -> dict[str, str]:
    """Every results.json, metrics.jsonl and items.jsonl of a run, by its path in the run."""
    found = {f"{name}/results.json": json.dumps(value) for name, value in results(seed).items()}
    rows = {f"{name}/metrics.jsonl": metrics(name, seed) for name in STEPS} | {"evaluate/items.jsonl": items(seed)}
    return found | {path: "".join(json.dumps(row) + "\n" for row in listed) for path, listed in rows.items()}


def make_run(folder: Path, *, seed: int = 0, recipe: bool = True, stages: tuple[str, ...] = ORDER) -> Path:
    """Write a finished run of `stages`; with `recipe`, recipe.yaml asks for all of ORDER."""
    folder.mkdir(parents=True, exist_ok=True)
    if recipe:
        text = "description: the whole life\n" + "".join(f"{name}: {{use: {name}}}\n" for name in ORDER)
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    machine = {"system": "Linux", "python": "3.11.9", "cores": 2, "lmlab": "0.1.0", "packages": {"torch": "2.11.0"}}
    entries = {}
    for name in stages:
        place = folder / name
        for path, text in files(seed).items():
            if path.startswith(f"{name}/"):
                place.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(text, encoding="utf-8")
        identity = f"{name}-{seed}".encode().hex() * 4
        common = {"kind": name, "seconds": SECONDS[name], "fingerprint": identity, "headline": {}}
        own = {
            "name": name,
            "seed": seed,
            "config": config(name),
            "machine": machine,
            "finished": "2025-03-01T12:00:00",
        }
        write_json(place / "provenance.json", {**common, **own, "outputs": {}})
        entries[name] = {**common, "status": "done"}
    write_json(folder / "run.json", {"lmlab": "0.1.0", "stages": entries})
    return folder


def make_grid(folder: Path, *, arms: int = 2, seeds: int = 3) -> Path:
    """A grid of arms and seeds; each later arm compresses better by 0.2 bits a byte."""
    for arm in range(arms):
        for seed in range(seeds):
            place = make_run(folder / f"pretrain.layers={2 + 2 * arm}" / f"seed-{seed}", seed=seed, recipe=False)
            path = place / "pretrain" / "results.json"
            data = json.loads(path.read_text(encoding="utf-8"))
            for end in ("value", "low", "high"):
                data["bits_per_byte"]["after"][end] -= 0.2 * arm
            write_json(path, data)
    return folder
