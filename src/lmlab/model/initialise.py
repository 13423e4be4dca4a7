"""How random weights start. A rule gives the standard deviation of each matrix; gains start at 1, biases at 0."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lmlab.model.config import ModelConfig
from lmlab.model.norm import deepnorm_constants

EMBEDDINGS = ("embedding.weight", "position.weight", "relative_bias.weight")
WRITERS = ("attention.out.weight", "feed_forward.down.weight", "experts.down", "shared.down.weight")
"""Matrices that write to the residual stream."""

Rule = Callable[[ModelConfig, str, Tensor], float]


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Weights that are drawn: matrices, tables and stacks of experts' matrices; not gains, not biases."""
    return parameter.dim() >= 2 and not name.endswith("_bias")


def is_hidden(name: str, parameter: Tensor) -> bool:
    """A matrix between two hidden layers: no table and no head."""
    return is_matrix(name, parameter) and not name.endswith(EMBEDDINGS) and name != "head.weight"


def _branches(config: ModelConfig, name: str) -> int:
    """How many branches write to the residual stream of this weight's stack."""
    encoder = name.startswith("encoder.")
    return config.sizes(encoder).layers * (3 if config.has_encoder and not encoder else 2)


def _gpt2(config: ModelConfig, name: str, parameter: Tensor) -> float:
    """0.02; writers / sqrt(branches) (Radford et al. 2019)."""
    return 0.02 / _branches(config, name) ** 0.5 if name.endswith(WRITERS) else 0.02


def _small(config: ModelConfig, name: str, parameter: Tensor) -> float:
    """sqrt(2 / 5d) (1910.05895); writers 4 / (branches sqrt(d)), which is 2 / (L sqrt(d)) of a decoder (GPT-NeoX, 2204.06745)."""
    if name.endswith(WRITERS):
        return 4 / (_branches(config, name) * config.d_model**0.5)
    return (2 / (5 * config.d_model)) ** 0.5


def _fan_in(config: ModelConfig, name: str, parameter: Tensor) -> float:
    """1 / sqrt(inputs); q is smaller by what `attention_scale` leaves out (T5), a router by 0.1^0.5 (Switch: a tenth of the
    scale, which is a variance); the token embedding 1 where the head is another matrix or its input is scaled down (PaLM,
    T5), else 1 / sqrt(width)."""
    if name == "embedding.weight":
        scaled = config.logit_scale is not None or not config.tie_embeddings
        return 1.0 if scaled else config.hidden_width**-0.5
    if name.endswith(EMBEDDINGS):
        return 0.02
    std = parameter.shape[-1] ** -0.5
    if name.endswith("router.weight"):
        std *= 0.1**0.5
    if name.endswith("attention.q.weight") and config.attention_scale is not None:
        std *= config.sizes().head_dim ** -0.5 / config.attention_scale
    return std


def _deepnorm(config: ModelConfig, name: str, parameter: Tensor) -> float:
    """Xavier-normal; the gain is beta for feed-forward, v and out, 1 for q and k (2203.00555)."""
    if not is_hidden(name, parameter):
        return 0.02
    beta = deepnorm_constants(config, name.startswith("encoder.")).beta
    scaled = "feed_forward." in name or name.endswith(("attention.v.weight", "attention.out.weight"))
    gain = beta if scaled and ".router." not in name else 1.0
    return gain * (2 / (parameter.shape[-1] + parameter.shape[-2])) ** 0.5


def _mup(config: ModelConfig, name: str, parameter: Tensor) -> float:
    """1 / sqrt(inputs) for hidden matrices, 0.02 for tables and the head, whose input is divided by the width multiplier
    (2203.03466, table 8)."""
    return parameter.shape[-1] ** -0.5 if is_hidden(name, parameter) else 0.02


RULES: dict[str, Rule] = {"gpt2": _gpt2, "small": _small, "fan-in": _fan_in, "deepnorm": _deepnorm, "mup": _mup}


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Draw every weight of a Transformer: N(0, std^2) with the std of its config's rule."""
    config: ModelConfig = model.config  # type: ignore[assignment]
    rule, generator = RULES[config.initialisation], torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if is_matrix(name, parameter):
            nn.init.normal_(parameter, std=rule(config, name, parameter), generator=generator)
        else:
            nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)


def learning_rate_multipliers(model: nn.Module) -> dict[str, float]:
    """Factor on Adam's rate of each parameter: under muP 1 / (width multiplier) for hidden matrices, else 1
    (2203.03466, table 8)."""
    config: ModelConfig = model.config  # type: ignore[assignment]
    small = 1 / config.width_multiplier
    return {name: small if is_hidden(name, parameter) else 1.0 for name, parameter in model.named_parameters()}
