"""Which plots each stage gets, out of its curves and its scores; what is absent is not drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lmlab.measure import Score
from lmlab.report.plots import Line, curve, dots
from lmlab.report.scores import at, is_percent, score
from lmlab.report.tasks import Task, pool, tasks_of
from lmlab.report.words import label_of

Report = Mapping[str, Any]

# (key as stages log it, title, unit). The first that is there of a group of keys is drawn.
WANTED: dict[str, tuple[tuple[tuple[str, ...], str, str], ...]] = {
    "pretrain": (
        (("lm", "loss"), "Training loss", "nats a token"),
        (("bits_per_byte", "heldout_bits_per_byte", "validation_bits_per_byte"), "Held-out text", "bits a byte"),
        (("lr",), "Learning rate", ""),
    ),
    "sft": (
        (("lm", "loss"), "Training loss", "nats an answer token"),
        (("accuracy",), "Token accuracy", ""),
        (("lr",), "Learning rate", ""),
    ),
    "finetune": (
        (("task",), "Task loss", "nats an example"),
        (("accuracy",), "Accuracy on training batches", ""),
        (("lm",), "Language-model loss beside it", "nats a token"),
        (("lr",), "Learning rate", ""),
    ),
    "reward": (
        (("loss",), "Ranking loss", "nats a pair"),
        (("accuracy", "pair_accuracy", "train_accuracy"), "Pairs ranked rightly in training", ""),
        (("margin",), "Margin between chosen and rejected", ""),
        (("lr",), "Learning rate", ""),
    ),
    "ppo": (
        (("reward", "reward_mean"), "Reward", "the reward model's score"),
        (("rule_score", "rule"), "Rule score", "never trained on"),
        (("kl", "kl_reference", "kl_mean"), "KL to the fine-tuned model", "nats an answer"),
        (("entropy",), "Entropy of the policy", "nats a token"),
        (("response_length", "length", "answer_tokens"), "Answer length", "tokens"),
        (("policy", "policy_loss", "loss"), "Policy loss", ""),
        (("value", "value_loss"), "Value loss", ""),
    ),
}
OTHER = (("loss",), "Training loss", ""), (("lr",), "Learning rate", "")
FEWEST = 5
"""Points that make a curve worth folding away under 'more'."""
BASELINES = {"xz": "xz -9e", "xz_primed": "xz primed", "ngram": "5-gram"}


def figures(name: str, report: Report) -> list[str]:
    """The plots of one stage, in reading order."""
    stage = report["stages"][name]
    kind, logged = stage["kind"], stage["curves"] if isinstance(stage.get("curves"), Mapping) else {}
    made: list[str] = []
    if kind == "pretrain":
        made += [_compression(name, stage), _under_baselines(name, stage, report)]
    if kind == "sft":
        made.append(_families(name, stage))
    if kind == "evaluate":
        made += evaluation(name, stage, report)
    for keys, title, unit in WANTED.get(kind, OTHER if logged else ()):
        key = next((k for k in keys if at(logged, k, "step")), None)
        if key is not None:
            before = score(at(stage, keys[0], "before")) if kind == "ppo" else None
            lines = {"before": before.value} if before is not None else {}
            made.append(curve(f"{name}-{keys[0]}", title, [_line(key, logged[key])], unit=unit, references=lines))
    return [each for each in made if each]


def more(name: str, stage: Mapping[str, Any]) -> list[str]:
    """Every other curve that the stage logged, drawn alike (at most eight)."""
    logged = stage["curves"] if isinstance(stage.get("curves"), Mapping) else {}
    shown = set()
    for keys, _, _ in WANTED.get(stage["kind"], OTHER):
        shown |= {next((k for k in keys if at(logged, k, "step")), keys[0])}
    hidden = {*shown, "seconds", "step", "tokens", "iteration"}
    rest = [k for k, series in logged.items() if k not in hidden and len(at(series, "step") or ()) >= FEWEST]
    return [curve(f"{name}-more-{i}", label_of(key), [_line(key, logged[key])]) for i, key in enumerate(rest[:8])]


def _line(key: str, series: Mapping[str, Any]) -> Line:
    return Line(label_of(key), series["step"], series["value"], series.get("low") or (), series.get("high") or ())


def _compression(name: str, stage: Mapping[str, Any]) -> str:
    """Bits per byte of the model beside its baselines."""
    bits = at(stage, "bits_per_byte")
    wanted = {"after": "this model", **BASELINES}
    named = {str(k): v for k, v in bits.items()} if isinstance(bits, Mapping) else {}
    rows = [(wanted.get(k, label_of(k)), {"bits": it}) for k in _order(named, wanted) if (it := score(named[k]))]
    return dots(f"{name}-bits", "Held-out text: fewer bits are better", rows, unit="bits a byte")


def _order(named: Mapping[str, Any], first: Mapping[str, str]) -> list[str]:
    """Known keys in our order, then the rest; `before` would squash the scale and stands in the table."""
    return [k for k in first if k in named] + [k for k in named if k not in first and k not in ("before", "change")]


def _under_baselines(name: str, stage: Mapping[str, Any], report: Report) -> str:
    """The loss as bits per byte of training text, over the baselines of held-out text.

    bits per byte = loss in nats a token / ln 2 / bytes a token; the tokenizer's own measure of bytes a token is used.
    """
    tokenizers = (s for s in report["stages"].values() if s["kind"] == "tokenizer")
    per_token = next((it for s in tokenizers if (it := score(at(s, "bytes_per_token", "train")))), None)
    series = at(stage, "curves", "lm") or at(stage, "curves", "loss")
    if at(stage, "objective", "name") not in (None, "causal-lm", "prefix-lm"):
        return ""  # its loss is not that of all tokens of a text
    if per_token is None or per_token.value <= 0 or not at(series, "step"):
        return ""
    factor = 1 / (math.log(2) * per_token.value)
    scaled = {k: [v * factor for v in series[k]] for k in ("value", "low", "high") if series.get(k)}
    bits = at(stage, "bits_per_byte") or {}
    lines = {label: it.value for key, label in BASELINES.items() if (it := score(at(bits, key)))}
    line = Line("training batches", series["step"], scaled["value"], scaled.get("low", ()), scaled.get("high", ()))
    return curve(f"{name}-bpb", "Learning to compress", [line], unit="bits a byte", references=lines)


def _families(name: str, stage: Mapping[str, Any]) -> str:
    families = at(stage, "exact_match", "families")
    rows = []
    for family, pair in families.items() if isinstance(families, Mapping) else ():
        if found := {side: it for side in ("before", "after") if (it := score(at(pair, side)))}:
            rows.append((str(family), found))
    return dots(f"{name}-families", "Exact match by family", rows, percent=True)


def evaluation(name: str, stage: Mapping[str, Any], report: Report) -> list[str]:
    """Stages by tasks: over all families by condition, each family at the plainest condition, and bits per byte."""
    stages = at(stage, "stages")
    scored = {str(k): v for k, v in stages.items() if isinstance(v, Mapping)} if isinstance(stages, Mapping) else {}
    tasks = tasks_of(scored)
    exact = [task for task in tasks if task.metric == "exact_match"]
    conditions = dict.fromkeys(task.condition for task in exact)
    families = {task.family for task in exact}
    by_condition = []
    for condition in conditions:
        alike = [t for t in exact if t.condition == condition]
        covered = len({t.family for t in alike})
        few = "" if covered == len(families) else f" ({covered} of {len(families)})"
        by_condition.append((condition + few, _pooled(scored, alike)))
    made = [
        dots(f"{name}-conditions", "Exact match by way of asking (families, if not all)", by_condition, percent=True)
    ]
    plainest = min(exact, key=_plainness).condition if exact else ""
    alike = [t for t in exact if t.condition == plainest and t.family]
    by_family = [(t.family, _pooled(scored, [t])) for t in alike]
    if len(by_family) > 1:
        made.append(dots(f"{name}-families", f"Exact match by family ({plainest})", by_family, percent=True))
    for task in tasks:
        if task.metric != "exact_match" and not task.family:
            made.append(_other(name, task, scored, report))
    return [each for each in made if each]


def _plainness(task: Task) -> tuple[int, bool, bool, int]:
    return task.shots or 0, task.steps, task.decoding != "greedy", len(task.rest)


def _pooled(scored: Mapping[str, Mapping[str, Any]], tasks: Iterable[Task]) -> dict[str, Score]:
    return {stage: it for stage, scores in scored.items() if (it := pool(scores, tasks))}


def _other(name: str, task: Task, scored: Mapping[str, Mapping[str, Any]], report: Report) -> str:
    rows = [(s, {label_of(task.name): it}) for s, scores in scored.items() if (it := score(scores.get(task.name)))]
    lines: dict[str, float] = {}
    if task.metric == "bits_per_byte":
        pretrains = [s for s in report["stages"].values() if s["kind"] == "pretrain"]
        for key, label in BASELINES.items() if pretrains else ():
            found = score(at(pretrains[-1], "bits_per_byte", key))
            lines |= {label: found.value} if found else {}
    title = label_of(task.name) + (", fewer is better" if task.metric == "bits_per_byte" else "")
    return dots(f"{name}-{task.name}", title, rows, percent=is_percent((task.name,)), references=lines)


def grid_figures(arms: Mapping[str, Mapping[str, Any]], paths: Iterable[str], first: str | None) -> list[str]:
    """The headline numbers, the main one first: arms as rows, the mean over seeds with its interval; of the main one also
    the difference from the first arm; and bits per byte by length, where the arms were read in longer windows."""
    made = []
    for index, path in enumerate(paths):
        parts = path.split(".")
        title, percent = f"{parts[0]}: {label_of('.'.join(parts[1:]).removesuffix('.after'))}", is_percent(parts)
        made.append(dots(f"arms-{index}", title, _by_arm(arms, "scores", path, "mean over seeds"), percent=percent))
        if index == 0 and first is not None and len(arms) > 1:
            rows = _by_arm(arms, "difference", path, "paired by seed")
            made.append(dots("arms-less", f"Less {first}", rows, percent=percent, references={first: 0.0}))
            made += _lengths(arms)
    return [each for each in made if each]


def _by_arm(
    arms: Mapping[str, Mapping[str, Any]], part: str, path: str, label: str
) -> list[tuple[str, Mapping[str, Score]]]:
    return [(arm, {label: it}) for arm, found in arms.items() if (it := score(found[part].get(path)))]


def _lengths(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Bits per byte over the window's length, and over the place in the longest window; one curve an arm."""
    made = []
    for key, title, note in (
        ("by_length", "The same text in longer windows", "tokens of a window, logarithmic"),
        ("by_position", "Places in the longest window", "last place of a stretch of the window, logarithmic"),
    ):
        lines = []
        for arm, found in arms.items():
            points = []
            for path, given in found["scores"].items():
                if path.rpartition(".")[0].endswith(f".{key}") and (it := score(given)):
                    # "64" is a length, "64-127" a stretch of places
                    end = int(path.rpartition(".")[2].rpartition("-")[2]) + (key == "by_position")
                    points.append((end, it.value, at(given, "spread") or 0.0))
            steps, values, spreads = zip(*sorted(points)) if points else ((), (), ())
            low, high = ([v + sign * s for v, s in zip(values, spreads)] for sign in (-1, 1))
            lines.append(Line(arm, steps, values, low, high))
        ticks = sorted({step for line in lines for step in line.step})
        made.append(curve(f"arms-{key}", title, lines, unit="bits a byte", note=note, ticks=ticks))
    return made
