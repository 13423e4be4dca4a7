"""As many steps as make an arm equal to the first: in training FLOPs, or in tokens read."""

from __future__ import annotations

import bisect
from typing import Any, Literal

from lmlab import recipe
from lmlab.config import Document
from lmlab.errors import Refused
from lmlab.objective.build import lengths, window
from lmlab.text.stage import TokenizerConfig
from lmlab.train.plan import shape_of_width
from lmlab.train.pretrain_config import PretrainConfig
from lmlab.train.ramp import Batches


def cost(steps: list[recipe.Step], what: Literal["flops", "tokens"]) -> tuple[int, Any]:
    """(steps, a function from steps to what they cost) of an arm's last pretraining: training FLOPs by the convention of
    `lmlab.model.count`, or tokens of text read."""
    config = next(step.config for step in reversed(steps) if step.kind == "pretrain")
    made = next(step.config for step in steps if step.kind == "tokenizer")
    assert isinstance(config, PretrainConfig) and isinstance(made, TokenizerConfig)
    if config.steps is None or config.model.d_model is None:
        raise Refused("claim: arms can be made equal only where pretrain.steps and pretrain.model.d_model are given")
    context = config.model.context_length
    shape = shape_of_width(config.model, config.model.d_model, made.vocab_size)
    of_window = window(config.objective, shape.architecture, context)
    batches = Batches(max(1, config.batch_tokens // of_window), of_window, config.batch_ramp)
    source, target = lengths(config.objective, shape.architecture, context)
    a_row = shape.flops(source, target, context) if what == "flops" else of_window
    return config.steps, lambda n: batches.before(n) * a_row


def equalise(document: Document, what: Literal["flops", "tokens"]) -> None:
    """Set `pretrain.steps` of every arm but the first to what comes nearest to the first one's cost."""
    arms = recipe.check(document, "claim").arms
    first = next(iter(arms.values()))
    asked, of = cost(first, what)
    for name, steps in arms.items():
        if steps is first:
            continue
        _, mine = cost(steps, what)
        above = 1 + bisect.bisect_left(range(1, 1 << 24), of(asked), key=mine)
        nearest = min((above - 1, above), key=lambda n: abs(mine(n) - of(asked)))
        document.data["arms"][name]["pretrain.steps"] = max(1, nearest)
