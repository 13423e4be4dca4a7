"""Models whose weights are public: BLOOM, LLaMA, GLM, OPT, Galactica, Mixtral."""

from __future__ import annotations

from typing import Any


def _size(layers: int, d_model: int, heads: int, **other: Any) -> dict[str, Any]:
    return {"layers": layers, "d_model": d_model, "heads": heads, **other}


_LAYERNORM: dict[str, Any] = {"norm": "layernorm", "norm_bias": True, "bias": True}
_BLOOM = _LAYERNORM | {
    "embedding_norm": True,
    "activation": "gelu-tanh",
    "position": "alibi",
    "vocab_size": 250880,
    "context_length": 2048,
}
_LLAMA = {"eps": 1e-6, "tie_embeddings": False, "vocab_size": 32000, "context_length": 2048}
_GLM = _LAYERNORM | {
    "architecture": "prefix-decoder",
    "activation": "gelu-tanh",
    "position": "glm-2d",
    "position_offset": 1,
    "vocab_size": 30522,
    "context_length": 512,
}
_GLM_130B = _LAYERNORM | {
    "architecture": "prefix-decoder",
    "norm_placement": "deepnorm",
    "deepnorm": "glm",
    "initialisation": "deepnorm",
    "activation": "geglu",
    "position": "rope",
    "vocab_size": 150528,
    "context_length": 2048,
}
_OPT = _LAYERNORM | {
    "activation": "relu",
    "position": "learned",
    "position_offset": 2,
    "vocab_size": 50272,
    "context_length": 2048,
}
_GALACTICA = {
    "norm": "layernorm",
    "activation": "gelu",
    "position": "learned",
    "vocab_size": 50000,
    "context_length": 2048,
}
_MIXTRAL = {"tie_embeddings": False, "rope_theta": 1e6, "vocab_size": 32000, "context_length": 32768}

FAMILIES: tuple[tuple[str, dict[str, Any], dict[str, dict[str, Any]]], ...] = (
    (
        "2211.05100",
        _BLOOM,
        {
            "bloom-560m": _size(24, 1024, 16),
            "bloom-1b1": _size(24, 1536, 16),
            "bloom-1b7": _size(24, 2048, 16),
            "bloom-3b": _size(30, 2560, 32),
            "bloom-7b1": _size(30, 4096, 32),
            "bloom-176b": _size(70, 14336, 112),
        },
    ),
    (
        "2302.13971",
        _LLAMA,
        {
            "llama-7b": _size(32, 4096, 32, d_ff=11008),
            "llama-13b": _size(40, 5120, 40, d_ff=13824),
            "llama-33b": _size(60, 6656, 52, d_ff=17920),
            "llama-65b": _size(80, 8192, 64, d_ff=22016),
        },
    ),
    (
        "2103.10360",
        _GLM,
        {
            "glm-base": _size(12, 768, 12),
            "glm-large": _size(24, 1024, 16),
            "glm-10b": _size(48, 4096, 64, vocab_size=50304, context_length=1024),
        },
    ),
    ("2210.02414", _GLM_130B, {"glm-130b": _size(70, 12288, 96, d_ff=32768)}),
    (
        "2205.01068",
        _OPT,
        {
            "opt-125m": _size(12, 768, 12),
            "opt-350m": _size(24, 1024, 16, norm_placement="post", embedding_dim=512),
            "opt-1.3b": _size(24, 2048, 32),
            "opt-2.7b": _size(32, 2560, 32),
            "opt-6.7b": _size(32, 4096, 32),
            "opt-13b": _size(40, 5120, 40),
            "opt-30b": _size(48, 7168, 56),
            "opt-66b": _size(64, 9216, 72),
            "opt-175b": _size(96, 12288, 96),
        },
    ),
    (
        "2211.09085",
        _GALACTICA,
        {
            "galactica-125m": _size(12, 768, 12),
            "galactica-1.3b": _size(24, 2048, 32),
            "galactica-6.7b": _size(32, 4096, 32),
            "galactica-30b": _size(48, 7168, 56),
            "galactica-120b": _size(96, 10240, 80),
        },
    ),
    (
        "2401.04088",
        _MIXTRAL,
        {"mixtral-8x7b": _size(32, 4096, 32, kv_heads=8, d_ff=14336, moe={"experts": 8, "top_k": 2})},
    ),
)
