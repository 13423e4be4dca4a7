"""What a family's file has: a map of configs and a map of weights. `hub/__init__.py` lists the files.

The parts that families share: `fit` (which configs files hold, what is refused), `names` (weights under other names), `fused`
(q, k and v in one matrix), `rotation` (rotary positions and windows).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lmlab.model.config import ModelConfig

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that a `config.json` names. None: the model has no such token."""

    eos_id: int | None
    pad_id: int | None = None
    bos_id: int | None = None
    decoder_start_id: int | None = None
    """First token of an encoder-decoder's targets."""


class Family(Protocol):
    """A module of this folder. `weights_*` take whole state dicts; tensors keep their type."""

    MODEL_TYPES: dict[str, str]
    """`model_type` in config.json -> the class that opens it as a language model."""

    def misfit(self, config: ModelConfig) -> str | None:
        """Why these files cannot hold a config exactly, or None where they can."""

    def to_hub(self, config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
        """The `config.json` of a config that fits."""

    def from_hub(self, hub: dict[str, Any]) -> ModelConfig:
        """The config of a `config.json`. Raises ValueError naming what this model cannot honour."""

    def weights_to_hub(self, weights: Weights, config: ModelConfig) -> Weights:
        """Our names -> the file's."""

    def weights_from_hub(self, weights: Weights, config: ModelConfig) -> tuple[Weights, list[str]]:
        """The file's names -> ours, and the names that nothing here claims. Raises ValueError for a copy of a tied
        weight that is no copy."""
