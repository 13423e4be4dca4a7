"""What a family's file is made of: the interface, and the parts that most families share.

A file `hub/NAME.py` is a map of configs and a map of weights. Names stand in tables (`Names`), and only what a table cannot
say (which switches a file holds, what is refused) is written out. `hub/__init__.py` lists the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from lmlab.model.config import ModelConfig, Parts
from lmlab.model.hub.fused import ORDERS

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that a `config.json` names. None: the model has no such token."""

    eos_id: int | None
    pad_id: int | None = None
    bos_id: int | None = None
    decoder_start_id: int | None = None
    """First token of an encoder-decoder's targets."""


class Family(Protocol):
    """A module of this folder. `weights_*` take whole state dicts; tensors keep their type."""

    MODEL_TYPES: dict[str, str]
    """`model_type` in config.json -> the class that opens it as a language model."""

    def misfit(self, config: ModelConfig) -> str | None:
        """Why these files cannot hold a config exactly, or None where they can."""

    def to_hub(self, config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
        """The `config.json` of a config that fits."""

    def from_hub(self, hub: dict[str, Any]) -> ModelConfig:
        """The config of a `config.json`. Raises ValueError naming what this model cannot honour."""

    def weights_to_hub(self, weights: Weights, config: ModelConfig) -> Weights:
        """Our names -> the file's."""

    def weights_from_hub(self, weights: Weights, config: ModelConfig) -> tuple[Weights, list[str]]:
        """The file's names -> ours, and the names that nothing here claims. Raises ValueError for a copy of a tied
        weight that is no copy."""


# --- configs ---------------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
"""The ecosystem's names of plain activations -> ours."""
ACTIVATION_NAMES = {"gelu": "gelu", "gelu-tanh": "gelu_new", "relu": "relu", "relu2": "relu2", "silu": "silu"}

_FREE = frozenset({"dropout", "initialisation", "mup_base_width", "bias"})
"""Switches that do not change what a trained model computes, or (muP's scales, `bias`) are seen through others."""
_OF_POSITION = {
    "rope": ("rope_theta", "rope_fraction", "rope_pairing", "rope_scaling"),
    "relative-bias": ("relative_buckets", "relative_distance"),
}
_OF_NORM = {"deepnorm": ("deepnorm", "residual_scale"), "parallel": ("parallel_norms",)}


def effective(config: ModelConfig) -> dict[str, Any]:
    """Every switch that changes what a model computes, with its defaults filled in: equal values, equal models. Switches
    without effect beside the others (a rotary base without rotary positions) are left out."""
    found = {name: getattr(config, name) for name in Parts.model_fields if name not in _FREE}
    for chosen, of in ((config.position, _OF_POSITION), (config.norm_placement, _OF_NORM)):
        for key, names in of.items():
            if key != chosen:
                for name in names:
                    found.pop(name)
    kv_heads, head_dim, d_ff = config.dims
    found |= {"kv_heads": kv_heads, "head_dim": head_dim, "d_ff": d_ff, "final_norm": config.has_final_norm}
    found |= {"qkv_bias": config.has_bias("qkv"), "attention_out_bias": config.has_bias("attention_out")}
    found |= {"feed_forward_bias": config.has_bias("feed_forward"), "embedding_scale": config.embedding_scale or 1.0}
    found |= {"attention_scale": config.score_scale, "logit_scale": config.head_scale}
    if all(config.pattern(layer).is_full for layer in range(config.layers)):
        found["attention"] = "full"
    if config.has_encoder:
        encoder = config.sizes(encoder=True)
        found |= {"encoder_layers": encoder.layers, "encoder_heads": encoder.heads, "encoder_d_ff": encoder.d_ff}
    return found


def differs(config: ModelConfig, held: frozenset[str], **fixed: Any) -> str | None:
    """Why a config is not one of a family, or None. `held`: switches that its files name; every other one must have the
    value of `fixed`, or else its default. A switch that is in `fixed` may name several values in a set."""
    shape = {"layers", "d_model", "heads", "vocab_size", "context_length"}
    plain = effective(ModelConfig.model_validate(config.model_dump(include=shape | {"head_dim"})))
    plain |= {"kv_heads": config.heads, "attention_scale": config.sizes().head_dim ** -0.5}
    plain |= {"head_dim": config.d_model // config.heads}
    for name, value in effective(config).items():
        wanted = fixed.get(name, plain.get(name, Parts.model_fields[name].default))
        if name not in held and (value not in wanted if isinstance(wanted, set) else value != wanted):
            expected = " or ".join(map(str, sorted(wanted))) if isinstance(wanted, set) else wanted
            return f"{name} is {value}, these files have {expected}"
    return None


def setting(hub: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """The first of the names that a config.json has (null counts as absent). Raises ValueError where it has none and
    there is no default."""
    for name in names:
        if hub.get(name) is not None:
            return hub[name]
    if default is None:
        raise ValueError(f"names no {' or '.join(names)}")
    return default


def expect(hub: Mapping[str, Any], **fixed: Any) -> None:
    """Raises ValueError where a config.json has another value than the only one that this model can honour."""
    for name, wanted in fixed.items():
        found = hub.get(name)
        if found is not None and found != wanted:
            raise ValueError(f"{name} is {json.dumps(found)}; this model can do {json.dumps(wanted)} only")


def activation_of(hub: Mapping[str, Any], name: str, default: str) -> Any:
    """Our name of an activation. Raises ValueError for one that this model has not."""
    found = hub.get(name) or default
    if found not in ACTIVATIONS:
        raise ValueError(f"{name} is {found}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[found]


def rotation(hub: Mapping[str, Any], fraction: float = 1.0, *legacy: str) -> dict[str, Any]:
    """rope_theta and rope_fraction of a config.json, in the newer spelling (`rope_parameters`) or the older one; `legacy`
    are a family's own older names of the base and the fraction. Raises ValueError for a stretched rotation."""
    rope = hub.get("rope_parameters") or {}
    kind = rope.get("rope_type") or (hub.get("rope_scaling") or {}).get("rope_type") or "default"
    if hub.get("rope_scaling") and kind == "default":
        kind = (hub["rope_scaling"]).get("type") or "default"
    if kind != "default":
        raise ValueError(f"rope_type is {kind}; this family is read with 'default' only")
    base, share = (*legacy, "rope_theta", "partial_rotary_factor")[:2]
    theta = setting({**hub, **rope}, "rope_theta", base, default=10000.0)
    return {
        "position": "rope",
        "rope_theta": float(theta),
        "rope_fraction": float(setting({**hub, **rope}, "partial_rotary_factor", share, default=fraction)),
    }


def rotation_to_hub(config: ModelConfig) -> dict[str, Any]:
    """Both spellings of the rotation."""
    share = config.rope_fraction
    rope = {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": share}
    return {"rope_parameters": rope, "rope_theta": config.rope_theta, "partial_rotary_factor": share}


def common(config: ModelConfig, kind: str, architecture: str, special: SpecialTokens) -> dict[str, Any]:
    """What stands in every config.json."""
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


# --- weights ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Names:
    """Where a decoder's weights stand in a family's files.

    `top` and `block` map our modules (`attention.out`) or single parameters (`head_bias`) to theirs; a block's are put
    below `blocks` and the layer's number. `base` is the prefix that files saved from the bare model lack: both are read,
    the whole one is written. `fused` names the module that holds q, k and v in one matrix, in the `order` of `ORDERS`.
    Matrices of modules in `transposed` (theirs) are stored (in, out). `buffers`: patterns of names that hold no weights.
    `also`: other names of theirs that are read for one that is written.
    """

    top: Mapping[str, str]
    block: Mapping[str, str]
    base: str
    blocks: str
    fused: str | None = None
    order: str = "plain"
    transposed: frozenset[str] = frozenset()
    buffers: tuple[str, ...] = ()
    also: Mapping[str, str] = field(default_factory=dict)

    def to_hub(self, weights: Weights, config: ModelConfig) -> Weights:
        """Our weights under the file's names."""
        found, separate = {}, {}
        for name, tensor in weights.items():
            if self.fused and (match := _QKV.fullmatch(name)):
                separate[match[1], match[3], match[2]] = tensor
            else:
                found[self._theirs(name)] = tensor
        join = ORDERS[self.order].join
        for layer, last in dict.fromkeys((layer, last) for layer, last, _ in separate):
            q, k, v = (separate[layer, last, part] for part in "qkv")
            found[self._fused(layer, last)] = join(q, k, v, config.sizes())
        return {name: self._turned(name, tensor) for name, tensor in found.items()}

    def from_hub(self, weights: Weights, config: ModelConfig) -> tuple[Weights, list[str]]:
        """The file's weights under our names, and the names that are left over."""
        given = {self._whole(name): name for name in weights}
        found: Weights = {}
        claimed = {whole for whole in given if any(re.search(pattern, whole) for pattern in self.buffers)}
        for ours in parameter_names(config):
            match = _QKV.fullmatch(ours) if self.fused else None
            theirs = self._fused(match[1], match[3]) if match else self._theirs(ours)
            if theirs not in given:
                continue
            claimed.add(theirs)
            tensor = self._turned(theirs, weights[given[theirs]])
            if match:
                tensor = ORDERS[self.order].split(tensor, config.sizes())["qkv".index(match[2])]
            found[ours] = tensor
        head = self.top.get("head.weight", "lm_head.weight")
        if config.tie_embeddings and head in given and "embedding.weight" in found:
            check_tied(weights[given[head]], found["embedding.weight"], given[head])
            claimed.add(head)
        return found, [name for whole, name in given.items() if whole not in claimed]

    def _fused(self, layer: str, last: str) -> str:
        return f"{self.base}{self.blocks}.{layer}.{self.fused}.{last}"

    def _theirs(self, name: str) -> str:
        match = _BLOCK.fullmatch(name)
        table, rest = (self.top, name) if match is None else (self.block, match[2])
        if rest in table:
            theirs = table[rest]
        else:
            module, _, last = rest.rpartition(".")
            theirs = f"{table[module]}.{last}"
        if match is None:
            return theirs
        return f"{self.base}{self.blocks}.{match[1]}.{theirs}"

    def _whole(self, name: str) -> str:
        for other, written in self.also.items():
            if name.startswith(other):
                name = written + name[len(other) :]
        outside = {each.split(".", 1)[0] for each in self.top.values()}
        return name if name.split(".", 1)[0] in outside else self.base + name

    def _turned(self, name: str, tensor: Tensor) -> Tensor:
        module = name.rpartition(".")[0].rpartition(f"{self.blocks}.")[2].partition(".")[2]
        return tensor.T.contiguous() if module in self.transposed and tensor.dim() == 2 else tensor


_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_QKV = re.compile(r"blocks\.(\d+)\.attention\.([qkv])\.(weight|bias)")


def parameter_names(config: ModelConfig) -> list[str]:
    """The names of a model's parameters; nothing is allocated."""
    return list(empty_state(config))


def empty_state(config: ModelConfig) -> Weights:
    """A state dict of shapes without storage."""
    from lmlab.model.transformer import Transformer

    with torch.device("meta"):
        return Transformer(config).state_dict()


def check_tied(copy: Tensor, original: Tensor, name: str) -> None:
    """Raises ValueError where a file's second copy of a tied weight is another weight."""
    if copy.shape != original.shape or not torch.equal(copy, original):
        raise ValueError(f"{name} differs from the embedding, though tie_word_embeddings says that they are one")
