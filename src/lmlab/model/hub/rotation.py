"""The rotation and the windows of a `config.json`. Files spell the rotation in two ways: rope_theta and rope_scaling, or
rope_parameters; both are read and both are written."""

from __future__ import annotations

import math
from typing import Any

from lmlab.model.config import ModelConfig, RopeScaling
from lmlab.model.hub.fit import str_of

_ORIGINAL = "original_max_position_embeddings"
_COMMON = frozenset(("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"))
_OF_KIND: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset(("factor",)),
    "dynamic": frozenset(("factor", _ORIGINAL)),
    "llama3": frozenset(("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)),
    "yarn": frozenset(
        ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", _ORIGINAL)
    ),
}


def rope_from_hub(hub: dict[str, Any], theta: float = 10000.0, fraction: float | None = None) -> dict[str, Any]:
    """rope_theta, rope_fraction and rope_scaling for a `ModelConfig`; `theta` and `fraction` are the family's defaults,
    `fraction` None where it rotates whole heads.

    A dynamic scaling changes nothing up to max_position_embeddings, which is this model's context: it is read as none.
    Raises ValueError for a kind or a setting that this model has not.
    """
    rope = dict(hub.get("rope_scaling") or hub.get("rope_parameters") or {})
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError("rope_parameters with a rotation for each kind of layer is not supported")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in _OF_KIND:
        raise ValueError(f"rope_type '{kind}' is not supported; expected one of {', '.join(_OF_KIND)}")
    strange = [n for n, value in rope.items() if value is not None and n not in _COMMON | _OF_KIND[kind]]
    if strange:
        raise ValueError(f"rope_type '{kind}' with {', '.join(sorted(strange))} is not supported")
    share = rope.get("partial_rotary_factor") or hub.get("partial_rotary_factor") or fraction or 1.0
    if fraction is None and share != 1.0:
        raise ValueError(f"partial_rotary_factor {share} is not supported in a {hub['model_type']} file")
    found: dict[str, Any] = {"rope_theta": float(rope.get("rope_theta") or hub.get("rope_theta") or theta)}
    if share != 1.0:
        found["rope_fraction"] = share
    if kind in ("linear", "llama3", "yarn"):
        found["rope_scaling"] = _scaling(kind, rope, hub)
    return found


def _scaling(kind: str, rope: dict[str, Any], hub: dict[str, Any]) -> RopeScaling:
    names = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor")
    given = {name: rope[name] for name in names if rope.get(name) is not None}
    if "factor" not in given and (kind != "yarn" or not rope.get(_ORIGINAL)):
        raise ValueError(f"rope_type '{kind}' without a factor")
    longest = hub["max_position_embeddings"]
    original = hub.get(_ORIGINAL) or rope.get(_ORIGINAL) or longest
    if kind == "linear":
        return RopeScaling(kind="linear", **given)
    if rope.get("truncate") is False:
        raise ValueError("rope_type 'yarn' with truncate false is not supported")
    given.setdefault("factor", longest / original)
    if "attention_factor" not in given and rope.get("mscale") and rope.get("mscale_all_dim"):
        first, second = (0.1 * rope[n] * math.log(given["factor"]) + 1.0 for n in ("mscale", "mscale_all_dim"))
        given["attention_factor"] = first / second
    return RopeScaling(kind=kind, original_context=original, **given)  # type: ignore[arg-type]


def rope_to_hub(config: ModelConfig, default: float = 1.0) -> dict[str, Any]:
    """The rotation in both spellings; its share of a head is named where it, or the family's `default`, is not 1. A
    stretched base (ntk) is written as the base that it comes to."""
    scaling, theta = config.rope_scaling, config.rope_theta
    if scaling is not None and scaling.kind == "ntk":
        dim = config.rotary_dim
        theta, scaling = theta * scaling.factor ** (dim / max(dim - 2, 1)), None
    settings: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        settings = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind != "linear":
            original = scaling.original_context or max(1, round(config.context_length / scaling.factor))
            settings[_ORIGINAL] = original
        of_kind = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_fast", "beta_slow")}
        settings |= {name: getattr(scaling, name) for name in of_kind.get(scaling.kind, ())}
        if scaling.kind == "yarn" and scaling.attention_factor is not None:
            settings["attention_factor"] = scaling.attention_factor
    partial = {} if config.rope_fraction == default == 1.0 else {"partial_rotary_factor": config.rope_fraction}
    return {
        "rope_theta": theta,
        "rope_scaling": None if scaling is None else settings,
        "rope_parameters": {"rope_theta": theta, **settings, **partial},
        **partial,
    }


FULL_LAYER, WINDOW_LAYER = "full_attention", "sliding_attention"


def pattern_of(layer_types: list[str], window: int | None) -> str | tuple[str, ...]:
    """The attention pattern of a list of layer types, in its shortest period. Raises ValueError for another type of layer."""
    strange = sorted(set(layer_types) - {FULL_LAYER, WINDOW_LAYER})
    if strange:
        raise ValueError(f"layer_types '{strange[0]}' is not supported; expected {FULL_LAYER} or {WINDOW_LAYER}")
    if WINDOW_LAYER in layer_types and not window:
        raise ValueError(f"layer_types names {WINDOW_LAYER}, and sliding_window is not set")
    named = [f"local({window})" if each == WINDOW_LAYER else "full" for each in layer_types]
    period = next(p for p in range(1, len(named) + 1) if all(x == named[i % p] for i, x in enumerate(named)))
    return named[0] if period == 1 else tuple(named[:period])


def layer_types_of(config: ModelConfig) -> tuple[list[str], int | None] | None:
    """(the type of each layer, the window) of a config, or None where its patterns are others."""
    patterns = [config.pattern(layer) for layer in range(config.layers)]
    if any(pattern.kind not in ("full", "local") for pattern in patterns):
        return None
    windows = {pattern.numbers[0] for pattern in patterns if pattern.kind == "local"}
    if len(windows) > 1:
        return None
    types = [WINDOW_LAYER if pattern.kind == "local" else FULL_LAYER for pattern in patterns]
    return types, next(iter(windows), None)


def odd_pattern(config: ModelConfig) -> str | None:
    """Why a config's patterns are no list of layer types, or None."""
    if layer_types_of(config) is not None:
        return None
    found = ", ".join(dict.fromkeys(str_of(config, layer) for layer in range(config.layers)))
    return f"attention is {found}; these files hold full attention and windows of one width only"
