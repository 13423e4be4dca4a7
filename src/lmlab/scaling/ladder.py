"""A ladder: small models of growing compute, a law fitted to all but the last, the last predicted before it is trained.

    OUT/rung-N/seed-S/STAGE     ordinary runs of the recipe, one arm a rung
    OUT/ladder.json             the rungs, decided once
    OUT/predictions/seed-S.json what was predicted, written before the last rung's training begins, and never again
    OUT/ladder.jsonl            what happened in which order: rungs, measured, predicted, training, measured
    OUT/runs.csv                a row a run, for `lmlab scale fit`
    OUT/abilities.csv           of a recipe with a stage `abilities`: a row a run and item, for `lmlab scale emergence`
    OUT/results.json            predicted against measured

Run again: finished stages are skipped, a prediction is read back and held to the hash in the log.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmlab import recipe as recipes
from lmlab.config import Document, validate
from lmlab.corpus.shards import Shards
from lmlab.corpus.store import documents
from lmlab.errors import Failed, Refused
from lmlab.measure import proportion
from lmlab.progress import read_jsonl, say
from lmlab.provenance import digest_file
from lmlab.run import RunDirectory, write_atomic, write_json
from lmlab.scaling.abilities import TABLE, read_items
from lmlab.scaling.few import judge, posterior, rehearsal_errors, rehearse
from lmlab.scaling.rungs import LadderConfig, Rung, changes, check_budgets, check_recipe, rungs
from lmlab.scaling.table import to_csv
from lmlab.text.stage import TokenizerConfig
from lmlab.text.tokenizer import Tokenizer

IDENTITY = ("rung", "seed", "params", "tokens", "compute", "loss")
"""What stands before an item in abilities.csv."""
SAMPLE = 1 << 20
"""Characters that are encoded to find out how many tokens the text has."""


@dataclass(frozen=True)
class Ladder:
    """A checked ladder: the recipe with a rung an arm, the name of its pretraining stage, and the rungs."""

    recipe: recipes.Recipe
    stage: str
    settings: LadderConfig
    rungs: list[Rung]

    @property
    def fitted(self) -> list[Rung]:
        return self.rungs[:-1]

    @property
    def last(self) -> Rung:
        return self.rungs[-1]

    def part(self, found: Sequence[Rung], seeds: Sequence[int]) -> recipes.Recipe:
        """The recipe with some of the rungs and seeds."""
        arms = {rung.name: self.recipe.arms[rung.name] for rung in found}
        return dataclasses.replace(self.recipe, arms=arms, seeds=tuple(seeds))


def load(
    reference: str, overrides: Sequence[str] = (), budgets: Sequence[float] = (), seeds: int | None = None
) -> Ladder:
    """Read a recipe and cut it into rungs. `budgets` in FLOPs and a number of `seeds` (0, 1, ...) replace the recipe's.

    Raises Refused before any work: of budgets that do not grow, of fewer than three, of a last one under twice the one
    before; of a recipe with arms, or without one pretraining stage from scratch whose compute can be counted.
    """
    document, name = recipes.parsed(reference, overrides)
    for key in ("arms", "grid"):
        if key in document.data:
            raise Refused(f"{document.at((key,))}: {key}: a ladder's arms are its rungs; leave it out")
    settings = validate(LadderConfig, document.data.get("ladder") or {}, document, ("ladder",))
    settings = settings.model_copy(update={"budgets": tuple(budgets)}) if budgets else settings
    check_budgets(settings.budgets, "--budgets" if budgets else f"{document.at(('ladder', 'budgets'))}: ladder.budgets")
    if seeds is not None:
        document.data["seeds"] = list(range(seeds))
    stage, config, vocab_size = _stage(document, name)
    check_recipe(config, document.at((stage,)))
    found = rungs(config, settings, vocab_size)
    document.data["ladder"] = settings.model_dump(mode="json")
    document.data["arms"] = {rung.name: changes(rung, stage, config) for rung in found}
    return Ladder(recipes.check(document, name), stage, settings, found)


def _stage(document: Document, name: str) -> tuple[str, Any, int]:
    """(name, settings, vocabulary) of the one stage that pretrains."""
    steps = next(iter(recipes.check(document, name).arms.values()))
    found = [step for step in steps if step.kind == "pretrain"]
    if len(found) != 1:
        raise Refused(
            f"{document.source}: a ladder needs one stage of kind pretrain, found {len(found)}"
            + "".join(f", {step.name}" for step in found)
        )
    step = found[0]
    if "model" in step.sources:
        raise Refused(
            f"{document.at((step.name, 'from'))}: {step.name}.from.model: a ladder trains from random weights"
        )
    tokenizer = step.sources.get("tokenizer")
    for each in steps:
        if each.name == tokenizer and isinstance(each.config, TokenizerConfig):
            return step.name, step.config, each.config.vocab_size
    return step.name, step.config, Tokenizer.load(str(tokenizer)).vocab_size


def run(ladder: Ladder, out: Path) -> dict[str, Any]:
    """Train, predict, train, compare; returns what OUT/results.json holds. Raises Refused where there is too little text
    or OUT holds another ladder, Failed where a rung failed."""
    _begin(ladder, out)
    found: dict[str, Any] = {}
    for count in range(1, len(ladder.recipe.seeds) + 1):
        seeds = ladder.recipe.seeds[:count]
        recipes.run(ladder.part(ladder.fitted, seeds), out)
        _predict(ladder, out, seeds[-1])
        recipes.run(ladder.part(ladder.rungs, seeds), out)
        _measured(ladder, out, seeds[-1], ladder.rungs)
        _write_tables(ladder, out, seeds)
        found = _results(ladder, out, seeds)
    return found


def _begin(ladder: Ladder, out: Path) -> None:
    """Note the rungs, make what comes before pretraining, and count the text."""
    plan = {"ladder": ladder.settings.model_dump(mode="json"), "rungs": [rung.to_json() for rung in ladder.rungs]}
    with RunDirectory(out):
        path = out / "ladder.json"
        if not path.exists():
            write_json(path, plan)
            _log(out, "rungs", rungs=len(ladder.rungs))
        elif json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(plan)):
            raise Refused(f"{out}: holds another ladder, of other budgets or rules (ladder.json); choose another --out")
    names = [step.name for step in ladder.recipe.arms[ladder.last.name]]
    before = names[: names.index(ladder.stage)]
    if before:
        recipes.run(ladder.part(ladder.fitted, ladder.recipe.seeds[:1]), out, until=before[-1])
    text = _text(ladder, out)
    say(f"text: about {text:,} tokens to train on")
    for rung in ladder.rungs:
        say(
            f"{rung.name}: {rung.flops:.3g} FLOPs, d_model {rung.d_model}, {rung.params:,} parameters, {rung.steps:,} steps of "
            f"{rung.batch_tokens:,} = {rung.tokens:,} tokens, {rung.tokens / text:.2f} epochs"
        )
    if ladder.last.tokens > ladder.settings.max_epochs * text:
        raise Refused(
            f"{out}: {ladder.last.name} reads {ladder.last.tokens:,} tokens, {ladder.last.tokens / text:.1f} epochs of a text of "
            f"about {text:,}; expected at most {ladder.settings.max_epochs:g} (ladder.max_epochs): more text, or smaller budgets"
        )


def _text(ladder: Ladder, out: Path) -> int:
    """About how many tokens the training text has: its characters, by the tokens of the first of them."""
    step = next(step for step in ladder.recipe.arms[ladder.last.name] if step.name == ladder.stage)
    root = _place(out, ladder.fitted[0], ladder.recipe.seeds[0])
    corpus, tokenizer = (_source(root, str(step.sources[role])) for role in ("corpus", "tokenizer"))
    encoder, characters, sampled, tokens = Tokenizer.load(tokenizer), 0, 0, 0
    for row in documents(corpus, "train"):
        characters += len(row["text"])
        if sampled < SAMPLE:
            sampled, tokens = sampled + len(row["text"]), tokens + 1 + len(encoder.encode(row["text"]))
    if not characters:
        raise Failed(f"{corpus}: holds no training text")
    return round(characters * tokens / sampled)


def _source(root: Path, name: str) -> Path:
    return root / name if (root / name / "provenance.json").exists() else Path(name)


def _place(out: Path, rung: Rung, seed: int) -> Path:
    return out / rung.name / f"seed-{seed}"


def _predict(ladder: Ladder, out: Path, seed: int) -> None:
    """Write the prediction of a seed's last rung, unless it was written; Refused where that rung is there already."""
    rows = _measured(ladder, out, seed, ladder.fitted)
    path = out / "predictions" / f"seed-{seed}.json"
    logged = [each for each in _read_log(out) if each["event"] == "predicted" and each["seed"] == seed]
    if logged:
        if not path.exists() or digest_file(path) != logged[0]["sha256"]:
            raise Failed(f"{path}: is not the prediction that the log has; a prediction is never made twice")
        made = json.loads(path.read_text(encoding="utf-8"))["fitted"]
        if [(row["rung"], row["loss"]) for row in made] != [(row["rung"], row["loss"]) for row in rows]:
            raise Refused(f"{path}: was made from other runs than those there now; choose another --out")
    elif (_place(out, ladder.last, seed) / ladder.stage).exists():
        raise Refused(f"{_place(out, ladder.last, seed)}: was trained before it was predicted; choose another --out")
    else:
        compute, loss = (np.array([row[key] for row in rows]) for key in ("compute", "loss"))
        law = ladder.settings.law
        drawn = posterior(compute, loss, law)
        predicted = drawn.predict(ladder.last.flops)
        write_json(
            path,
            {
                "rung": ladder.last.name,
                "compute": ladder.last.flops,
                **predicted,
                "law": law,
                "constants": drawn.constants(),
                "fitted": rows,
                "rehearsal": rehearse(compute, loss, law),
                "rehearsal_errors": rehearsal_errors(compute, loss),
            },
        )
        _log(out, "predicted", seed=seed, rung=ladder.last.name, sha256=digest_file(path), **predicted)
        say(
            f"seed {seed}, law {law}: {ladder.last.name} predicted at {predicted['predicted']:.4f} nats a token, 90% interval "
            f"{predicted['low']:.4f} to {predicted['high']:.4f}"
        )
    if not any(each["event"] == "training" and each["seed"] == seed for each in _read_log(out)):
        _log(out, "training", seed=seed, rung=ladder.last.name)


def _measured(ladder: Ladder, out: Path, seed: int, found: Sequence[Rung]) -> list[dict[str, Any]]:
    """Rows of finished rungs, each noted in the log when it is first seen."""
    seen = {(each["seed"], each["rung"]) for each in _read_log(out) if each["event"] == "measured"}
    rows = [_row(ladder, out, rung, seed) for rung in found]
    for row in rows:
        if (seed, row["rung"]) not in seen:
            _log(out, "measured", seed=seed, rung=row["rung"], loss=row["loss"])
    return rows


def _row(ladder: Ladder, out: Path, rung: Rung, seed: int) -> dict[str, Any]:
    """A run as a row of runs.csv; the loss is nats a token over the held-out documents, each read whole."""
    place = _place(out, rung, seed) / ladder.stage
    results = json.loads((place / "results.json").read_text(encoding="utf-8"))
    heldout = Shards(place / "tokens" / "heldout", verify=False)
    bits = results["bits_per_byte"]["after"]["value"]
    return {
        "rung": rung.name,
        "seed": seed,
        "fitted": int(rung in ladder.fitted),
        "params": rung.params,
        "params_no_embed": rung.params_no_embed,
        "tokens": results["tokens"],
        "compute": results["flops"],
        "steps": rung.steps,
        "batch_tokens": rung.batch_tokens,
        "d_model": rung.d_model,
        "epochs": results["epochs"],
        "loss": bits * math.log(2) * results["heldout_bytes"] / (len(heldout.tokens) - len(heldout)),
        "bits_per_byte": bits,
    }


def _write_tables(ladder: Ladder, out: Path, seeds: Sequence[int]) -> None:
    rows = [_row(ladder, out, rung, seed) for seed in seeds for rung in ladder.rungs]
    write_atomic(out / "runs.csv", to_csv(rows))
    asked = [step.name for step in ladder.recipe.arms[ladder.last.name] if step.kind == "abilities"]
    heads = [({key: row[key] for key in IDENTITY}, out / row["rung"] / f"seed-{row['seed']}") for row in rows]
    items = [row for head, place in heads for stage in asked for row in read_items(place / stage, head)]
    if items:
        write_atomic(out / TABLE, to_csv(items))


def _results(ladder: Ladder, out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Predicted against measured, a row a seed, and over the seeds."""
    rows = []
    for seed in seeds:
        made = json.loads((out / "predictions" / f"seed-{seed}.json").read_text(encoding="utf-8"))
        predicted = {key: made[key] for key in ("predicted", "low", "high")}
        rows.append(
            {"seed": seed, "law": made["law"], **judge(predicted, _row(ladder, out, ladder.last, seed)["loss"])}
        )
    inside = sum(row["inside"] for row in rows)
    found = {
        "rungs": [rung.to_json() for rung in ladder.rungs],
        "reach": ladder.last.flops / ladder.fitted[-1].flops,
        "predictions": rows,
        "inside": proportion(inside, len(rows)).to_json(),
        "relative_error": {
            "median": float(np.median([abs(row["relative_error"]) for row in rows])),
            "max": max(abs(row["relative_error"]) for row in rows),
        },
        "width": {"median": float(np.median([row["width"] for row in rows])), "max": max(row["width"] for row in rows)},
    }
    write_json(out / "results.json", found)
    return found


def _read_log(out: Path) -> list[dict[str, Any]]:
    return read_jsonl(out / "ladder.jsonl")


def _log(out: Path, event: str, **more: Any) -> None:
    """Append a line: rewritten whole, so that a kill leaves no half of one."""
    kept = [*_read_log(out), {"event": event, "time": time.strftime("%FT%T%z"), **more}]
    write_atomic(out / "ladder.jsonl", "".join(json.dumps(each) + "\n" for each in kept))


def describe(found: Mapping[str, Any], out: Path) -> str:
    """For people."""
    lines = [f"{'rung':<9} {'FLOPs':>9} {'d_model':>7} {'params':>12} {'tokens':>14} {'steps':>8}"]
    lines += [
        f"{r['name']:<9} {r['flops']:>9.3g} {r['d_model']:>7} {r['params']:>12,} {r['tokens']:>14,} {r['steps']:>8,}"
        for r in found["rungs"]
    ]
    lines.append(f"the last, {found['reach']:.3g} times the compute of the largest fitted, in nats a token:")
    lines += [
        f"  seed {r['seed']}, law {r['law']}: predicted {r['predicted']:.4f}, 90% {r['low']:.4f} to {r['high']:.4f} "
        f"({r['width']:.1%} wide), "
        f"measured {r['measured']:.4f}, error {r['relative_error']:+.2%}, {'inside' if r['inside'] else 'outside'}"
        for r in found["predictions"]
    ]
    count = len(found["predictions"])
    lines.append(
        f"inside in {round(found['inside']['value'] * count)} of {count}; error {found['relative_error']['median']:.2%} in the "
        f"median, {found['relative_error']['max']:.2%} at most; interval {found['width']['max']:.1%} wide at most"
    )
    return "\n".join([*lines, f"runs: {out / 'runs.csv'}   order of events: {out / 'ladder.jsonl'}"])
