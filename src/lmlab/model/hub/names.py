"""Weights under another name: a table of modules, `{}` for each number (layer, expert), suffixes `.weight` and `.bias` kept."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

Table = dict[str, str]
"""Our module, or whole parameter name -> the file's, both with `{}` for the numbers: blocks.{}.attention.q ->
model.layers.{}.self_attn.q_proj."""
Weights = dict[str, Tensor]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def parameter_names(config: ModelConfig) -> list[str]:
    """The names in a model's state dict, without making its weights."""
    with torch.device("meta"):
        return list(Transformer(config).state_dict())


def name_to_hub(name: str, table: Table) -> str:
    """The file's name of one of our parameters. Raises KeyError where the table has none."""
    numbers = _NUMBER.findall(name)
    key = _NUMBER.sub("{}", name)
    if key in table:
        return table[key].format(*numbers)
    module, _, last = key.rpartition(".")
    return f"{table[module].format(*numbers)}.{last}"


def to_hub(weights: Weights, table: Table) -> Weights:
    """A state dict under the file's names; stacked experts one by one."""
    return {name_to_hub(name, table): tensor for name, tensor in _unstacked(weights).items()}


def from_hub(weights: Weights, config: ModelConfig, table: Table) -> tuple[Weights, list[str]]:
    """(what of a file is a parameter of this config, under our names; the names of the rest). Experts are stacked."""
    experts = config.moe.experts if config.moe is not None else 0
    names = [each for name in parameter_names(config) for each in _one_by_one(name, experts)]
    wanted = {name: name_to_hub(name, table) for name in names}
    found = {ours: weights[theirs] for ours, theirs in wanted.items() if theirs in weights}
    return _stacked(found, experts), sorted(set(weights) - set(wanted.values()))


def drop_copies(weights: Weights, kept: str, copies: Iterable[str]) -> Weights:
    """Without the copies of a tied weight; a file may hold the weight under a copy's name alone. Raises ValueError for a copy
    that differs."""
    weights = dict(weights)
    for copy in copies:
        if copy not in weights:
            continue
        if kept not in weights:
            weights[kept] = weights.pop(copy)
        elif torch.equal(weights[copy], weights[kept]):
            del weights[copy]
        else:
            raise ValueError(f"{copy} differs from {kept}, though the config says that they are one weight")
    return weights


def drop_buffers(weights: Weights, ending: str) -> Weights:
    """Without what is computed from the config and only stored in files of older releases (a regular expression)."""
    return {name: tensor for name, tensor in weights.items() if not re.search(ending + "$", name)}


def split_rows(weights: Weights, fused: str, parts: tuple[str, str]) -> Weights:
    """Tensors whose name ends with `fused` cut in two halves of rows, under the two endings."""
    out: Weights = {}
    for name, tensor in weights.items():
        if name.endswith(fused):
            halves = tensor.chunk(2, dim=-2)
            out |= {name.removesuffix(fused) + part: half for part, half in zip(parts, halves, strict=True)}
        else:
            out[name] = tensor
    return out


def fuse_rows(weights: Weights, fused: str, parts: tuple[str, str]) -> Weights:
    """The inverse of `split_rows`."""
    first, second = parts
    out = {name: tensor for name, tensor in weights.items() if not name.endswith(parts)}
    for name, tensor in weights.items():
        if name.endswith(first):
            stem = name.removesuffix(first)
            out[stem + fused] = torch.cat((tensor, weights[stem + second]), dim=-2)
    return out


_EXPERTS = ".feed_forward.experts."


def _one_by_one(name: str, experts: int) -> list[str]:
    """blocks.3.feed_forward.experts.up -> ...experts.0.up, ...experts.1.up, ...; any other name as it is."""
    if _EXPERTS not in name:
        return [name]
    before, after = name.split(_EXPERTS)
    return [f"{before}{_EXPERTS}{expert}.{after}" for expert in range(experts)]


def _unstacked(weights: Weights) -> Weights:
    out: Weights = {}
    for name, tensor in weights.items():
        if _EXPERTS in name:
            # Copies, because a safetensors file takes no two views of one memory.
            out |= zip(_one_by_one(name, len(tensor)), (each.clone() for each in tensor), strict=True)
        else:
            out[name] = tensor
    return out


def _stacked(weights: Weights, experts: int) -> Weights:
    """Experts of which one is missing are left out whole."""
    out = {name: tensor for name, tensor in weights.items() if _EXPERTS not in name}
    stacks = {re.sub(r"(?<=\.experts\.)\d+\.", "", name): None for name in weights if _EXPERTS in name}
    for name in stacks:
        parts = _one_by_one(name, experts)
        if all(part in weights for part in parts):
            out[name] = torch.stack([weights[part] for part in parts])
    return out
