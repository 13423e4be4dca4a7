"""A decoding step of fixed shapes, compiled: for accelerators, where starting an operation costs more than doing it.

Rows and slots are a capacity, not what is under way: every step computes all rows over all slots, and what is not there
is masked. So no shape changes from token to token, nothing is compiled again, and on CUDA the whole step is recorded and
replayed (`mode="reduce-overhead"`, CUDA graphs). That costs arithmetic on rows and slots that are empty: on a processor
the other decoders, whose loops do exactly what is there, are the faster ones. CUDA has not been tested.
"""

from __future__ import annotations

import copy
import os
import shutil
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.device import quiet_compiling
from lmlab.errors import Refused
from lmlab.generate.attend import Terms
from lmlab.generate.cache import Cache
from lmlab.generate.module_decoder import ModuleDecoder, projected
from lmlab.generate.weights import Precision
from lmlab.model.attention import Attention
from lmlab.model.moe import Routing
from lmlab.model.transformer import Block, Transformer

LEAST_SLOTS = 64
"""Slots grow by doubling from here: a longer text compiles the step at most log2(context / 64) times."""

SHAPES = 128
"""Shapes that a process may compile the step for (torch's default of 8 is for code whose shapes should not change)."""


class CompiledDecoder(ModuleDecoder):
    """`ModuleDecoder` with a compiled `decode`, for caches of the shapes that `capacity` gives. Prompts, and the caches of
    searches, which have other shapes, are computed as there.

    Raises Refused for what has no fixed shape: encoder-decoders (sources differ in length) and experts (so do their
    shares of the tokens); for int8 and int4, whose kernels are compiled already; and without a C++ compiler.
    """

    def __init__(self, model: Transformer, precision: Precision = "float32", backend: str = "inductor") -> None:
        config = model.config
        unfit = {
            "an encoder-decoder, whose sources differ in length": config.has_encoder,
            "experts, whose shares of the tokens differ": config.moe is not None,
            "position glm-2d, whose blanks differ": config.position == "glm-2d",
            f"{precision}, whose kernels are compiled already": precision in ("int8", "int4"),
        }
        for what, found in unfit.items():
            if found:
                raise Refused(f"compile: does not take {what}; leave compile out")
        if backend == "inductor" and model.embedding.weight.device.type == "cpu" and not _has_compiler():
            raise Refused("compile: needs a C++ compiler, such as g++ (or CXX to name one); leave compile out")
        self._shapes: set[tuple[int, int]] = set()
        self._plain = _Step(copy.deepcopy(model).eval(), precision)
        on_gpu = model.embedding.weight.device.type == "cuda"
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
        mode: Any = {"mode": "reduce-overhead"} if on_gpu and backend == "inductor" else {}
        quiet_compiling()
        self._step = torch.compile(self._plain, dynamic=False, fullgraph=True, backend=backend, **mode)
        super().__init__(model, precision)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's weights, into the memory where they were: nothing is compiled again."""
        super().refresh()
        self._plain.model.load_state_dict(self.model.state_dict())
        self._plain.terms = self.terms

    def capacity(self, rows: int, slots: int, most: int, now: Cache | None) -> tuple[int, int]:
        """(rows, slots) of a cache that has room for so many: powers of two, at most `most` rows and the context, and no
        less than the cache of now."""
        found = min(_power(rows), most), min(max(LEAST_SLOTS, _power(slots)), self.config.context_length)
        if now is not None:
            found = max(found[0], now.rows), max(found[1], now.size)
        self._shapes.add(found)
        return found

    def decode(self, tokens: list[int], positions: list[int], cache: Cache) -> Tensor:
        """As `ModuleDecoder.decode`."""
        if (cache.rows, cache.size) not in self._shapes:
            return super().decode(tokens, positions, cache)
        none = [0] * (cache.rows - len(tokens))
        tokens_B = torch.tensor([*tokens, *none], device=self.device)
        positions_B = torch.tensor([*positions, *none], device=self.device)
        there_B = torch.arange(cache.rows, device=self.device) < len(tokens)
        stores = [group.data for group in cache.groups]
        if self.device.type == "cuda":  # else CUDA graphs are not used where an input is written to
            for store in stores:
                torch._dynamo.mark_static_address(store)
        hidden_BD = self._step(tokens_B, positions_B, there_B, stores, cache.places)
        return hidden_BD[: len(tokens)].clone()  # a recorded step writes its result into the same memory each time


class _Step(nn.Module):
    """One new token of every row, in operations of fixed shapes."""

    def __init__(self, model: Transformer, precision: Precision) -> None:
        super().__init__()
        self.model, self.terms = model, list[Terms]()
        if precision == "bfloat16":
            for name, linear in list(model.named_modules()):
                owner, _, last = name.rpartition(".")
                if isinstance(linear, nn.Linear):
                    setattr(model.get_submodule(owner), last, _Half(linear))

    def forward(
        self,
        tokens_B: Tensor,
        positions_B: Tensor,
        there_B: Tensor,
        stores: list[Tensor],
        places: tuple[tuple[int, int], ...],
    ) -> Tensor:
        """Hidden states (B, D) before the final norm. `stores` are the cache's groups, `places` (group, index in it) of
        each layer; rows that are not `there_B` leave the cache as it is."""
        model = self.model
        x_BD = model.placed(model._embed(tokens_B)[None], positions_B[None], None)[0]
        turn = None
        if model.config.position == "rope":
            turn = (model.cos[positions_B][:, None], model.sin[positions_B][:, None])
        for layer, block in enumerate(cast(list[Block], list(model.blocks))):
            group, index = places[layer]
            data = stores[group][index]

            def look(
                x_BD: Tensor, layer: int = layer, attention: Attention = block.attention, data: Tensor = data
            ) -> Tensor:
                q_BHK, other_BHK, k_BGK, v_BGK = projected(attention, x_BD, turn)
                kv_B2GK = torch.stack((k_BGK, v_BGK), 1)
                mixed_BH = _attend(q_BHK, other_BHK, kv_B2GK, data, positions_B, there_B, self.terms[layer])
                return attention.out(mixed_BH)

            def think(x_BD: Tensor, block: Block = block) -> Tensor:
                return block._think(x_BD, Routing())

            if block.placed is None:
                normed_BD = block.attention_norm(x_BD)
                other_BD = normed_BD if block.feed_forward_norm is None else block.feed_forward_norm(x_BD)
                x_BD = x_BD + look(normed_BD) + think(other_BD)
                continue
            x_BD = block.placed(x_BD, look, block.attention_norm, block.attention_post_norm, block.alpha)
            norm = cast(nn.Module, block.feed_forward_norm)
            x_BD = block.placed(x_BD, think, norm, block.feed_forward_post_norm, block.alpha)
        return x_BD


class _Half(nn.Module):
    """An nn.Linear with bfloat16 weights, float32 in and out."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.bfloat16(), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.bfloat16(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.bfloat16(), self.weight, self.bias).float()


def _attend(
    q_BHK: Tensor,
    other_BHK: Tensor | None,
    kv_B2GK: Tensor,
    data: Tensor,
    positions_B: Tensor,
    there_B: Tensor,
    terms: Terms,
) -> Tensor:
    """The new keys and values into their slots of `data` (B, 2, G, S, K), then attention over all slots, (B, H K)."""
    B, H, K = q_BHK.shape
    G, S = data.shape[2], data.shape[3]
    rows_B, slots_B = torch.arange(B, device=data.device), positions_B % S
    data[rows_B, :, :, slots_B] = torch.where(there_B[:, None, None, None], kv_B2GK, data[rows_B, :, :, slots_B])
    # The last position up to the row's that stands in each slot; below 0 where there is none yet.
    distance_BS = (positions_B[:, None] - torch.arange(S, device=data.device)) % S
    held_BS = positions_B[:, None] - distance_BS
    seen_BS = (held_BS >= 0) & terms.pattern.sees(positions_B[:, None], held_BS)
    scores_BHS = torch.einsum("bgrk,bgsk->bgrs", q_BHK.view(B, G, H // G, K), data[:, 0]).reshape(B, H, S)
    if terms.relative_RHK is not None and other_BHK is not None:
        all_BHR = torch.einsum("bhk,rhk->bhr", other_BHK, terms.relative_RHK)
        scores_BHS = scores_BHS + all_BHR.gather(
            -1, (distance_BS + len(terms.relative_RHK) // 2)[:, None].expand(B, H, S)
        )
    scores_BHS = scores_BHS * terms.scale
    if terms.table_HR is not None:
        scores_BHS = scores_BHS + terms.table_HR[:, distance_BS + terms.table_HR.shape[1] // 2].transpose(0, 1)
    if terms.softcap is not None:
        scores_BHS = terms.softcap * torch.tanh(scores_BHS / terms.softcap)
    weights_BHS = scores_BHS.masked_fill(~seen_BS[:, None], torch.finfo(torch.float32).min).softmax(-1)
    return torch.einsum("bgrs,bgsk->bgrk", weights_BHS.view(B, G, H // G, S), data[:, 1]).reshape(B, H * K)


def _power(number: int) -> int:
    """The power of two from `number` on."""
    return 1 << max(0, number - 1).bit_length()


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "c++"))
