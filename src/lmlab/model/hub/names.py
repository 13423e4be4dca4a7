"""Weights under another name: a table of modules, `{}` for each number (layer, expert), suffixes `.weight` and `.bias` kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from lmlab.model.config import ModelConfig
from lmlab.model.hub import fused
from lmlab.model.hub.family import Weights
from lmlab.model.transformer import without_storage

Table = dict[str, str]
"""Our module, or whole parameter name -> the file's, both with `{}` for the numbers: blocks.{}.attention.q ->
model.layers.{}.self_attn.q_proj."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def empty_state(config: ModelConfig) -> Weights:
    """A model's state dict, of shapes without storage."""
    return without_storage(config).state_dict()


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
    names = [each for name in empty_state(config) for each in _one_by_one(name, experts)]
    wanted = {name: name_to_hub(name, table) for name in names}
    found = {ours: weights[theirs] for ours, theirs in wanted.items() if theirs in weights}
    return _stacked(found, experts), sorted(set(weights) - set(wanted.values()))


def drop_copies(weights: Weights, kept: str, copies: Iterable[str], called: str = "") -> Weights:
    """Without the copies of a tied weight; a file may hold the weight under a copy's name alone. Raises ValueError for a copy
    that differs; `called` is its word for the weight."""
    weights = dict(weights)
    for copy in copies:
        if copy not in weights:
            continue
        if kept not in weights:
            weights[kept] = weights.pop(copy)
        elif torch.equal(weights[copy], weights[kept]):
            del weights[copy]
        else:
            raise ValueError(f"{copy} differs from {called or kept}, though the config says that they are one weight")
    return weights


def drop_buffers(weights: Weights, ending: str) -> Weights:
    """Without what is computed from the config and only stored in files of older releases (a regular expression)."""
    return {name: tensor for name, tensor in weights.items() if not re.search(f"(?:{ending})$", name)}


@dataclass(frozen=True)
class Names:
    """Where a decoder's weights stand in files that differ in more than a table of names.

    `prefix` is what files of the bare model lack: both are read, the whole one is written. `fused` names the module that holds
    q, k and v (`fused.parts` in the table) in an `order` of `fused.ORDERS`. Matrices of modules whose names end with one of
    `transposed` are stored (in, out). `buffers`: endings of names that hold no weights. `also`: beginnings that are read for
    those that are written.
    """

    table: Table
    prefix: str
    fused: str | None = None
    order: str = "plain"
    transposed: tuple[str, ...] = ()
    buffers: str | None = None
    also: Mapping[str, str] = field(default_factory=dict)

    def to_hub(self, weights: Weights, config: ModelConfig) -> Weights:
        """Our weights under the file's names."""
        named = to_hub(weights, self.table)
        if self.fused is not None:
            named = fused.fuse(named, self.fused, self.order, config.sizes())
        return self._turned(named)

    def from_hub(self, weights: Weights, config: ModelConfig) -> tuple[Weights, list[str]]:
        """The file's weights under our names, and the names that are left over."""
        given = {self._whole(name): name for name in weights}
        file = self._turned({whole: weights[name] for whole, name in given.items()})
        if self.buffers is not None:
            file = drop_buffers(file, self.buffers)
        if config.tie_embeddings:
            head = f"{self.table['head']}.weight"
            file = drop_copies(file, f"{self.table['embedding']}.weight", (head,), "the embedding")
        if self.fused is not None:
            file = fused.split(file, self.fused, self.order, config.sizes())
        found, left = from_hub(file, config, self.table)
        return found, [given.get(name, name) for name in left]

    def _whole(self, name: str) -> str:
        for other, written in self.also.items():
            if name.startswith(other):
                name = written + name.removeprefix(other)
        return with_prefix(name, self.prefix, self.table)

    def _turned(self, weights: Weights) -> Weights:
        turned = tuple(f"{module}.weight" for module in self.transposed)
        return {name: each.T.contiguous() if name.endswith(turned) else each for name, each in weights.items()}


def with_prefix(name: str, prefix: str, table: Table) -> str:
    """A name as the model with its head has it, where it may be one of the bare model, which lacks the prefix."""
    tops = {theirs.split(".", 1)[0] for theirs in table.values()}
    return name if name.split(".", 1)[0] in tops else prefix + name


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
