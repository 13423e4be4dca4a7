"""Parameters, FLOPs and bytes of a model, counted from its config alone; a test holds them to the network."""

from __future__ import annotations

from lmlab.model.config import ModelConfig, Sizes
from lmlab.model.settings import GATED


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _attention(c: ModelConfig, s: Sizes, cross: bool = False) -> int:
    inner, narrow = s.heads * s.head_dim, s.kv_heads * s.head_dim
    count = _linear(c.d_model, inner + 2 * narrow, c.has_bias("qkv"))
    count += _linear(inner, c.d_model, c.has_bias("attention_out"))
    if c.qk_norm:
        count += 2 * s.head_dim if c.qk_norm_width == "head" else inner + narrow
    if c.position == "transformer-xl" and not cross:
        count += c.d_model * inner + 2 * inner
    return count


def _feed_forward(c: ModelConfig, d_ff: int, activation: str) -> int:
    up, bias = 2 if activation in GATED else 1, c.has_bias("feed_forward")
    return up * _linear(c.d_model, d_ff, bias) + _linear(d_ff, c.d_model, bias)


def _norm(c: ModelConfig) -> int:
    return c.d_model * (2 if c.norm_bias else 1)


def _norms_a_block(c: ModelConfig, cross: bool) -> int:
    branches = 3 if cross else 2
    return {"sandwich": 2 * branches, "parallel": c.parallel_norms}.get(c.norm_placement, branches)


def _stack(c: ModelConfig, encoder: bool) -> dict[str, int]:
    """One stack by part, its blocks and what stands around them."""
    s = c.sizes(encoder)
    cross = c.has_encoder and not encoder
    attention = s.layers * _attention(c, s)
    if c.position == "relative-bias":
        attention += c.relative_buckets * s.heads
    feed_forward = router = idle = 0
    for layer in range(s.layers):
        if c.moe is None or not c.has_experts(layer):
            feed_forward += _feed_forward(c, s.d_ff, c.activation)
            continue
        width, activation = c.moe.d_ff or s.d_ff, c.moe.activation or c.activation
        expert = _feed_forward(c, width, activation)
        feed_forward += c.moe.experts * expert
        if c.moe.shared_experts:
            feed_forward += _feed_forward(c, c.moe.shared_experts * width, activation)
        router += c.d_model * c.moe.experts
        idle += (c.moe.experts - c.moe.top_k) * expert
    around = int(c.embedding_norm) + int(c.has_final_norm)
    tables = {"learned": 1, "glm-2d": 2}.get(c.position, 0)
    return {
        "position": tables * (c.context_length + c.position_offset) * c.d_model,
        "attention": attention,
        "cross_attention": s.layers * _attention(c, s, cross=True) if cross else 0,
        "feed_forward": feed_forward,
        "router": router,
        "norms": (s.layers * _norms_a_block(c, cross) + around) * _norm(c),
        "idle": idle,
    }


def parameters(c: ModelConfig) -> dict[str, int]:
    """Parameters by part; see `ModelConfig.parameters`."""
    decoder = _stack(c, encoder=False)
    encoder = _stack(c, encoder=True) if c.has_encoder else {}
    idle = decoder.pop("idle") + encoder.pop("idle", 0)
    projections = 2 * c.d_model * c.embedding_dim if c.embedding_dim else 0
    head = 0 if c.tie_embeddings else c.vocab_size * c.hidden_width
    parts = {
        "embedding": c.vocab_size * c.hidden_width + decoder.pop("position") + projections,
        **decoder,
        "encoder": sum(encoder.values()),
        "head": head + (c.vocab_size if c.head_bias else 0),
    }
    total = sum(parts.values())
    return {**parts, "active": total - idle, "total": total}


def expert_parameters(c: ModelConfig) -> int:
    """Parameters of all experts that a router chooses from, in all layers; no router, no shared expert."""
    if c.moe is None:
        return 0
    found = 0
    for encoder in (False, True) if c.has_encoder else (False,):
        s = c.sizes(encoder)
        one = _feed_forward(c, c.moe.d_ff or s.d_ff, c.moe.activation or c.activation)
        found += sum(c.has_experts(layer) for layer in range(s.layers)) * c.moe.experts * one
    return found


def flops_per_token(c: ModelConfig, length: int) -> float:
    """Training FLOPs a token (forward and backward): 6 x (matrix parameters that a token uses, the head among them) +
    12 x heads x head_dim x keys, summed over layers (2204.02311, appendix B).

    Keys are `length`, the cut by causality not counted, and fewer under a sparse pattern (`Pattern.keys`). Of experts the
    top_k count. Of an encoder-decoder this is one target token and one source token, both sequences of `length`.
    """
    return sum(_flops_by_stack(c, length))


def flops(c: ModelConfig, source: float, target: float, length: int) -> float:
    """Training FLOPs of an example of `source` and `target` tokens in sequences of `length`; counted as above."""
    encoder, decoder = _flops_by_stack(c, length)
    return source * encoder + target * decoder if c.has_encoder else (source + target) * decoder


def flops_in_blocks(c: ModelConfig, source: float, target: float) -> float:
    """Of those FLOPs, the ones in the weights of blocks: attention's projections, feed-forward layers, experts (and routers)."""
    encoder, decoder = _weights_by_stack(c)
    return 6 * (source * encoder + target * decoder if c.has_encoder else (source + target) * decoder)


def _weights_by_stack(c: ModelConfig) -> tuple[int, int]:
    """Parameters in matrices of blocks that a token of the source (0 without an encoder) and one of the target uses."""
    parts = parameters(c)
    idle = parts["total"] - parts["active"]
    encoder_idle = _stack(c, encoder=True)["idle"] if c.has_encoder else 0
    matrices = sum(parts[name] for name in ("attention", "cross_attention", "feed_forward", "router"))
    return parts["encoder"] - encoder_idle, matrices - (idle - encoder_idle)


def _flops_by_stack(c: ModelConfig, length: int) -> tuple[float, float]:
    """FLOPs of a token of the source (0 without an encoder) and of one of the target, which has all of
    cross-attention."""
    encoder_matrices, matrices = _weights_by_stack(c)
    matrices += c.vocab_size * c.hidden_width + (2 * c.d_model * c.embedding_dim if c.embedding_dim else 0)
    s = c.sizes()
    scores = s.heads * s.head_dim * sum(c.pattern(layer).keys(length) for layer in range(s.layers))
    if not c.has_encoder:
        return 0.0, 6 * matrices + 12 * scores
    e = c.sizes(encoder=True)
    encoder = 6 * encoder_matrices + 12 * e.layers * e.heads * e.head_dim * length
    return encoder, 6 * matrices + 12 * (scores + s.layers * s.heads * s.head_dim * length)


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def memory(c: ModelConfig, batch: int, length: int, precision: str = "float32") -> dict[str, int]:
    """Bytes. `weights`, `gradients`, `optimizer` (Adam's two moments) and their sum `training`: 4, 4 and 8 a parameter,
    since training keeps float32 whatever the matrix products are made in; activations are not counted. `inference`: the
    weights in `precision`. `kv_cache`: keys and values of `batch` sequences of `length` in `precision`, a
    cross-attention's of a source of the same length included; layers of pattern local(W) keep W positions, as the
    engine's cache does, the others all.
    """
    total, size = parameters(c)["total"], BYTES[precision]
    s = c.sizes()
    patterns = [c.pattern(layer) for layer in range(s.layers)]
    positions = sum(min(length, each.numbers[0]) if each.kind == "local" else length for each in patterns)
    positions += s.layers * length if c.has_encoder else 0
    return {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 8 * total,
        "training": 16 * total,
        "inference": size * total,
        "kv_cache": batch * positions * 2 * s.kv_heads * s.head_dim * size,
    }
