"""Decoders known from their papers: Gopher, Chinchilla, PaLM, U-PaLM, GLaM, LaMDA, PanGu-alpha, MT-NLG, Jurassic-1."""

from __future__ import annotations

from typing import Any


def _size(layers: int, d_model: int, heads: int, **other: Any) -> dict[str, Any]:
    return {"layers": layers, "d_model": d_model, "heads": heads, **other}


# The activation of Gopher and Chinchilla is not stated; their parameter counts are those of a plain one, four times as wide.
_GOPHER: dict[str, Any] = {
    "activation": "gelu",
    "position": "transformer-xl",
    "vocab_size": 32000,
    "context_length": 2048,
}
_PALM = {
    "norm": "layernorm",
    "norm_placement": "parallel",
    "eps": 1e-6,
    "kv_heads": 1,
    "head_dim": 256,
    "activation": "swiglu",
    "vocab_size": 256000,
    "context_length": 2048,
    "initialisation": "fan-in",
}
# Experts of a plain activation in every second layer, gated layers between them: that is its 1,162B, of which 96.6B are active.
_GLAM = {
    "norm": "layernorm",
    "activation": "geglu",
    "position": "relative-bias",
    "head_dim": 128,
    "vocab_size": 256000,
    "context_length": 1024,
    "moe": {
        "experts": 64,
        "top_k": 2,
        "every": 2,
        "activation": "gelu",
        "capacity_factor": 1.0,
        "second_policy": "random",
    },
}
_LAMDA = {
    "activation": "geglu",
    "position": "relative-bias",
    "head_dim": 128,
    "vocab_size": 32000,
    "context_length": 2048,
}
_LEARNED = {"norm": "layernorm", "norm_bias": True, "activation": "gelu", "position": "learned", "bias": True}


def _palm(layers: int, d_model: int, heads: int, **other: Any) -> dict[str, Any]:
    return _size(layers, d_model, heads, d_ff=4 * d_model, logit_scale=d_model**-0.5, **other)


FAMILIES: tuple[tuple[str, dict[str, Any], dict[str, dict[str, Any]]], ...] = (
    (
        "2112.11446",
        _GOPHER,
        {
            "gopher-44m": _size(8, 512, 16),
            "gopher-117m": _size(12, 768, 12),
            "gopher-417m": _size(12, 1536, 12),
            "gopher-1.4b": _size(24, 2048, 16),
            "gopher-7.1b": _size(32, 4096, 32),
            "gopher-280b": _size(80, 16384, 128),
        },
    ),
    (
        "2203.15556",
        _GOPHER,
        {
            "chinchilla-44m": _size(8, 512, 8),
            "chinchilla-117m": _size(12, 768, 12),
            "chinchilla-251m": _size(16, 1024, 16),
            "chinchilla-425m": _size(18, 1280, 10),
            "chinchilla-70b": _size(80, 8192, 64),
        },
    ),
    (
        "2204.02311",
        _PALM,
        {"palm-8b": _palm(32, 4096, 16), "palm-62b": _palm(64, 8192, 32), "palm-540b": _palm(118, 18432, 48)},
    ),
    ("2210.11399", _PALM | {"architecture": "prefix-decoder"}, {"u-palm-540b": _palm(118, 18432, 48)}),
    ("2112.06905", _GLAM, {"glam-1.2t": _size(64, 8192, 128, d_ff=32768)}),
    ("2201.08239", _LAMDA, {"lamda-137b": _size(64, 8192, 128, d_ff=65536)}),
    # Without the query layer that stands on top of it.
    (
        "2104.12369",
        _LEARNED | {"vocab_size": 40000, "context_length": 1024},
        {"pangu-alpha-207b": _size(64, 16384, 128)},
    ),
    ("2201.11990", _LEARNED | {"vocab_size": 51200, "context_length": 2048}, {"mt-nlg-530b": _size(105, 20480, 128)}),
    (
        "Lieber et al. 2021",
        _LEARNED | {"vocab_size": 256000, "context_length": 2048},
        {"jurassic-1-178b": _size(76, 13824, 96)},
    ),
)
