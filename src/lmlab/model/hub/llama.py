"""Llama (2302.13971) and Qwen3 files: pre-RMSNorm, SwiGLU, RoPE, no biases; Qwen3 adds the norm of queries and keys."""

from __future__ import annotations

from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import Names, SpecialTokens, common, differs

MODEL_TYPES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}

NAMES = Names(
    top={
        "embedding": "model.embed_tokens",
        "final_norm": "model.norm",
        "head.weight": "lm_head.weight",
    },
    block={
        "attention_norm": "input_layernorm",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.out": "self_attn.o_proj",
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    },
    base="model.",
    blocks="layers",
    buffers=(r"rotary_emb\.inv_freq$",),
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why Llama and Qwen3 files cannot hold a config, or None."""
    held = ("kv_heads", "head_dim", "d_ff", "eps", "rope_theta", "qk_norm", "tie_embeddings")
    return differs(config, frozenset(held))


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config: both the older and the newer spelling of the rotation and the number type."""
    kv_heads, head_dim, d_ff = config.dims
    kind = "qwen3" if config.qk_norm else "llama"
    return common(config, kind, MODEL_TYPES[kind], special) | {
        "hidden_size": config.d_model,
        "intermediate_size": d_ff,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    rope = hub.get("rope_parameters") or {}
    kind = rope.get("rope_type") or (hub.get("rope_scaling") or {}).get("rope_type") or "default"
    if kind != "default":
        raise ValueError(f"rope_type '{kind}' is not supported yet; expected 'default'")
    if hub.get("attention_bias") or hub.get("mlp_bias"):
        raise ValueError("biases in a Llama file (attention_bias, mlp_bias) are not supported yet")
    return ModelConfig(
        layers=hub["num_hidden_layers"],
        d_model=hub["hidden_size"],
        heads=hub["num_attention_heads"],
        kv_heads=hub.get("num_key_value_heads") or hub["num_attention_heads"],
        head_dim=hub.get("head_dim") or hub["hidden_size"] // hub["num_attention_heads"],
        d_ff=hub["intermediate_size"],
        vocab_size=hub["vocab_size"],
        context_length=hub["max_position_embeddings"],
        eps=hub.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta") or hub.get("rope_theta") or 10000.0,
        qk_norm=hub["model_type"] == "qwen3",
        tie_embeddings=bool(hub.get("tie_word_embeddings", False)),
    )
