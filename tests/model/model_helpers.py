"""Small models with random weights in every part, for the laws of the model."""

import torch

from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

USUAL = {"layers": 2, "d_model": 32, "heads": 4, "vocab_size": 50, "context_length": 24}
ARCHITECTURES = ("causal-decoder", "prefix-decoder", "encoder-decoder")
POSITIONS = ("learned", "sinusoidal", "relative-bias", "rope", "alibi", "transformer-xl", "none")
"""Those of every architecture; glm-2d is a prefix decoder's, alibi no encoder-decoder's."""


def small(**shape) -> ModelConfig:
    return ModelConfig(**{**USUAL, **shape})


def shaken(model: Transformer, seed: int = 0, size: float = 0.1) -> Transformer:
    """Random numbers added to every weight: gains that are not 1 and biases that are not 0 too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def make(seed: int = 0, **shape) -> Transformer:
    return shaken(Transformer(small(**shape)).initialise(seed), seed).eval()


def random_tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def pairs() -> list[tuple[str, str]]:
    """(architecture, position) of every pair that can be."""
    found = [(a, p) for a in ARCHITECTURES for p in POSITIONS if (a, p) != ("encoder-decoder", "alibi")]
    return [*found, ("prefix-decoder", "glm-2d")]
