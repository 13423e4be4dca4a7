"""A model's weights in a longer context than the one that it was made for: what length extrapolation is measured on."""

from __future__ import annotations

import torch

from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

TABLES = {"learned": "a learned table of positions", "glm-2d": "its learned tables of positions"}
"""Position schemes that are a row of a table: past its end there is nothing. All others are functions of the position
or of a distance."""


def with_context(model: Transformer, length: int) -> Transformer:
    """The same weights, shared, in a model whose context is `length` tokens. What positions do not cover is computed by
    the same formula; nothing is stretched (for that there is `rope_scaling`).

    Raises Refused where positions are a learned table that has no rows for them.
    """
    config = model.config
    if length == config.context_length:
        return model
    if length > config.context_length and config.position in TABLES:
        raise Refused(f"{TABLES[config.position]} has no row past {config.context_length}")
    data = config.model_dump() | {"context_length": length}
    scaling = config.rope_scaling
    if scaling is not None and scaling.original_context is None:
        # The rotation must not change with the context that it is evaluated in.
        original = max(1, round(config.context_length / scaling.factor))
        data["rope_scaling"] = {**scaling.model_dump(), "original_context": original}
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced at once
        made = Transformer(ModelConfig.model_validate(data)).to(model.embedding.weight.device)
    weights = model.state_dict()
    if config.position in TABLES:
        rows = length + config.position_offset
        weights |= {key: each[:rows] for key, each in weights.items() if key.endswith("position.weight")}
    made.load_state_dict(weights, assign=True)
    made.kernel = model.kernel
    return made.train(model.training)
