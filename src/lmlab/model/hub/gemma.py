"""Gemma (2403.08295) and Gemma 2 (2408.00118) files: gated GELU, tied, the embedding times d_model^0.5, gains stored as w with
1 + w in use. Gemma 2 has two norms a branch, every other layer local, scores and logits capped.

Released code rounds the embedding's factor to the weights' type; in float32 it is d_model^0.5 here as there.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lmlab.model.config import ModelConfig
from lmlab.model.hub import llama, names
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import expect, unlike
from lmlab.model.hub.rotation import FULL_LAYER, WINDOW_LAYER, layer_types_of, odd_pattern, pattern_of

MODEL_TYPES = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM"}

_TABLE_2 = (
    llama.TOP
    | llama.ATTENTION
    | llama.FEED_FORWARD
    | {
        "blocks.{}.attention_norm": "model.layers.{}.input_layernorm",
        "blocks.{}.attention_post_norm": "model.layers.{}.post_attention_layernorm",
        "blocks.{}.feed_forward_norm": "model.layers.{}.pre_feedforward_layernorm",
        "blocks.{}.feed_forward_post_norm": "model.layers.{}.post_feedforward_layernorm",
    }
)
_TANH = "gelu_pytorch_tanh"


def _is_second(config: ModelConfig) -> bool:
    return config.norm_placement == "sandwich"


def misfit(config: ModelConfig) -> str | None:
    """Why a config cannot be held by these files, or None."""
    fixed = {"activation": "geglu-tanh", "embedding_scale": config.d_model**0.5}
    fixed["attention_out_bias"] = config.has_bias("qkv")
    held = llama.HELD | {"qkv_bias"}
    if not _is_second(config):
        return unlike(config, "gemma", fixed, held)
    held |= {"attention", "attention_scale", "attention_softcap", "logit_softcap"}
    problem = unlike(config, "gemma2", fixed | {"norm_placement": "sandwich"}, held) or odd_pattern(config)
    if problem is None and not math.isclose(_scalar(config), config.score_scale**-2, rel_tol=1e-6):
        problem = f"attention_scale is {config.score_scale}; gemma2 files hold one over the root of a whole number"
    return problem


def _scalar(config: ModelConfig) -> int:
    return round(config.score_scale**-2)


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    kind = "gemma2" if _is_second(config) else "gemma"
    hub = llama.decoder_to_hub(config, special, kind, MODEL_TYPES[kind])
    hub |= {"hidden_act": _TANH, "hidden_activation": _TANH}
    if _is_second(config):
        windows = layer_types_of(config)
        assert windows is not None
        hub |= {
            "layer_types": windows[0],
            "sliding_window": windows[1],
            "query_pre_attn_scalar": _scalar(config),
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.logit_softcap,
        }
    return hub


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    expect(hub, use_bidirectional_attention=False)
    activation = hub.get("hidden_activation") or hub.get("hidden_act") or _TANH
    if activation == "gelu":  # what the first files say; the models were trained with the tanh form
        activation = _TANH
    if activation != _TANH:
        raise ValueError(f"hidden_activation '{activation}' is not supported; expected '{_TANH}'")
    shape = llama.decoder_from_hub({"head_dim": 256} | hub | {"hidden_activation": activation}, tied=True)
    shape["embedding_scale"] = hub["hidden_size"] ** 0.5
    if hub.get("attention_bias"):
        shape |= {"qkv_bias": True, "attention_out_bias": True}
    if hub["model_type"] == "gemma2":
        layers = range(hub["num_hidden_layers"])
        types = hub.get("layer_types") or [FULL_LAYER if i % 2 else WINDOW_LAYER for i in layers]
        shape |= {
            "norm_placement": "sandwich",
            "attention": pattern_of(types, hub.get("sliding_window", 4096)),
            "attention_scale": hub.get("query_pre_attn_scalar", 256) ** -0.5,
            "attention_softcap": hub.get("attn_logit_softcapping", 50.0),
            "logit_softcap": hub.get("final_logit_softcapping", 30.0),
        }
    return ModelConfig(**shape)


def _table(config: ModelConfig) -> names.Table:
    return _TABLE_2 if _is_second(config) else llama.TABLE


def weights_to_hub(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under the file's names, gains less one. Exact for gains from 0.5 to 2, else to one rounding at 1."""
    moved = {name: tensor - 1 if name.endswith("norm.weight") else tensor for name, tensor in weights.items()}
    return names.to_hub(moved, _table(config))


def weights_from_hub(weights: dict[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """A file's tensors under our names, gains as 1 + w in float32, and the names of those that have no place."""
    found, left = names.from_hub(llama.cleaned(weights, config), config, _table(config))
    found = {name: 1 + tensor.float() if name.endswith("norm.weight") else tensor for name, tensor in found.items()}
    return found, left
