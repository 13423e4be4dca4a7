"""T5 files (1910.10683) and T5 v1.1's (2002.05202; Flan-T5 the same): pre-RMSNorm without biases, one table of relative biases a
stack, scores not scaled. T5 ties the head to the embedding and scales what it takes by d_model^-0.5; v1.1 does neither and has
gated feed-forward.

The table of biases is the first layer's in the files and the stack's here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lmlab.model.config import ModelConfig
from lmlab.model.hub import names
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import activation_name, activation_of, common, unlike
from lmlab.model.settings import GATED

MODEL_TYPES = {"t5": "T5ForConditionalGeneration"}

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "silu": "silu",
    "gated-gelu": "geglu-tanh",  # the tanh form, by its code
    "gated-silu": "swiglu",
    "gated-relu": "reglu",
    "gated-sigmoid": "glu",
}
FIXED: dict[str, Any] = {
    "architecture": "encoder-decoder",
    "position": "relative-bias",
    "attention_scale": 1.0,
}
HELD = frozenset(("head_dim", "tie_embeddings", "logit_scale", "activation", "relative_buckets", "relative_distance"))


def stack_table(ours: str, theirs: str, feed_forward: str, index: int) -> names.Table:
    """The names of one stack; its feed-forward is layer `index` of a block, and called `feed_forward` there."""
    attention = {"q": "q", "k": "k", "v": "v", "out": "o"}
    block = f"{theirs}.block.{{}}.layer"
    table = {
        f"{ours}relative_bias": f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias",
        f"{ours}final_norm": f"{theirs}.final_layer_norm",
        f"{ours}blocks.{{}}.attention_norm": f"{block}.0.layer_norm",
        f"{ours}blocks.{{}}.feed_forward_norm": f"{block}.{index}.layer_norm",
        f"{ours}blocks.{{}}.feed_forward.down": f"{block}.{index}.{feed_forward}.wo",
    }
    table |= {f"{ours}blocks.{{}}.attention.{a}": f"{block}.0.SelfAttention.{b}" for a, b in attention.items()}
    if index == 2:
        table[f"{ours}blocks.{{}}.cross_attention_norm"] = f"{block}.1.layer_norm"
        table |= {
            f"{ours}blocks.{{}}.cross_attention.{a}": f"{block}.1.EncDecAttention.{b}" for a, b in attention.items()
        }
    return table


def _table(config: ModelConfig) -> names.Table:
    table = {"embedding": "shared", "head": "lm_head"}
    for ours, theirs, index in (("encoder.", "encoder", 1), ("", "decoder", 2)):
        table |= stack_table(ours, theirs, "DenseReluDense", index)
        inner = f"{theirs}.block.{{}}.layer.{index}.DenseReluDense"
        gated = config.activation in GATED
        table[f"{ours}blocks.{{}}.feed_forward.up"] = f"{inner}.wi_1" if gated else f"{inner}.wi"
        table[f"{ours}blocks.{{}}.feed_forward.gate"] = f"{inner}.wi_0"
    return table


def odd_stack(config: ModelConfig, files: str) -> str | None:
    """Why the two stacks are none of a T5's, or None."""
    if not config.has_encoder:
        return f"architecture is {config.architecture}; {files} files hold encoder-decoder only"
    if config.sizes(encoder=True)._replace(layers=0) != config.sizes()._replace(layers=0):
        return f"encoder and decoder differ in more than layers; {files} files have one width and one number of heads"
    return None


def misfit(config: ModelConfig) -> str | None:
    """Why a config cannot be held by these files, or None."""
    fixed: dict[str, Any] = FIXED | {"logit_scale": config.d_model**-0.5 if config.tie_embeddings else None}
    problem = odd_stack(config, "t5") or unlike(
        config, "t5", fixed, HELD - {"logit_scale"} | {"encoder_layers", "encoder_heads", "encoder_d_ff"}
    )
    if problem is None and config.activation not in ACTIVATIONS.values():
        problem = f"activation is {config.activation}; t5 files hold {', '.join(ACTIVATIONS.values())}"
    return problem


def shape_to_hub(config: ModelConfig, special: SpecialTokens, kind: str, architecture: str) -> dict[str, Any]:
    """What the `config.json` of a T5 and of a model made from it hold."""
    start = special.pad_id if special.decoder_start_id is None else special.decoder_start_id
    return common(config, kind, architecture, special) | {
        "n_positions": config.context_length,
        "d_model": config.d_model,
        "d_kv": config.sizes().head_dim,
        "d_ff": config.sizes().d_ff,
        "num_layers": config.sizes(encoder=True).layers,
        "num_decoder_layers": config.layers,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.eps,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "decoder_start_token_id": start,
    }


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config. Newer releases of transformers read the scale of the logits by its own name."""
    return shape_to_hub(config, special, "t5", MODEL_TYPES["t5"]) | {
        "feed_forward_proj": activation_name(config.activation, ACTIVATIONS),
        "scale_decoder_outputs": config.tie_embeddings,
    }


def shape_from_hub(hub: dict[str, Any]) -> dict[str, Any]:
    """The settings that a T5 and a model made from it have. `n_positions`, where it is absent, is T5's 512."""
    return FIXED | {
        "layers": hub.get("num_decoder_layers") or hub["num_layers"],
        "encoder_layers": hub["num_layers"],
        "d_model": hub["d_model"],
        "heads": hub["num_heads"],
        "head_dim": hub["d_kv"],
        "d_ff": hub["d_ff"],
        "vocab_size": hub["vocab_size"],
        "context_length": hub.get("n_positions") or 512,
        "relative_buckets": hub.get("relative_attention_num_buckets", 32),
        "relative_distance": hub.get("relative_attention_max_distance", 128),
        "eps": hub.get("layer_norm_epsilon", 1e-6),
        "dropout": hub.get("dropout_rate", 0.1),
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not.

    Files that newer releases of transformers write say tie_word_embeddings true even of v1.1, and tell it by
    scale_decoder_outputs false; such a model is read untied, and where the file has no head its head is the embedding's copy.
    """
    tied = hub.get("scale_decoder_outputs") is not False and hub.get("tie_word_embeddings") is not False
    return ModelConfig(
        **shape_from_hub(hub),
        activation=activation_of(hub.get("feed_forward_proj", "relu"), ACTIVATIONS),
        tie_embeddings=tied,
        logit_scale=hub["d_model"] ** -0.5 if tied else None,
    )


def weights_to_hub(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under the file's names."""
    return names.to_hub(weights, _table(config))


def weights_from_hub(weights: dict[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """A file's tensors under our names, and the names of those that have no place in the config."""
    return names.from_hub(cleaned(weights, config), config, _table(config))


def cleaned(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Without the embedding's copies and a table of cross-attention that old files have and no code uses."""
    weights = names.drop_buffers(weights, r"EncDecAttention\.relative_attention_bias\.weight")
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    weights = names.drop_copies(
        weights, "shared.weight", (*copies, "lm_head.weight") if config.tie_embeddings else copies
    )
    if not config.tie_embeddings and "lm_head.weight" not in weights and "shared.weight" in weights:
        weights["lm_head.weight"] = weights["shared.weight"].clone()
    return weights
