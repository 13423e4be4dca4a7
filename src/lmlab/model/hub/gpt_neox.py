"""GPT-NeoX and Pythia files (2204.06745, 2304.01373): both branches side by side, each with its norm; a quarter of each head
is rotated."""

from __future__ import annotations

from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import PLAIN, PLAIN_OF, activation_in, activation_name, common, setting, unlike
from lmlab.model.hub.fused import parts
from lmlab.model.hub.names import Names
from lmlab.model.hub.rotation import rope_from_hub, rope_to_hub

MODEL_TYPES = {"gpt_neox": "GPTNeoXForCausalLM"}

_LAYER = "gpt_neox.layers.{}"
TABLE = {
    "embedding": "gpt_neox.embed_in",
    "final_norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
    "blocks.{}.attention_norm": f"{_LAYER}.input_layernorm",
    "blocks.{}.attention.out": f"{_LAYER}.attention.dense",
    "blocks.{}.feed_forward_norm": f"{_LAYER}.post_attention_layernorm",
    "blocks.{}.feed_forward.up": f"{_LAYER}.mlp.dense_h_to_4h",
    "blocks.{}.feed_forward.down": f"{_LAYER}.mlp.dense_4h_to_h",
    **parts(f"{_LAYER}.attention.query_key_value"),
}
NAMES = Names(
    TABLE,
    prefix="gpt_neox.",
    fused="attention.query_key_value",
    order="grouped",
    buffers=r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    also={"lm_head.": "embed_out."},
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why GPT-NeoX files cannot hold a config, or None."""
    fixed: dict[str, Any] = {
        "norm": "layernorm",
        "norm_bias": True,
        "norm_placement": {"parallel", "pre"},
        "parallel_norms": 2 if config.norm_placement == "parallel" else 1,
        "activation": PLAIN,
        "position": "rope",
        "attention_out_bias": config.has_bias("qkv"),
        "feed_forward_bias": True,
    }
    return unlike(
        config, "gpt_neox", fixed, ("qkv_bias", "rope_fraction", "rope_scaling", "rope_theta", "tie_embeddings")
    )


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    older = {"rotary_pct": config.rope_fraction, "rotary_emb_base": config.rope_theta}
    return (
        common(config, "gpt_neox", MODEL_TYPES["gpt_neox"], special)
        | rope_to_hub(config, default=0.25)
        | older
        | {
            "hidden_size": config.d_model,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "intermediate_size": config.sizes().d_ff,
            "max_position_embeddings": config.context_length,
            "hidden_act": activation_name(config.activation, PLAIN_OF),
            "layer_norm_eps": config.eps,
            "use_parallel_residual": config.norm_placement == "parallel",
            "attention_bias": config.has_bias("qkv"),
            "hidden_dropout": config.dropout,
            "attention_dropout": 0.0,
        }
    )


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    parallel, bias = hub.get("use_parallel_residual", True), hub.get("attention_bias", True)
    return ModelConfig(
        **rope_from_hub(hub, hub.get("rotary_emb_base") or 10000.0, setting(hub, "rotary_pct", default=0.25)),
        layers=hub["num_hidden_layers"],
        d_model=hub["hidden_size"],
        heads=hub["num_attention_heads"],
        d_ff=hub["intermediate_size"],
        vocab_size=hub["vocab_size"],
        context_length=hub["max_position_embeddings"],
        norm="layernorm",
        norm_bias=True,
        norm_placement="parallel" if parallel else "pre",
        parallel_norms=2 if parallel else 1,
        eps=setting(hub, "layer_norm_eps", default=1e-5),
        activation=activation_in(hub, "hidden_act", "gelu"),
        bias=True,
        qkv_bias=bias,
        attention_out_bias=bias,
        tie_embeddings=hub.get("tie_word_embeddings", False),
    )
