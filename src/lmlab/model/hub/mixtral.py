"""Mixtral files (2401.04088): Mistral with a mixture of experts in every layer, the chosen ones' weights normalised, no
token dropped."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from lmlab.model.config import ModelConfig, MoEConfig
from lmlab.model.hub import llama, names
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import GATED_OF, activation_name, unlike

MODEL_TYPES = {"mixtral": "MixtralForCausalLM"}

TABLE = (
    llama.TOP
    | llama.ATTENTION
    | llama.PRE_NORMS
    | {
        "blocks.{}.feed_forward.router": "model.layers.{}.block_sparse_moe.gate",
        "blocks.{}.feed_forward.experts.{}.gate": "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
        "blocks.{}.feed_forward.experts.{}.down": "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
        "blocks.{}.feed_forward.experts.{}.up": "model.layers.{}.block_sparse_moe.experts.{}.w3.weight",
    }
)


def misfit(config: ModelConfig) -> str | None:
    """Why a config cannot be held by these files, or None."""
    moe = config.moe
    if moe is None:
        return "it has no experts"
    problem = odd_experts(moe, normalise="chosen", every=1) or unlike(
        config, "mixtral", {}, llama.HELD | {"moe", "attention", "activation"}
    )
    if problem is None and not {config.activation, moe.activation or config.activation} <= set(GATED_OF.values()):
        problem = f"activation is {config.activation}, of the experts {moe.activation}; expected gated ones"
    if problem is None and len({config.pattern(layer) for layer in range(config.layers)}) > 1:
        problem = "attention differs between layers; mixtral files hold one window for all"
    return problem or llama.odd_pattern(config)


_PLAIN_EXPERTS = {"evaluation_capacity_factor": None, "sequence_capacity": None, "shared_experts": 0}


def odd_experts(moe: MoEConfig, **wanted: Any) -> str | None:
    """Why these experts compute something else in evaluation than a file's, or None."""
    for name, value in (_PLAIN_EXPERTS | wanted).items():
        if getattr(moe, name) != value:
            return f"moe.{name} is {getattr(moe, name)}; expected {value}"
    return None


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    moe, pattern = config.moe, config.pattern(0)
    assert moe is not None
    return llama.decoder_to_hub(config, special, "mixtral", MODEL_TYPES["mixtral"]) | {
        "intermediate_size": moe.d_ff or config.sizes().d_ff,
        "hidden_act": activation_name(moe.activation or config.activation, GATED_OF),
        "sliding_window": None if pattern.is_full else pattern.numbers[0],
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.balance_loss,
        "router_jitter_noise": moe.jitter,
        "output_router_logits": False,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    window = hub.get("sliding_window")
    moe = MoEConfig(
        experts=hub.get("num_local_experts", 8),
        top_k=hub.get("num_experts_per_tok", 2),
        balance_loss=hub.get("router_aux_loss_coef", 0.001),
        jitter=hub.get("router_jitter_noise", 0.0),
    )
    return ModelConfig(
        **llama.decoder_from_hub(hub, theta=1e6), moe=moe, attention=f"local({window})" if window else "full"
    )


def weights_to_hub(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under the names of the published files: one matrix an expert, w1 the gate, w3 up, w2 down."""
    return names.to_hub(weights, TABLE)


def weights_from_hub(weights: dict[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """A file's tensors under our names, and the names of those that have no place in the config."""
    return names.from_hub(llama.cleaned(_separate(weights), config), config, TABLE)


_STACKED = re.compile(r"\.mlp\.experts\.(gate_up_proj|down_proj)$")


def _separate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Files that hold an expert layer stacked, gate above up, in the names of those that hold one matrix an expert."""
    out: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not _STACKED.search(name):
            out[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = tensor
            continue
        stem = _STACKED.sub(".block_sparse_moe.experts.", name)
        for expert, matrix in enumerate(tensor):
            if name.endswith("down_proj"):
                out[f"{stem}{expert}.w2.weight"] = matrix
            else:
                gate, up = matrix.chunk(2)
                out |= {f"{stem}{expert}.w1.weight": gate, f"{stem}{expert}.w3.weight": up}
    return out
