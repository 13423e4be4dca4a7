"""A recipe's pretraining on hardware that is not here: `lmlab plan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lmlab.device.hardware import HERE, Device
from lmlab.errors import Refused, nearest
from lmlab.model.config import ModelConfig
from lmlab.model.store import read_config, resolve
from lmlab.objective.build import lengths, window
from lmlab.recipe import Recipe, Step
from lmlab.train.optimizer import muon_type
from lmlab.train.parallel import ParallelConfig
from lmlab.train.plan import LADDER, START, shape_of_width
from lmlab.train.planner.choose import ROOM, Candidate, Work, consider
from lmlab.train.planner.time import peak_of
from lmlab.train.pretrain_config import PretrainConfig
from lmlab.train.ramp import Batches

DAY = 86_400.0
UTILISATION = 0.5
"""Share of the peak that a rank's own products reach: of published runs on A100 and H100, 0.4 to 0.55. An assumption that every
figure of time is proportional to; `--utilisation` sets it."""


def make(
    recipe: Recipe,
    device: Device,
    ranks: int,
    utilisation: float = UTILISATION,
    arm: str | None = None,
    rehearsed: bool = False,
) -> dict[str, Any]:
    """Everything `lmlab plan` says, as plain values. Bytes, seconds, FLOPs. `rehearsed`: also, under `dry_run`, what the first
    and the last rank hold when they take steps of the layout without the others.

    Raises Refused where the recipe has no pretraining, leaves open what only a measurement could decide, or cannot be laid
    out on so many devices.
    """
    if not 0 < utilisation <= 1:
        raise Refused(f"--utilisation {utilisation:g}: expected a share above 0, at most 1")
    if ranks < 1:
        raise Refused(f"--gpus {ranks}: expected 1 or more")
    steps = _arm(recipe, arm)
    step = next((each for each in steps if each.kind == "pretrain"), None)
    if step is None:
        raise Refused(f"recipe {recipe.name}: has no stage of kind pretrain to plan")
    config = step.config
    assert isinstance(config, PretrainConfig)
    precision = "bfloat16" if config.precision == "auto" else config.precision.removesuffix("-onednn")
    if not device.peak.get(precision):
        known = ", ".join(name for name, peak in device.peak.items() if peak)
        raise Refused(f"{device.name}: its speed in {precision} is not known, or it has none: expected one of {known}")

    def speed(shape: ModelConfig) -> float:
        return ranks * utilisation * peak_of(shape, shape.context_length, device, precision)

    shape = _shape(step, steps, config, speed)
    length = window(config.objective, shape.architecture, shape.context_length)
    source, target = lengths(config.objective, shape.architecture, shape.context_length)
    rows = max(1, config.batch_tokens // length)
    flops = rows * shape.flops(source, target, shape.context_length)
    long = _longest(shape, source, target)
    iteration = muon_type() if device.name == HERE else torch.bfloat16
    work = Work(shape, rows, long, flops, precision, config.optimizer, config.ema is not None, iteration)
    found = consider(work, device, ranks, utilisation)
    if not found:
        raise Refused(
            f"{ranks} devices: {rows} rows a step (batch_tokens {config.batch_tokens} / {length}) and {shape.sizes().heads} heads "
            "cannot be shared among so many; set pretrain.batch_tokens to a multiple of their tokens"
        )
    best = found[0]
    if not best.fits:
        need, has = best.memory.total / 2**30, ROOM * device.memory / 2**30
        raise Refused(
            f"{ranks} x {device.name}: the smallest layout needs {need:.1f} GiB on each ({_name(best)}), and {has:.1f} may be "
            "used; more devices, a shorter context, or a smaller model"
        )
    count = _steps(config, best)
    tokens = Batches(rows, length, config.batch_ramp).before(count) * length
    seconds = best.step.seconds * tokens / (rows * length)
    total = shape.parameters()
    dry = _rehearsals(work, best) if rehearsed else None
    return {
        "recipe": recipe.name,
        "stage": step.name,
        "device": device.name,
        "devices": ranks,
        "utilisation": utilisation,
        "precision": precision,
        "model": shape.model_dump(mode="json"),
        "parameters": {"total": total["total"], "active": total["active"]},
        "layout": {
            "pipeline": best.degrees.pipeline,
            "data": best.degrees.data,
            "context": best.degrees.context,
            "context_method": best.degrees.context_method,
            "expert": best.degrees.expert,
            "tensor": best.degrees.tensor,
            "stages_per_rank": best.degrees.stages_per_rank,
            "zero": best.degrees.zero,
            "recompute": best.degrees.recompute,
            "micro_batches": best.degrees.micro_batches,
            "rows": best.rows,
            "settings": {f"pretrain.{name}": value for name, value in best.degrees.settings().items()},
            "why": _why(found, device),
        },
        "memory": best.memory.parts(),
        "memory_available": device.memory,
        "steps": count,
        "tokens": tokens,
        "tokens_per_parameter": tokens / total["total"],
        "flops": flops / (rows * length) * tokens,
        "step_seconds": best.step.seconds,
        "tokens_per_second": rows * length / best.step.seconds,
        "mfu": flops / best.step.seconds / (ranks * device.peak[precision]),
        "shares": best.step.shares(),
        "seconds": seconds,
        "days": seconds / DAY,
        "device_hours": ranks * seconds / 3600,
        "alternatives": [_row(each) for each in found[1:6]],
        **({} if dry is None else {"dry_run": dry}),
    }


def _rehearsals(work: Work, best: Candidate) -> list[dict[str, Any]]:
    """Of the chosen layout's first rank and its last one: those of a pipeline differ."""
    from lmlab.train.planner.rehearse import rehearse

    config = ParallelConfig(data=best.degrees.data, **best.degrees.parallel())
    more: dict[str, Any] = {"rows": best.rows, "length": work.length, "precision": work.precision}
    more |= {"micro_batches": best.degrees.micro_batches}
    ranks = sorted({0, best.degrees.ranks - 1})
    return [vars(rehearse(work.shape, config, best.degrees.ranks, at, work.optimizer, **more)) for at in ranks]


def _arm(recipe: Recipe, arm: str | None) -> list[Step]:
    if arm is None:
        return next(iter(recipe.arms.values()))
    if arm not in recipe.arms:
        raise Refused(f"recipe {recipe.name}: no arm '{arm}'{nearest(arm, recipe.arms)}")
    return recipe.arms[arm]


def _shape(step: Step, steps: list[Step], config: PretrainConfig, speed: Callable[[ModelConfig], float]) -> ModelConfig:
    """The model's shape: a continued model's, the recipe's, or the widest that the minutes allow at the stated speed (FLOP/s)."""
    model = step.sources.get("model")
    if isinstance(model, str) and model not in {each.name for each in steps}:
        return read_config(resolve(model))
    tokenizer = step.sources.get("tokenizer")
    made = next((each for each in steps if each.name == tokenizer), None)
    vocabulary = getattr(made.config, "vocab_size", None) if made else None
    if vocabulary is None:
        from lmlab.text.tokenizer import Tokenizer, find_tokenizer

        if not isinstance(tokenizer, str):
            raise Refused(
                f"{step.name}: its vocabulary comes from a stage that has not run; give pretrain.from.tokenizer a path"
            )
        vocabulary = Tokenizer.load(find_tokenizer(tokenizer)).vocab_size
    if config.model.d_model is not None or config.minutes is None:
        return shape_of_width(config.model, config.model.d_model or START, vocabulary)
    length = config.model.context_length
    fitting = shape_of_width(config.model, LADDER[0], vocabulary)
    for width in LADDER[1:]:
        shape = shape_of_width(config.model, width, vocabulary)
        seen = config.minutes * 60 * speed(shape) / shape.flops_per_token(length)
        if seen >= config.tokens_per_parameter * shape.parameters()["total"]:
            fitting = shape
    return fitting


def _longest(shape: ModelConfig, source: float, target: float) -> int:
    """Tokens of a row as the network sees it: of an encoder-decoder the mean of both sides, which memory is linear in."""
    whole = (source + target) / 2 if shape.has_encoder else source + target
    return min(shape.context_length, max(1, round(whole)))


def _steps(config: PretrainConfig, best: Candidate) -> int:
    if config.steps is not None:
        return config.steps
    return max(1, int((config.minutes or 0.0) * 60 / best.step.seconds))


def _name(each: Candidate) -> str:
    d = each.degrees
    parts = [f"pipeline {d.pipeline}"]
    parts += [f"{d.stages_per_rank} stages a rank"] if d.stages_per_rank > 1 else []
    parts += [f"data {d.data}"]
    parts += [f"context {d.context} ({d.context_method})"] if d.context > 1 else []
    parts += [f"expert {d.expert}"] if d.expert > 1 else []
    parts += [f"tensor {d.tensor}", f"zero {d.zero}", f"recompute {d.recompute}"]
    return ", ".join(parts) + f", {each.rows} rows x {d.micro_batches} micro-batches"


def _row(each: Candidate) -> dict[str, Any]:
    return {
        "layout": _name(each),
        "fits": each.fits,
        "memory": each.memory.total,
        "memory_is_least": not each.traced,
        "step_seconds": each.step.seconds,
    }


def _why(found: list[Candidate], device: Device) -> list[str]:
    """The choice in words: what did not fit that is simpler, what it would be without each part of it, and what the next
    best costs."""
    best, lines, room = found[0], [], ROOM * device.memory / 2**30
    plain = [each for each in found if each.degrees.recompute == "none" and each.degrees.shares == each.degrees.data]
    plain = [each for each in plain if each.degrees.data == each.degrees.ranks and each.degrees.expert == 1]
    for each in sorted((each for each in plain if not each.fits), key=lambda each: each.degrees.zero):
        lines.append(f"zero {each.degrees.zero} alone needs {_size(each)} of {room:.1f} GiB")
    for name, value, without in _parts(best):
        rest = [each for each in found if getattr(each.degrees, name) == without]
        fitting = [each for each in rest if each.fits]
        if fitting:
            more = fitting[0].step.seconds / best.step.seconds - 1
            lines.append(f"{value}: without, the best ({_name(fitting[0])}) takes {more:.1%} longer")
        elif rest:
            lines.append(f"{value}: without, the smallest needs {_size(rest[0])} of {room:.1f} GiB")
        else:
            lines.append(f"{value}: without, rows or blocks cannot be shared among so many")
    rest = [each for each in found[1:] if each.fits]
    if rest:
        more = rest[0].step.seconds / best.step.seconds - 1
        lines.append(f"the next ({_name(rest[0])}) takes {more:.1%} longer")
    lines.append(
        "the fastest of those that fit, at equal speed the one with more room" if rest else "the only one that fits"
    )
    return lines


def _size(each: Candidate) -> str:
    """GiB on each rank."""
    return f"{'' if each.traced else 'at least '}{each.memory.total / 2**30:.1f}"


def _parts(each: Candidate) -> list[tuple[str, str, int]]:
    """What a layout has beside data parallelism: (a setting, in words, what it is without)."""
    d = each.degrees
    named = {
        "pipeline": f"pipeline {d.pipeline}",
        "stages_per_rank": f"{d.stages_per_rank} stages a rank",
        "context": f"context {d.context}",
        "expert": f"expert {d.expert}",
        "tensor": f"tensor {d.tensor}",
    }
    return [(name, words, 1) for name, words in named.items() if getattr(d, name) > 1]


def describe(found: dict[str, Any]) -> str:
    """The plan for people."""
    memory, layout, shares = found["memory"], found["layout"], found["shares"]
    settings = " ".join(f"{name}={value}" for name, value in layout["settings"].items())
    lines = [
        f"{found['recipe']}, stage {found['stage']}, on {found['devices']} x {found['device']}, {found['precision']}",
        f"model         {found['parameters']['total']:,} parameters, {found['parameters']['active']:,} of them for a token",
        f"layout        {settings}",
        f"              pipeline {layout['pipeline']} x data {layout['data']} x context {layout['context']} x tensor "
        f"{layout['tensor']}; {layout['rows']} rows a micro-batch and rank",
        *(f"  why         {line}" for line in layout["why"]),
        f"memory        {memory['total'] / 2**30:.2f} of {found['memory_available'] / 2**30:.1f} GiB on each at its peak",
        *(f"  {name:<12}{size / 2**30:.3f} GiB" for name, size in memory.items() if name != "total" and size),
        *(
            f"dry run       rank {each['rank']} has {each['blocks']} blocks and keeps {each['parameters']:,} numbers of weights; "
            f"a step of it peaks at {each['peak'] / 2**30:.2f} GiB"
            for each in found.get("dry_run", ())
        ),
        f"work          {found['steps']:,} steps, {found['tokens']:,} tokens ({found['tokens_per_parameter']:.3g} a parameter), "
        f"{found['flops']:.3g} FLOPs",
        f"speed         {found['tokens_per_second']:,.0f} tokens a second, if products reach {found['utilisation']:.0%} of the "
        f"peak (an assumption); MFU {found['mfu']:.1%}",
        f"  of a step   communication {shares['communication']:.1%}, recomputation {shares['recompute']:.1%}, bubble "
        f"{shares['bubble']:.1%}",
        f"time          {_time(found['seconds'])}, {found['device_hours']:,.1f} device hours",
    ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for size, unit in ((DAY, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
