"""GLM-4 files in transformers' names (model_type glm; 2406.12793): half of each head rotated, neighbouring dimensions paired,
biases of q, k and v, gate and up in one matrix."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lmlab.model.config import ModelConfig
from lmlab.model.hub import llama, names
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import unlike
from lmlab.model.hub.rotation import rope_to_hub

MODEL_TYPES = {"glm": "GlmForCausalLM"}

_FUSED, _PARTS = "mlp.gate_up_proj.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight")


def misfit(config: ModelConfig) -> str | None:
    """Why a config cannot be held by these files, or None."""
    held = llama.HELD | {"rope_fraction", "qkv_bias", "activation"}
    return unlike(config, "glm", {"rope_pairing": "interleaved"}, held) or llama.odd_activation(config)


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    return llama.decoder_to_hub(config, special, "glm", MODEL_TYPES["glm"]) | rope_to_hub(config, default=0.5)


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    shape = llama.decoder_from_hub(hub, fraction=0.5)
    return ModelConfig(**shape, rope_pairing="interleaved", qkv_bias=bool(hub.get("attention_bias", True)))


def weights_to_hub(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under the file's names, gate above up."""
    return names.fuse_rows(names.to_hub(weights, llama.TABLE), _FUSED, _PARTS)


def weights_from_hub(weights: dict[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """A file's tensors under our names, and the names of those that have no place in the config."""
    return names.from_hub(llama.cleaned(names.split_rows(weights, _FUSED, _PARTS), config), config, llama.TABLE)
