"""What pretraining cannot be, found before any work: by its settings alone (also where a recipe is only planned), by this machine
and its processes, and by the model once it is decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.objective.build import missing
from lmlab.ranks import size
from lmlab.text.stage import TokenizerConfig
from lmlab.train import float8
from lmlab.train.parallel.layout import misfits, rank_misfits, shape_misfits
from lmlab.train.parallel.world import device_here
from lmlab.train.plan import shape_of_width
from lmlab.train.pretrain_config import PretrainConfig


def check(config: PretrainConfig, fillers: Mapping[str, Any]) -> str | None:
    """Whether there is a tokenizer, and the one that the recipe trains will have what the objective needs; and whether the
    model can be divided as the settings say. None where nothing is amiss."""
    made, model, shape = fillers.get("tokenizer"), fillers.get("model"), config.model
    if made is None and (model is None or str(model).startswith("preset:")):
        return (
            "needs a 'tokenizer': a stage of kind tokenizer before it, from.tokenizer=PATH, or the one of a from.model"
        )
    sized = None
    if model is None and shape.d_model is not None and isinstance(made, TokenizerConfig):
        try:
            sized = shape_of_width(shape, shape.d_model, made.vocab_size)
        except ValueError as error:
            return f"model: {error}"
    for problem in shape_misfits(config.parallel, sized):
        return problem
    if not isinstance(made, TokenizerConfig):
        return None
    return missing(config.objective, shape.architecture, shape.context_length, made.sentinels, made.added.__contains__)


def here(config: PretrainConfig) -> str | None:
    """What this machine, or the number of processes that run, lacks for the settings; None where it lacks nothing."""
    return next(rank_misfits(config.parallel, size()), None) or float8.lacking(config.precision, device_here())


def refuse_misfits(name: str, config: PretrainConfig, shape: ModelConfig) -> None:
    """Refuse a model that the processes cannot share so."""
    for problem in misfits(config.parallel, size(), shape):
        raise Refused(f"{name}: {problem}")
