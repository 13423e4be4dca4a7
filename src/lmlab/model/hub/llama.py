"""Llama (2302.13971) and its kin in the same names: Mistral (2310.06825), Qwen2 (2407.10671), Qwen3 (2505.09388).

All are pre-RMSNorm, gated feed-forward, RoPE. Mistral has a window in every layer; Qwen2 biases of q, k and v, and windows in
some layers; Qwen3 the norm of queries and keys. `layer_table` and `decoder_to_hub` serve other files with these names too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lmlab.model.config import ModelConfig
from lmlab.model.hub import names
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import GATED_OF, activation_name, activation_of, common, expect, unlike
from lmlab.model.hub.rotation import (
    WINDOW_LAYER,
    layer_types_of,
    odd_pattern,
    pattern_of,
    rope_from_hub,
    rope_to_hub,
)

MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

ATTENTION = {
    "blocks.{}.attention.q": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.attention.k": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.attention.v": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.attention.out": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.attention.q_norm": "model.layers.{}.self_attn.q_norm",
    "blocks.{}.attention.k_norm": "model.layers.{}.self_attn.k_norm",
}
FEED_FORWARD = {
    "blocks.{}.feed_forward.gate": "model.layers.{}.mlp.gate_proj",
    "blocks.{}.feed_forward.up": "model.layers.{}.mlp.up_proj",
    "blocks.{}.feed_forward.down": "model.layers.{}.mlp.down_proj",
}
PRE_NORMS = {
    "blocks.{}.attention_norm": "model.layers.{}.input_layernorm",
    "blocks.{}.feed_forward_norm": "model.layers.{}.post_attention_layernorm",
}
TOP = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
TABLE = TOP | ATTENTION | FEED_FORWARD | PRE_NORMS
BUFFERS = r"rotary_emb\.inv_freq"

HELD = frozenset(("kv_heads", "head_dim", "tie_embeddings", "rope_theta", "rope_scaling"))
"""Switches that every family with these names holds."""


def kind_of(config: ModelConfig) -> str:
    """The model_type whose files come nearest to a config."""
    if config.qk_norm:
        return "qwen3"
    windows = layer_types_of(config)
    biased, out = config.has_bias("qkv"), config.has_bias("attention_out")
    if windows is not None and WINDOW_LAYER in windows[0]:
        return "qwen2" if biased or len(set(windows[0])) > 1 else "mistral"
    return "qwen2" if biased and not out else "llama"


def misfit(config: ModelConfig) -> str | None:
    """Why a config cannot be held by these files, or None."""
    kind = kind_of(config)
    fixed: dict[str, Any] = {"qk_norm": kind == "qwen3"}
    held = HELD | {"activation", "attention"}
    if kind in ("llama", "qwen3"):
        fixed["attention_out_bias"] = config.has_bias("qkv")  # the files have one switch for the four
        held |= {"qkv_bias"}
    if kind == "llama":
        held |= {"feed_forward_bias"}
    if kind == "qwen2":
        fixed["qkv_bias"] = True
    return unlike(config, kind, fixed, held) or odd_activation(config) or odd_pattern(config)


def odd_activation(config: ModelConfig) -> str | None:
    """Why an activation is none of these files', or None."""
    return (
        None if config.activation in GATED_OF.values() else f"activation is {config.activation}; expected a gated one"
    )


def decoder_to_hub(config: ModelConfig, special: SpecialTokens, kind: str, architecture: str) -> dict[str, Any]:
    """What the `config.json` of every decoder with these names holds."""
    return common(config, kind, architecture, special) | {
        "hidden_size": config.d_model,
        "intermediate_size": config.sizes().d_ff,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.sizes().kv_heads,
        "head_dim": config.sizes().head_dim,
        "hidden_act": activation_name(config.activation, GATED_OF),
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.eps,
        **rope_to_hub(config),
        "attention_bias": config.has_bias("qkv"),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    }


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    kind = kind_of(config)
    hub = decoder_to_hub(config, special, kind, MODEL_TYPES[kind])
    windows = layer_types_of(config)
    assert windows is not None
    types, window = windows
    if kind == "llama":
        hub["mlp_bias"] = config.has_bias("feed_forward")
    elif kind == "mistral":
        hub["sliding_window"] = window
    else:
        # Releases that know no layer_types have windows from max_window_layers on.
        first = types.index(WINDOW_LAYER) if window else config.layers
        hub |= {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": first}
        hub["layer_types"] = types
    return hub


def decoder_from_hub(
    hub: dict[str, Any], tied: bool = False, theta: float = 10000.0, fraction: float | None = None
) -> dict[str, Any]:
    """The settings that every decoder with these names has; the arguments are the family's defaults, `fraction` None where it
    rotates whole heads.

    Raises ValueError for a rotation or an activation that this model has not.
    """
    rope = rope_from_hub(hub, theta, fraction)
    heads = hub["num_attention_heads"]
    shape: dict[str, Any] = {
        "layers": hub["num_hidden_layers"],
        "d_model": hub["hidden_size"],
        "heads": heads,
        "kv_heads": hub.get("num_key_value_heads") or heads,
        "head_dim": hub.get("head_dim") or hub["hidden_size"] // heads,
        "d_ff": hub["intermediate_size"],
        "vocab_size": hub["vocab_size"],
        "context_length": hub["max_position_embeddings"],
        "eps": hub.get("rms_norm_eps", 1e-6),
        "activation": activation_of(hub.get("hidden_activation") or hub.get("hidden_act") or "silu", GATED_OF),
        **rope,
    }
    named = hub.get("tie_word_embeddings")
    return shape | {"tie_embeddings": tied if named is None else bool(named)}


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    kind, shape = hub["model_type"], decoder_from_hub(hub)
    if kind == "mistral":
        window = hub.get("sliding_window", 4096)
        shape["attention"] = f"local({window})" if window else "full"
        expect(hub, layer_types=[WINDOW_LAYER if window else "full_attention"] * hub["num_hidden_layers"])
    elif kind in ("qwen2", "qwen3"):
        shape["attention"] = _windows(hub)
    if kind == "qwen2":
        shape["qkv_bias"] = True
    elif kind != "mistral" and hub.get("attention_bias"):
        shape |= {"qkv_bias": True, "attention_out_bias": True}
    if kind == "llama" and hub.get("mlp_bias"):
        shape["feed_forward_bias"] = True
    return ModelConfig(**shape, qk_norm=kind == "qwen3")


def _windows(hub: dict[str, Any]) -> str | tuple[str, ...]:
    layers = hub["num_hidden_layers"]
    window = hub.get("sliding_window", 4096) if hub.get("use_sliding_window") else None
    first = hub.get("max_window_layers", 28) if window else layers
    types = hub.get("layer_types") or ["full_attention" if i < first else WINDOW_LAYER for i in range(layers)]
    return pattern_of(types, window)


def weights_to_hub(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under the file's names."""
    return names.to_hub(weights, TABLE)


def weights_from_hub(weights: dict[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """A file's tensors under our names, and the names of those that have no place in the config."""
    return names.from_hub(cleaned(weights, config), config, TABLE)


def cleaned(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Without computed buffers and a tied head's copy; files of the bare model, which lack `model.`, get it."""
    if "embed_tokens.weight" in weights:
        weights = {names.with_prefix(name, "model.", TOP): each for name, each in weights.items()}
    weights = names.drop_buffers(weights, BUFFERS)
    if config.tie_embeddings:
        weights = names.drop_copies(weights, "model.embed_tokens.weight", ("lm_head.weight",))
    return weights
