"""GPT-1, GPT-2, GPT-3 and Codex."""

from __future__ import annotations

from typing import Any

_GPT: dict[str, Any] = {
    "norm": "layernorm",
    "norm_bias": True,
    "activation": "gelu-tanh",
    "position": "learned",
    "bias": True,
    "vocab_size": 50257,
}
_GPT1 = _GPT | {"norm_placement": "post", "vocab_size": 40478, "context_length": 512}
# The width of the band is not published; 256 is what open replicas took.
_GPT3 = _GPT | {"context_length": 2048, "attention": ("full", "local(256)")}
# GPT-3's vocabulary and 24 tokens for runs of spaces.
_CODEX = _GPT3 | {"context_length": 4096, "vocab_size": 50281}


def _size(layers: int, d_model: int, heads: int, **other: Any) -> dict[str, Any]:
    return {"layers": layers, "d_model": d_model, "heads": heads, **other}


_SMALL, _MEDIUM, _LARGE = _size(12, 768, 12), _size(24, 1024, 16), _size(24, 1536, 16)
_2B7, _13B = _size(32, 2560, 32), _size(40, 5120, 40)  # 13B: the paper's 5140 is no multiple of its 40 heads of 128

FAMILIES: tuple[tuple[str, dict[str, Any], dict[str, dict[str, Any]]], ...] = (
    ("Radford et al. 2018", _GPT1, {"gpt1": _SMALL}),
    (
        "Radford et al. 2019",
        _GPT | {"context_length": 1024},
        {"gpt2": _SMALL, "gpt2-medium": _MEDIUM, "gpt2-large": _size(36, 1280, 20), "gpt2-xl": _size(48, 1600, 25)},
    ),
    (
        "2005.14165",
        _GPT3,
        {
            "gpt3-small": _SMALL,
            "gpt3-medium": _MEDIUM,
            "gpt3-large": _LARGE,
            "gpt3-xl": _size(24, 2048, 16),  # the paper's 24 heads of 128 are not 2,048 wide: 16 are
            "gpt3-2.7b": _2B7,
            "gpt3-6.7b": _size(32, 4096, 32),
            "gpt3-13b": _13B,
            "gpt3-175b": _size(96, 12288, 96),
        },
    ),
    # The paper's names count parameters without embeddings; 12M, 25M and 42M have no published shape.
    (
        "2107.03374",
        _CODEX,
        {
            "codex-85m": _SMALL,
            "codex-300m": _MEDIUM,
            "codex-679m": _LARGE,
            "codex-2.5b": _2B7,
            "codex-12b": _13B,
        },
    ),
)
