"""Switch Transformer files (2101.03961): T5 with one of many experts a token in some layers, tied, the router in float32.

An expert takes the first `expert_capacity` tokens of a sequence; those after them pass by in the residual stream. Padding
takes no place here; in transformers it does, which is the same where it comes after the tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lmlab.model.config import ModelConfig, MoEConfig
from lmlab.model.hub import names, t5
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import PLAIN_OF, activation_name, activation_of, expect, unlike
from lmlab.model.hub.mixtral import odd_experts

MODEL_TYPES = {"switch_transformers": "SwitchTransformersForConditionalGeneration"}


def _stack(ours: str, theirs: str, index: int) -> names.Table:
    inner = f"{theirs}.block.{{}}.layer.{index}.mlp"
    return t5.stack_table(ours, theirs, "mlp", index) | {
        f"{ours}blocks.{{}}.feed_forward.up": f"{inner}.wi",
        f"{ours}blocks.{{}}.feed_forward.router": f"{inner}.router.classifier",
        f"{ours}blocks.{{}}.feed_forward.experts.{{}}.up": f"{inner}.experts.expert_{{}}.wi.weight",
        f"{ours}blocks.{{}}.feed_forward.experts.{{}}.down": f"{inner}.experts.expert_{{}}.wo.weight",
    }


TABLE = {"embedding": "shared"} | _stack("encoder.", "encoder", 1) | _stack("", "decoder", 2)


def _sparse(layers: int, step: int) -> list[int]:
    """The layers with experts in a file of this step: the second of each `step`."""
    return [layer for layer in range(layers) if step == 1 or layer % step == 1]


def _sparse_here(layers: int, every: int) -> list[int]:
    return [layer for layer in range(layers) if (layer + 1) % every == 0]


def _step(layers: int, sparse: int) -> int:
    return layers // sparse if sparse else layers


def misfit(config: ModelConfig) -> str | None:
    """Why a config cannot be held by these files, or None."""
    moe = config.moe
    if moe is None:
        return "it has no experts"
    fixed = t5.FIXED | {"tie_embeddings": True, "logit_scale": config.d_model**-0.5}
    held = ("moe", "activation", "head_dim", "relative_buckets", "relative_distance")
    held = (*held, "encoder_layers", "encoder_heads", "encoder_d_ff")
    problem = (
        t5.odd_stack(config, "switch_transformers")
        or odd_experts(moe, normalise="all", top_k=1, sequence_capacity=moe.sequence_capacity)
        or unlike(config, "switch_transformers", fixed, held)
    )
    if problem is not None:
        return problem
    if moe.d_ff not in (None, config.sizes().d_ff) or moe.activation not in (None, config.activation):
        return (
            "the experts differ from the other feed-forward layers; switch_transformers files have one shape for both"
        )
    if config.activation not in PLAIN_OF.values():
        return f"activation is {config.activation}; switch_transformers files hold those without a gate"
    for layers in (config.layers, config.sizes(encoder=True).layers):
        ours = _sparse_here(layers, moe.every)
        if ours != _sparse(layers, _step(layers, len(ours))):
            return f"moe.every {moe.every} in {layers} layers; these files have experts in the second of each n layers"
    return None


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config. Without a limit on an expert's tokens it is the context, which none can exceed."""
    moe, encoder, decoder = config.moe, config.sizes(encoder=True).layers, config.layers
    assert moe is not None
    kind = "switch_transformers"
    return t5.shape_to_hub(config, special, kind, MODEL_TYPES[kind]) | {
        "dense_act_fn": activation_name(config.activation, PLAIN_OF),
        "num_experts": moe.experts,
        "expert_capacity": moe.sequence_capacity or config.context_length,
        "num_sparse_encoder_layers": len(_sparse_here(encoder, moe.every)),
        "num_sparse_decoder_layers": len(_sparse_here(decoder, moe.every)),
        "router_bias": False,
        "router_dtype": "float32",
        "router_jitter_noise": moe.jitter,
        "router_aux_loss_coef": moe.balance_loss,
        "router_z_loss_coef": moe.z_loss,
        "add_router_probs": False,
    }


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    expect(hub, router_bias=False, router_dtype="float32", is_gated_act=False, tie_word_embeddings=True)
    shape = t5.shape_from_hub(hub)
    capacity = hub.get("expert_capacity", 64)
    moe = MoEConfig(
        experts=hub.get("num_experts", 8),
        top_k=1,
        every=_every(hub, shape["encoder_layers"], shape["layers"]),
        normalise="all",
        sequence_capacity=capacity if capacity < shape["context_length"] else None,
        jitter=hub.get("router_jitter_noise", 0.01),
        balance_loss=hub.get("router_aux_loss_coef", 0.001),
        z_loss=hub.get("router_z_loss_coef", 0.001),
    )
    activation = activation_of(hub.get("dense_act_fn", "relu"), PLAIN_OF)
    return ModelConfig(**shape, moe=moe, activation=activation, logit_scale=hub["d_model"] ** -0.5)


def _every(hub: dict[str, Any], encoder: int, decoder: int) -> int:
    """The `every` that puts experts where the file has them, in both stacks. Raises ValueError where there is none."""
    wanted = []
    for name, layers in (("encoder", encoder), ("decoder", decoder)):
        step = hub.get(f"{name}_sparse_step") or _step(layers, hub.get(f"num_sparse_{name}_layers", 3))
        wanted.append(_sparse(layers, step))
    for every in range(1, max(encoder, decoder) + 1):
        if [_sparse_here(encoder, every), _sparse_here(decoder, every)] == wanted:
            return every
    raise ValueError(
        f"experts in encoder layers {wanted[0]} and decoder layers {wanted[1]}: expected every n-th layer of both stacks"
    )


def weights_to_hub(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under the file's names, one pair of matrices an expert."""
    return names.to_hub(weights, TABLE)


def weights_from_hub(weights: dict[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """A file's tensors under our names, and the names of those that have no place in the config."""
    return names.from_hub(t5.cleaned(weights, config), config, TABLE)
