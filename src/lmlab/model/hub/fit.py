"""Whether a family's files can hold a config: the switches that they leave open, and the value of all others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import SpecialTokens

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
        "d_ff": sizes.d_ff,
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
    """The first switch that `files` cannot hold, in words, or None: neither `held`, nor at its value in `fixed` (one of
    several in a set; default: the value of a plain config of this shape)."""
    found = effective(config)
    shape = {name: getattr(config, name) for name in _SHAPE}
    shape["head_dim"] = 2  # even, as rope wants it; what a plain config's is follows from the width
    plain = effective(ModelConfig(**shape)) | {"head_dim": config.d_model / config.heads, "attention_scale": None}
    plain |= fixed
    for name, value in found.items():
        if name in held or (name in _EVERYONE and name not in fixed):
            continue
        if value is None and name.startswith(("rope_", "relative_")):
            continue
        wanted = plain[name]
        among = wanted if isinstance(wanted, (set, frozenset)) else (wanted,)
        if not any(_equal(value, each) for each in among):
            return f"{name} is {value}; {files} files hold {' or '.join(sorted(map(str, among)))} only"
    return None


def _equal(value: Any, wanted: Any) -> bool:
    both = isinstance(value, float) and isinstance(wanted, float)
    return math.isclose(value, wanted, rel_tol=1e-6) if both else value == wanted


def common(config: ModelConfig, kind: str, architecture: str, special: SpecialTokens) -> dict[str, Any]:
    """What stands in every `config.json`."""
    return {
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "bos_token_id": special.bos_id,
        "eos_token_id": special.eos_id,
        "pad_token_id": special.pad_id,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def expect(hub: Mapping[str, Any], **fixed: Any) -> None:
    """Raise ValueError where a setting of a `config.json` is there, not null, and not the only value that this model
    honours."""
    for name, wanted in fixed.items():
        value = hub.get(name)
        if value is not None and value != wanted:
            raise ValueError(f"{name} is {json.dumps(value)}; this model can do {json.dumps(wanted)} only")


def setting(hub: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """The first of the names that a `config.json` has (null counts as absent). Raises ValueError where it has none and
    there is no default."""
    for name in names:
        if hub.get(name) is not None:
            return hub[name]
    if default is None:
        raise ValueError(f"names no {' or '.join(names)}")
    return default


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
    "gelu_fast": "gelu-tanh",
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
}
"""The same of plain ones."""
PLAIN = frozenset(PLAIN_OF.values())


def activation_of(name: str, table: dict[str, str]) -> Any:
    """Our word for a file's activation. Raises ValueError where there is none."""
    if name not in table:
        raise ValueError(f"activation '{name}' is not supported; expected one of {', '.join(sorted(table))}")
    return table[name]


def activation_in(hub: Mapping[str, Any], name: str, default: str, table: dict[str, str] = PLAIN_OF) -> Any:
    """`activation_of` a setting, which the refusal names."""
    found = hub.get(name) or default
    if found not in table:
        raise ValueError(f"{name} is {found}; expected one of {', '.join(table)}")
    return table[found]


def activation_name(ours: str, table: dict[str, str]) -> str:
    """The inverse: the first of the file's words."""
    return next(theirs for theirs, word in table.items() if word == ours)
