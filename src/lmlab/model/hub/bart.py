"""BART files (1910.13461): post-LayerNorm with biases, learned positions whose table starts at row 2, a norm after the
embedding, a bias on the logits.

Positions count a row's real tokens here and its places in transformers: the same where padding comes after the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmlab.model.config import ModelConfig
from lmlab.model.hub import names
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import PLAIN, PLAIN_OF, activation_name, activation_of, common, expect, unlike

MODEL_TYPES = {"bart": "BartForConditionalGeneration"}

_FIXED: dict[str, Any] = {
    "architecture": "encoder-decoder",
    "norm": "layernorm",
    "norm_bias": True,
    "norm_placement": "post",
    "embedding_norm": True,
    "final_norm": False,
    "position": "learned",
    "position_offset": 2,
}
_BIASES = dict.fromkeys(("qkv_bias", "attention_out_bias", "feed_forward_bias"), True)
_EPS = 1e-5  # of every norm, by the code; the files do not say


def _stack(ours: str, theirs: str) -> names.Table:
    layer = f"{theirs}.layers.{{}}"
    table = {
        f"{ours}position": f"{theirs}.embed_positions",
        f"{ours}embedding_norm": f"{theirs}.layernorm_embedding",
        f"{ours}blocks.{{}}.attention_norm": f"{layer}.self_attn_layer_norm",
        f"{ours}blocks.{{}}.cross_attention_norm": f"{layer}.encoder_attn_layer_norm",
        f"{ours}blocks.{{}}.feed_forward_norm": f"{layer}.final_layer_norm",
        f"{ours}blocks.{{}}.feed_forward.up": f"{layer}.fc1",
        f"{ours}blocks.{{}}.feed_forward.down": f"{layer}.fc2",
    }
    for part, name in (("attention", "self_attn"), ("cross_attention", "encoder_attn")):
        for a, b in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")):
            table[f"{ours}blocks.{{}}.{part}.{a}"] = f"{layer}.{name}.{b}"
    return table


TABLE = {"embedding": "model.shared", "head_bias": "final_logits_bias"}
TABLE |= _stack("encoder.", "model.encoder") | _stack("", "model.decoder")


def misfit(config: ModelConfig) -> str | None:
    """Why a config cannot be held by these files, or None."""
    fixed: dict[str, Any] = _FIXED | _BIASES | {"tie_embeddings": True, "head_dim": config.d_model / config.heads}
    if config.embedding_scale not in (None, 1.0):
        fixed["embedding_scale"] = config.d_model**0.5
    fixed |= {"kv_heads": config.heads, "encoder_heads": config.heads}
    fixed |= {"activation": PLAIN, "eps": _EPS}
    return unlike(config, "bart", fixed, ("encoder_layers", "encoder_d_ff", "head_bias"))


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config. No token is forced at the end: what is generated is the model's own."""
    encoder, decoder = config.sizes(encoder=True), config.sizes()
    start = special.eos_id if special.decoder_start_id is None else special.decoder_start_id
    return common(config, "bart", MODEL_TYPES["bart"], special) | {
        "max_position_embeddings": config.context_length,
        "d_model": config.d_model,
        "encoder_layers": encoder.layers,
        "encoder_attention_heads": encoder.heads,
        "encoder_ffn_dim": encoder.d_ff,
        "decoder_layers": decoder.layers,
        "decoder_attention_heads": decoder.heads,
        "decoder_ffn_dim": decoder.d_ff,
        "activation_function": activation_name(config.activation, PLAIN_OF),
        "dropout": config.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "scale_embedding": config.embedding_scale not in (None, 1.0),
        "is_encoder_decoder": True,
        "decoder_start_token_id": start,
        "forced_eos_token_id": None,
        "forced_bos_token_id": None,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not.

    The switches of older files for other places of the norms are refused where they are not BART's.
    """
    expect(
        hub,
        tie_word_embeddings=True,
        normalize_before=False,
        add_final_layer_norm=False,
        normalize_embedding=True,
        static_position_embeddings=False,
        add_bias_logits=False,
        decoder_attention_heads=hub["encoder_attention_heads"],
    )
    return ModelConfig(
        **_FIXED,
        head_bias=True,
        bias=True,
        layers=hub["decoder_layers"],
        encoder_layers=hub["encoder_layers"],
        d_model=hub["d_model"],
        heads=hub["encoder_attention_heads"],
        d_ff=hub["decoder_ffn_dim"],
        encoder_d_ff=hub["encoder_ffn_dim"],
        vocab_size=hub["vocab_size"],
        context_length=hub["max_position_embeddings"],
        eps=_EPS,
        activation=activation_of(hub.get("activation_function", "gelu"), PLAIN_OF),
        embedding_scale=hub["d_model"] ** 0.5 if hub.get("scale_embedding") else None,
        dropout=hub.get("dropout", 0.1),
    )


def weights_to_hub(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under the file's names; a model without a bias on the logits has one of zeros there."""
    named = names.to_hub(weights, TABLE)
    bias = named.get("final_logits_bias", torch.zeros(config.vocab_size))
    return named | {"final_logits_bias": bias[None]}


def weights_from_hub(weights: dict[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """A file's tensors under our names, and the names of those that have no place in the config.

    Files of the bare model (names without `model.`, no head) are read too; without final_logits_bias it is 0, and one of
    zeros has no place in a config without it and needs none.
    """
    if not any(name.startswith("model.") for name in weights):
        bare = ("shared.", "encoder.", "decoder.")
        weights = {f"model.{name}" if name.startswith(bare) else name: tensor for name, tensor in weights.items()}
    copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    weights = names.drop_copies(weights, "model.shared.weight", copies)
    if "final_logits_bias" in weights:
        weights["final_logits_bias"] = weights["final_logits_bias"].flatten()
    elif "model.shared.weight" in weights:
        shared = weights["model.shared.weight"]
        weights["final_logits_bias"] = shared.new_zeros(len(shared))
    if not config.head_bias and not weights.get("final_logits_bias", torch.ones(1)).any():
        del weights["final_logits_bias"]
    return names.from_hub(weights, config, TABLE)
