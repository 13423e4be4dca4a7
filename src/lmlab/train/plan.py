"""One dial: how long may pretraining take on this machine? Shape, steps, precision and kernel follow, and are printed."""

from __future__ import annotations

import bisect
import math
from typing import Any

from pydantic import Field, ValidationError, model_validator

from lmlab.model.config import ModelConfig, Parts
from lmlab.train.fastest import KERNELS, can_compile, measure
from lmlab.train.ramp import Batches, RampConfig


class Shape(Parts):
    """The model's shape and parts; sizes that are left out are derived from the minutes."""

    layers: int | None = Field(default=None, ge=1)
    d_model: int | None = Field(default=None, ge=8)
    """Width of the residual stream."""
    heads: int | None = Field(default=None, ge=1)
    context_length: int = Field(default=256, ge=8)
    """Tokens of a training window, and the longest sequence of the model."""

    @model_validator(mode="after")
    def _possible(self) -> Shape:
        """What cannot be is refused when the recipe is read, not when the stage starts."""
        shape_of_width(self, self.d_model or LADDER[0], 4096)
        return self


LADDER = tuple(64 * rung for rung in range(1, 33))
"""Widths that the dial may choose."""
START = 192
"""The width that is measured first, and that stays where neither minutes nor a width are given."""


def shape_of_width(given: Shape, d_model: int, vocab_size: int) -> ModelConfig:
    """The model of a width: one layer for every 48 of it, heads of 64 (the ladder's rule, where the recipe is silent)."""
    named = {key: value for key, value in given.model_dump().items() if value is not None}
    derived = {"layers": max(2, round(d_model / 48)), "d_model": d_model, "vocab_size": vocab_size}
    merged = {**derived, **named}
    merged.setdefault("heads", max(1, merged["d_model"] // 64))
    try:
        return ModelConfig.model_validate(merged)
    except ValidationError as error:
        raise ValueError(
            "; ".join(str(problem["msg"]).removeprefix("Value error, ") for problem in error.errors())
        ) from None


def make_plan(
    given: Shape,
    vocab_size: int,
    *,
    minutes: float | None,
    steps: int | None,
    batch_tokens: int,
    precision: str,
    kernel: str = "auto",
    compile_wish: bool | None,
    tokens_per_parameter: float,
    window: int | None = None,
    lengths: tuple[float, float] | None = None,
    ramp: RampConfig | None = None,
    fixed: ModelConfig | None = None,
    ranks: int = 1,
) -> dict[str, Any]:
    """Decide what the recipe leaves open. Reads the clock, unless steps, width, precision and kernel are all given: call
    it through `Context.plan`.

    Width: the largest rung whose run of `minutes` still sees `tokens_per_parameter` tokens a parameter, at the training
    speed measured on the rung itself. An objective makes a source and a target of `lengths` tokens out of a text's `window`
    (default: the context's length, all of it target). `fixed`: the shape of a model that is continued. `ranks`: processes
    that share each step; all are taken to be as fast as this one, and what they tell each other to cost nothing.
    """
    context = given.context_length
    length = window or context
    source, target = lengths or (0.0, float(length))
    rows = max(1, batch_tokens // length)
    probe_rows = min(max(1, rows * length // context), 16)
    precisions = (precision,) if precision != "auto" else ("float32", "float32-onednn", "bfloat16")
    start = fixed or shape_of_width(given, given.d_model or START, vocab_size)
    kernels = (kernel,) if kernel != "auto" else KERNELS
    table: list[dict[str, Any]] = []
    best, chosen, speed = {"precision": precision, "kernel": kernel}, start, 0.0
    sized = steps is not None and (minutes is None or given.d_model is not None or fixed is not None)
    if not sized or "auto" in (precision, kernel):
        table = measure(start, probe_rows, context, precisions, kernels)
        best, speed = table[0], table[0]["tokens_per_second"]
    if minutes is not None and given.d_model is None and fixed is None:
        flops = speed * ranks * start.flops_per_token(context)
        for width in LADDER:
            shape = shape_of_width(given, width, vocab_size)
            expected = minutes * 60 * flops / shape.flops(source, target, context) * length
            if width == LADDER[0] or expected >= tokens_per_parameter * shape.parameters()["total"]:
                chosen, speed = shape, flops / ranks / shape.flops_per_token(context)
        if chosen != start:
            speed = measure(chosen, probe_rows, context, (best["precision"],), kernels)[0]["tokens_per_second"]
    # Measured in tokens of full rows; a window costs its source and its target.
    speed *= ranks * length * chosen.flops_per_token(context) / chosen.flops(source, target, context)
    seconds = (minutes or 0) * 60
    steady = ramp is None  # a compiled step is made anew for each size of batch
    compiled = compile_wish if compile_wish is not None else steady and can_compile() and seconds >= 90
    if steps is None:
        overhead = 25.0 if compiled else 0.0
        gain = 1.08 if compiled else 1.0
        usable = max(0.3 * seconds, 0.95 * seconds - overhead)
        steps = max(10, _steps_of(usable * speed * gain * 0.9, rows, length, ramp))
    windows = Batches(rows, length, ramp).before(steps)
    return {
        "model": chosen.model_dump(mode="json"),
        "parameters": chosen.parameters(),
        "precision": best["precision"],
        "kernel": best["kernel"],
        "compile": compiled,
        "steps": steps,
        "rows": rows,
        "length": length,
        "tokens": windows * length,
        "flops": windows * chosen.flops(source, target, context),
        "measured": table,
    }


def _steps_of(tokens: float, rows: int, length: int, ramp: RampConfig | None) -> int:
    """Steps that see about so many tokens, and no more."""
    batches = Batches(rows, length, ramp)
    return bisect.bisect_right(range(math.ceil(tokens)), tokens, key=batches.tokens_before) - 1
