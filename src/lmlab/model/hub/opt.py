"""OPT files (2205.01068): learned positions from row 2 on; the 350M model has post-LayerNorm and a narrow embedding."""

from __future__ import annotations

from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import PLAIN, PLAIN_OF, activation_in, activation_name, common, expect, setting, unlike
from lmlab.model.hub.names import Names

MODEL_TYPES = {"opt": "OPTForCausalLM"}

_EPS = 1e-5  # of every norm, by the code; the files do not say
_LAYER = "model.decoder.layers.{}"
TABLE = {
    "embedding": "model.decoder.embed_tokens",
    "position": "model.decoder.embed_positions",
    "project_in": "model.decoder.project_in",
    "project_out": "model.decoder.project_out",
    "final_norm": "model.decoder.final_layer_norm",
    "head": "lm_head",
    "blocks.{}.attention.q": f"{_LAYER}.self_attn.q_proj",
    "blocks.{}.attention.k": f"{_LAYER}.self_attn.k_proj",
    "blocks.{}.attention.v": f"{_LAYER}.self_attn.v_proj",
    "blocks.{}.attention.out": f"{_LAYER}.self_attn.out_proj",
    "blocks.{}.attention_norm": f"{_LAYER}.self_attn_layer_norm",
    "blocks.{}.feed_forward.up": f"{_LAYER}.fc1",
    "blocks.{}.feed_forward.down": f"{_LAYER}.fc2",
    "blocks.{}.feed_forward_norm": f"{_LAYER}.final_layer_norm",
}
NAMES = Names(
    TABLE,
    prefix="model.",
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why OPT files cannot hold a config, or None."""
    if config.norm_placement == "post" and config.has_final_norm:
        return "final_norm is True, these files have one with norm_placement pre only"
    if config.embedding_dim == config.d_model:
        return "embedding_dim is d_model; opt files hold projections to another width only"
    fixed: dict[str, Any] = {
        "norm": "layernorm",
        "norm_bias": True,
        "eps": _EPS,
        "norm_placement": {"pre", "post"},
        "activation": PLAIN,
        "position": "learned",
        "position_offset": 2,
        "attention_out_bias": config.has_bias("qkv"),
        "feed_forward_bias": config.has_bias("qkv"),
    }
    return unlike(config, "opt", fixed, ("embedding_dim", "final_norm", "qkv_bias", "tie_embeddings"))


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    return common(config, "opt", MODEL_TYPES["opt"], special) | {
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "word_embed_proj_dim": config.hidden_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "ffn_dim": config.sizes().d_ff,
        "activation_function": activation_name(config.activation, PLAIN_OF),
        "do_layer_norm_before": config.norm_placement == "pre",
        "_remove_final_layer_norm": not config.has_final_norm,
        "enable_bias": config.has_bias("qkv"),
        "layer_norm_elementwise_affine": True,
        "dropout": config.dropout,
        "attention_dropout": 0.0,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    expect(hub, layer_norm_elementwise_affine=True)
    d_model, before = hub["hidden_size"], hub.get("do_layer_norm_before", True)
    narrow = setting(hub, "word_embed_proj_dim", default=d_model)
    return ModelConfig(
        layers=hub["num_hidden_layers"],
        d_model=d_model,
        heads=hub["num_attention_heads"],
        d_ff=setting(hub, "ffn_dim", default=4 * d_model),
        vocab_size=hub["vocab_size"],
        context_length=hub["max_position_embeddings"],
        embedding_dim=None if narrow == d_model else narrow,
        norm="layernorm",
        norm_bias=True,
        eps=_EPS,
        norm_placement="pre" if before else "post",
        final_norm=bool(before and not hub.get("_remove_final_layer_norm")),
        activation=activation_in(hub, "activation_function", "relu"),
        position="learned",
        position_offset=2,
        bias=hub.get("enable_bias", True),
        tie_embeddings=hub.get("tie_word_embeddings", True),
    )
