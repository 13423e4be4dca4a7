"""What cannot be together in a `ModelConfig`, each with the reason. A rule gives a message, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lmlab.model.config import ModelConfig
from lmlab.model.pattern import FULL, parse_pattern

Rule = Callable[[ModelConfig], str | None]


def _heads(c: ModelConfig) -> str | None:
    if c.head_dim is None and c.d_model % c.heads:
        return f"d_model {c.d_model} is no multiple of heads {c.heads}: change one, or set head_dim"
    if c.kv_heads is not None and c.heads % c.kv_heads:
        return f"heads {c.heads} is no multiple of kv_heads {c.kv_heads}"
    return None


def _encoder(c: ModelConfig) -> str | None:
    named = [name for name in ("encoder_layers", "encoder_heads", "encoder_d_ff") if getattr(c, name) is not None]
    if named and not c.has_encoder:
        return f"{', '.join(named)}: a {c.architecture} has no encoder; set architecture encoder-decoder"
    if c.encoder_heads is None:
        return None
    if c.head_dim is None and c.encoder_heads != c.heads:
        return "encoder_heads other than heads: set head_dim, which both stacks share"
    if c.kv_heads is not None and c.encoder_heads % c.kv_heads:
        return f"encoder_heads {c.encoder_heads} is no multiple of kv_heads {c.kv_heads}"
    return None


def _rope(c: ModelConfig) -> str | None:
    if c.position != "rope":
        given = [name for name in ("rope_scaling",) if getattr(c, name) is not None]
        given += ["rope_fraction"] if c.rope_fraction != 1.0 else []
        given += ["rope_pairing"] if c.rope_pairing != "half" else []
        return f"{', '.join(given)}: belongs to position rope, found {c.position}" if given else None
    if not c.heads or (c.head_dim is None and c.d_model % c.heads):
        return None  # said by another rule
    head_dim = c.sizes().head_dim
    if c.rope_fraction == 1.0 and head_dim % 2:
        return "rope rotates pairs: the head dimension must be even"
    if c.rotary_dim % 2 or c.rotary_dim < 2:
        return (
            f"rope rotates pairs: rope_fraction {c.rope_fraction} of a head dimension of {head_dim} is {c.rotary_dim} "
            "dimensions; expected an even number"
        )
    return None


def _position(c: ModelConfig) -> str | None:
    if c.position == "alibi" and c.has_encoder:
        return "alibi penalises the distance to earlier tokens; cross-attention has no distance (2108.12409)"
    if c.position == "glm-2d" and c.architecture != "prefix-decoder":
        return (
            f"glm-2d counts places inside blanked spans (2103.10360): it needs a prefix-decoder, found {c.architecture}"
        )
    if c.position_offset and c.position not in ("learned", "glm-2d"):
        return f"position_offset adds rows to a learned table; position is {c.position}"
    if c.position == "relative-bias" and c.relative_distance <= c.relative_buckets // 2:
        return (
            f"relative_distance {c.relative_distance} must be above half of relative_buckets {c.relative_buckets}: the "
            "first buckets are one distance each"
        )
    if c.position == "relative-bias" and c.relative_buckets % 4:
        return f"relative_buckets {c.relative_buckets} is no multiple of 4: an encoder halves them twice"
    return None


def _norms(c: ModelConfig) -> str | None:
    if c.norm_bias and c.norm == "rmsnorm":
        return "norm_bias belongs to layernorm; rmsnorm has a gain only (1910.07467)"
    if c.parallel_norms != 1 and c.norm_placement != "parallel":
        return f"parallel_norms belongs to norm_placement parallel, found {c.norm_placement}"
    if c.norm_placement == "parallel" and c.has_encoder:
        return "norm_placement parallel has no place for cross-attention: use it with a decoder alone"
    return None


def _deepnorm(c: ModelConfig) -> str | None:
    if c.norm_placement != "deepnorm":
        named = [("residual_scale", c.residual_scale is not None), ("deepnorm", c.deepnorm != "deepnet")]
        named.append(("initialisation deepnorm", c.initialisation == "deepnorm"))
        given = [name for name, there in named if there]
        return f"{', '.join(given)}: belongs to norm_placement deepnorm, found {c.norm_placement}" if given else None
    if c.deepnorm == "glm" and c.has_encoder:
        return "deepnorm glm has constants for one stack only (2210.02414); an encoder-decoder takes deepnet's"
    return None


def _attention(c: ModelConfig) -> str | None:
    if not c.attention:
        return "attention: expected at least one pattern"
    try:
        found = [parse_pattern(each) for each in ((c.attention,) if isinstance(c.attention, str) else c.attention)]
    except ValueError as error:
        return str(error)
    if c.has_encoder and any(pattern != FULL for pattern in found):
        return "attention patterns are for decoders alone; an encoder-decoder attends in full"
    if c.qk_norm_width != "head" and not c.qk_norm:
        return "qk_norm_width belongs to qk_norm, which is off"
    if c.attention_softcap is not None and c.position in ("relative-bias", "alibi", "transformer-xl"):
        return f"attention_softcap would bound the position bias of {c.position} too; use rope, learned or sinusoidal"
    return None


def _mup(c: ModelConfig) -> str | None:
    if (c.mup_base_width is not None) != (c.initialisation == "mup"):
        return "initialisation mup and mup_base_width belong together: set both or neither (2203.03466)"
    return None


RULES: tuple[Rule, ...] = (_heads, _encoder, _rope, _position, _norms, _deepnorm, _attention, _mup)


def problems(config: ModelConfig) -> Iterator[str]:
    """Every rule's objection."""
    for rule in RULES:
        message = rule(config)
        if message is not None:
            yield message
