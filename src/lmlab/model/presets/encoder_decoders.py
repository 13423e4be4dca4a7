"""T5, BART and Switch."""

from __future__ import annotations

from typing import Any


def _size(layers: int, d_model: int, heads: int, d_ff: int, **other: Any) -> dict[str, Any]:
    return {"layers": layers, "d_model": d_model, "heads": heads, "d_ff": d_ff, **other}


_T5: dict[str, Any] = {
    "architecture": "encoder-decoder",
    "eps": 1e-6,
    "activation": "relu",
    "position": "relative-bias",
    "attention_scale": 1.0,
    "head_dim": 64,
    "vocab_size": 32128,
    "context_length": 512,
    "initialisation": "fan-in",
}
_T5_V11 = _T5 | {"activation": "geglu-tanh", "tie_embeddings": False}
_BART = {
    "architecture": "encoder-decoder",
    "norm": "layernorm",
    "norm_bias": True,
    "norm_placement": "post",
    "embedding_norm": True,
    "activation": "gelu",
    "position": "learned",
    "position_offset": 2,
    "bias": True,
    "vocab_size": 50265,
    "context_length": 1024,
}


def _t5(layers: int, d_model: int, heads: int, d_ff: int, **other: Any) -> dict[str, Any]:
    return _size(layers, d_model, heads, d_ff, logit_scale=d_model**-0.5, **other)


def _switch(experts: int, every: int) -> dict[str, Any]:
    return {
        "experts": experts,
        "top_k": 1,
        "every": every,
        "normalise": "all",
        "capacity_factor": 1.25,
        "evaluation_capacity_factor": 2.0,
        "jitter": 0.01,
    }


FAMILIES: tuple[tuple[str, dict[str, Any], dict[str, dict[str, Any]]], ...] = (
    (
        "1910.10683",
        _T5,
        {
            "t5-small": _t5(6, 512, 8, 2048),
            "t5-base": _t5(12, 768, 12, 3072),
            "t5-large": _t5(24, 1024, 16, 4096),
            "t5-3b": _t5(24, 1024, 32, 16384, head_dim=128),
            "t5-11b": _t5(24, 1024, 128, 65536, head_dim=128),
        },
    ),
    (
        "2002.05202",
        _T5_V11,
        {
            "t5-v1.1-small": _size(8, 512, 6, 1024),
            "t5-v1.1-base": _size(12, 768, 12, 2048),
            "t5-v1.1-large": _size(24, 1024, 16, 2816),
            "t5-v1.1-xl": _size(24, 2048, 32, 5120),
            "t5-v1.1-xxl": _size(24, 4096, 64, 10240),
        },
    ),
    ("1910.13461", _BART, {"bart-base": _size(6, 768, 12, 3072), "bart-large": _size(12, 1024, 16, 4096)}),
    (
        "2101.03961",
        _T5,
        {
            "switch-base": _t5(12, 768, 12, 3072, moe=_switch(128, 2)),
            "switch-large": _t5(24, 1024, 16, 4096, moe=_switch(128, 2)),
            # The published 395B is that of experts in every layer.
            "switch-xxl": _t5(24, 4096, 64, 10240, activation="geglu-tanh", moe=_switch(64, 1)),
            "switch-c": _t5(15, 2080, 32, 6144, moe=_switch(2048, 1)),
        },
    ),
)
