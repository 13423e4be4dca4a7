"""Whether a family's files can hold a config: the switches that they leave open, and the value of all others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lmlab.model.config import ModelConfig

_SHAPE = ("layers", "d_model", "heads", "vocab_size", "context_length")
_EVERYONE = frozenset((*_SHAPE, "d_ff", "eps", "dropout", "initialisation", "mup_base_width", "bias"))
"""Held by every family, or without a say in what a trained model computes, or seen in another switch: muP's scales in
attention_scale and logit_scale, `bias` in the three biases."""


def effective(config: ModelConfig) -> dict[str, Any]:
    """The switches with defaults filled in, and None for what has no effect."""
    sizes = config.sizes()
    found = {name: getattr(config, name) for name in type(config).model_fields}
    scale = config.score_scale
    found |= {
        "kv_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "final_norm": config.has_final_norm,
        "qkv_bias": config.has_bias("qkv"),
        "attention_out_bias": config.has_bias("attention_out"),
        "feed_forward_bias": config.has_bias("feed_forward"),
        "attention": tuple(str_of(config, layer) for layer in range(config.layers)),
        "attention_scale": None if math.isclose(scale, sizes.head_dim**-0.5, rel_tol=1e-6) else scale,
        "embedding_scale": None if config.embedding_scale == 1.0 else config.embedding_scale,
        "logit_scale": None if config.head_scale == 1.0 else config.head_scale,
    }
    if config.has_encoder:
        encoder = config.sizes(encoder=True)
        found |= {"encoder_layers": encoder.layers, "encoder_heads": encoder.heads, "encoder_d_ff": encoder.d_ff}
    if config.position != "rope":
        found |= dict.fromkeys(("rope_theta", "rope_fraction", "rope_pairing", "rope_scaling"))
    if config.position != "relative-bias":
        found |= dict.fromkeys(("relative_buckets", "relative_distance"))
    return found


def str_of(config: ModelConfig, layer: int) -> str:
    """The pattern of a layer as its text."""
    pattern = config.pattern(layer)
    return f"{pattern.kind}({', '.join(map(str, pattern.numbers))})" if pattern.numbers else pattern.kind


def unlike(config: ModelConfig, files: str, fixed: dict[str, Any], held: Iterable[str]) -> str | None:
    """The first switch that `files` cannot hold, in words, or None: neither `held`, nor at its value in `fixed` (default: the
    value of a plain config of this shape)."""
    found = effective(config)
    shape = {name: getattr(config, name) for name in _SHAPE}
    shape["head_dim"] = 2  # even, as rope wants it; what a plain config's is follows from the width
    plain = effective(ModelConfig(**shape)) | {"head_dim": config.d_model / config.heads, "attention_scale": None}
    plain |= fixed
    for name, value in found.items():
        if name in held or name in _EVERYONE or (value is None and name.startswith(("rope_", "relative_"))):
            continue
        wanted = plain[name]
        close = isinstance(value, float) and isinstance(wanted, float) and math.isclose(value, wanted, rel_tol=1e-6)
        if value != wanted and not close:
            return f"{name} is {value}; {files} files hold {wanted} only"
    return None


class Settings(dict[str, Any]):
    """A `config.json` whose missing settings are refused by name."""

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{name} is missing; this family's files name it")


def refuse(hub: dict[str, Any], **expected: Any) -> None:
    """Raise ValueError where a setting of a `config.json` is there, not null, and not the only value that this model
    honours."""
    if hub.get("quantization_config"):
        raise ValueError("quantization_config: quantised weights are not read; expected float weights")
    for name, wanted in expected.items():
        value = hub.get(name)
        if value is not None and value != wanted:
            raise ValueError(f"{name} {value!r} is not supported; expected {wanted!r}")


GATED_OF = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu-tanh",
    "gelu_new": "geglu-tanh",
    "relu": "reglu",
    "sigmoid": "glu",
}
"""Name in a file -> our gated activation."""
PLAIN_OF = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
}


def activation_of(name: str, table: dict[str, str]) -> Any:
    """Our word for a file's activation. Raises ValueError where there is none."""
    if name not in table:
        raise ValueError(f"activation '{name}' is not supported; expected one of {', '.join(sorted(table))}")
    return table[name]


def activation_name(ours: str, table: dict[str, str]) -> str:
    """The inverse: the first of the file's words."""
    return next(theirs for theirs, word in table.items() if word == ours)
