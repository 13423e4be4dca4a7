"""Llama (2302.13971) and Qwen3 files: pre-RMSNorm, SwiGLU, RoPE, no biases; Qwen3 adds the norm of queries and keys."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lmlab.model.config import ModelConfig

MODEL_TYPES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}

_BLOCK = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
}
_TOP = {
    "embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


_HELD = frozenset(
    ("kv_heads", "head_dim", "d_ff", "eps", "rope_theta", "qk_norm", "tie_embeddings", "dropout", "initialisation")
)
"""Switches that these files hold, or that do not change what a trained model computes."""


def fits(config: ModelConfig) -> bool:
    """Whether a config is a Llama or Qwen3 in these files: every switch that they do not hold is at its default."""
    return config.has_final_norm and not config.differs(_HELD | {"final_norm"})


def to_hub(config: ModelConfig, eos_id: int, pad_id: int | None) -> dict[str, Any]:
    """The `config.json` of a config: both the older and the newer spelling of the rotation and the number type."""
    kv_heads, head_dim, d_ff = config.dims
    kind = "qwen3" if config.qk_norm else "llama"
    return {
        "architectures": [MODEL_TYPES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
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
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "dtype": "float32",
        "torch_dtype": "float32",
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


def name_to_hub(name: str) -> str:
    """The file's name of one of our parameters."""
    if name in _TOP:
        return _TOP[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_BLOCK[rest]}"


def weights_to_hub(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the file's names."""
    return {name_to_hub(name): tensor for name, tensor in weights.items()}
