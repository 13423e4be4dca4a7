"""OLMo 2 files (2501.00656): the norms stand after each branch, inside the residual; one norm over all heads' queries, one over
all keys."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lmlab.model.config import ModelConfig
from lmlab.model.hub import llama, names
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import unlike

MODEL_TYPES = {"olmo2": "Olmo2ForCausalLM"}

TABLE = (
    llama.TOP
    | llama.ATTENTION
    | llama.FEED_FORWARD
    | {
        "blocks.{}.attention_norm": "model.layers.{}.post_attention_layernorm",
        "blocks.{}.feed_forward_norm": "model.layers.{}.post_feedforward_layernorm",
    }
)
_FIXED: dict[str, Any] = {"norm_placement": "reordered", "qk_norm": True, "qk_norm_width": "all"}


def misfit(config: ModelConfig) -> str | None:
    """Why a config cannot be held by these files, or None."""
    fixed = _FIXED | {"attention_out_bias": config.has_bias("qkv"), "head_dim": config.d_model / config.heads}
    held = llama.HELD - {"head_dim"} | {"qkv_bias", "activation"}
    return unlike(config, "olmo2", fixed, held) or llama.odd_activation(config)


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    return llama.decoder_to_hub(config, special, "olmo2", MODEL_TYPES["olmo2"])


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    biases = {"qkv_bias": True, "attention_out_bias": True} if hub.get("attention_bias") else {}
    return ModelConfig.model_validate(llama.decoder_from_hub({"rms_norm_eps": 1e-5} | hub) | _FIXED | biases)


def weights_to_hub(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under the file's names."""
    return names.to_hub(weights, TABLE)


def weights_from_hub(weights: dict[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """A file's tensors under our names, and the names of those that have no place in the config."""
    return names.from_hub(llama.cleaned(weights, config), config, TABLE)
