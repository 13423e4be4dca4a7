"""GPT-J files (Wang and Komatsuzaki 2021): one norm for both branches, which stand side by side; the first dimensions of each
head are rotated in interleaved pairs; the head has a bias."""

from __future__ import annotations

import math
from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import PLAIN, PLAIN_OF, activation_in, activation_name, common, setting, unlike
from lmlab.model.hub.names import Names

MODEL_TYPES = {"gptj": "GPTJForCausalLM"}

_LAYER = "transformer.h.{}"
TABLE = {
    "embedding": "transformer.wte",
    "final_norm": "transformer.ln_f",
    "head_bias": "lm_head.bias",
    "head": "lm_head",
    "blocks.{}.attention_norm": f"{_LAYER}.ln_1",
    "blocks.{}.attention.q": f"{_LAYER}.attn.q_proj",
    "blocks.{}.attention.k": f"{_LAYER}.attn.k_proj",
    "blocks.{}.attention.v": f"{_LAYER}.attn.v_proj",
    "blocks.{}.attention.out": f"{_LAYER}.attn.out_proj",
    "blocks.{}.feed_forward.up": f"{_LAYER}.mlp.fc_in",
    "blocks.{}.feed_forward.down": f"{_LAYER}.mlp.fc_out",
}
NAMES = Names(
    TABLE,
    prefix="transformer.",
    buffers=r"\.attn\.(bias|masked_bias|causal_mask)|embed_positions",
)
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig, files: str = "gptj") -> str | None:
    """Why GPT-J files cannot hold a config, or None."""
    fixed: dict[str, Any] = {
        "norm": "layernorm",
        "norm_bias": True,
        "norm_placement": "parallel",
        "activation": PLAIN,
        "position": "rope",
        "rope_pairing": "interleaved",
        "feed_forward_bias": True,
        "head_bias": True,
    }
    return unlike(config, files, fixed, ("rope_fraction", "tie_embeddings"))


def to_hub(config: ModelConfig, special: SpecialTokens, kind: str = "gptj", opens: str = "") -> dict[str, Any]:
    """The `config.json` of a config."""
    return common(config, kind, opens or MODEL_TYPES[kind], special) | {
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.sizes().d_ff,
        "rotary_dim": config.rotary_dim,
        "activation_function": activation_name(config.activation, PLAIN_OF),
        "layer_norm_epsilon": config.eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    d_model = setting(hub, "n_embd", "hidden_size")
    heads = setting(hub, "n_head", "num_attention_heads")
    rotated = hub.get("rotary_dim", 64)
    if rotated is None or not 0 < rotated <= d_model // heads:
        said = "null" if rotated is None else rotated
        raise ValueError(
            f"rotary_dim is {said}; expected how many of a head's {d_model // heads} dimensions are rotated"
        )
    return ModelConfig(
        layers=setting(hub, "n_layer", "num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        d_ff=setting(hub, "n_inner", default=4 * d_model),
        vocab_size=hub["vocab_size"],
        context_length=setting(hub, "n_positions", "n_ctx", "max_position_embeddings"),
        norm="layernorm",
        norm_bias=True,
        norm_placement="parallel",
        eps=setting(hub, "layer_norm_epsilon", default=1e-5),
        activation=activation_in(hub, "activation_function", "gelu_new"),
        position="rope",
        rope_pairing="interleaved",
        rope_fraction=share(rotated, d_model // heads),
        feed_forward_bias=True,
        head_bias=True,
        tie_embeddings=hub.get("tie_word_embeddings", False),
    )


def share(rotated: int, head_dim: int) -> float:
    """The fraction of which `int(head_dim * fraction)` is `rotated`."""
    found = rotated / head_dim
    return found if int(head_dim * found) == rotated else math.nextafter(found, 1.0)
