"""More rows in a trained model's vocabulary: for the tokens that a later training adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer, with_weights

TABLES = ("embedding.weight", "head.weight")


def with_tokens(model: Transformer, vocab_size: int, new: Sequence[int], seed: int) -> Transformer:
    """The model with at least `vocab_size` rows of embedding and head, in evaluation mode. All other weights are the
    model's own tensors.

    The rows of `new` ids, and any that are added, are drawn from N(0, s^2), s the table's own standard deviation: of a size
    that the trained layers know. (Radford et al. 2018 say only that they are randomly initialised.) Raises ValueError where
    fewer rows are asked for.
    """
    had = model.config.vocab_size
    if not 0 <= min(new, default=0) <= max(new, default=0) < max(vocab_size, had):
        raise ValueError(f"new ids {list(new)} lie outside a vocabulary of {max(vocab_size, had)}")
    size = max(vocab_size, had)
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = dict(model.state_dict())
    drawn = sorted({*new, *range(had, size)})
    for name in TABLES:
        if name in state:
            state[name] = _grown(state[name], size, drawn, generator)
    if "head_bias" in state:
        state["head_bias"] = torch.cat((state["head_bias"], torch.zeros(size - had)))
    made = with_weights(ModelConfig.model_validate(model.config.model_dump() | {"vocab_size": size}), state)
    made.kernel = model.kernel
    return made.eval()


def _grown(table_VD: Tensor, size: int, drawn: list[int], generator: torch.Generator) -> Tensor:
    grown = torch.zeros(size, table_VD.shape[1])
    grown[: len(table_VD)] = table_VD
    grown[drawn] = torch.randn(len(drawn), table_VD.shape[1], generator=generator) * table_VD.std()
    return grown
