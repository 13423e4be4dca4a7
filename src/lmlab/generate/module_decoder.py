"""The decoder of every other model: the model's own blocks, run on rows of tokens with a cache of keys and values.

`decoder.py` is faster and knows the common case; this one knows prefix decoders, encoder-decoders, experts, all
position schemes, all norm placements, sparse patterns, softcaps and scales. Both have one interface
(`AnyDecoder`), and `decoder_for` picks. Keys and values lie in slots as there, and each row reads exactly its own.
`tests/generate/test_module_decoder.py` holds it to the model over random configs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.errors import Refused
from lmlab.generate.attend import Terms, attend_slots, attend_tokens, visible
from lmlab.generate.cache import Beside, Cache, Memory
from lmlab.generate.infill import Blank, sees, two_positions
from lmlab.generate.packed import Queues, packed, rowwise
from lmlab.generate.weights import Linear, Precision, head_precision
from lmlab.model.attention import Attention
from lmlab.model.moe import Routing
from lmlab.model.pattern import FULL
from lmlab.model.position import sinusoid
from lmlab.model.seeing import Alibi, Buckets
from lmlab.model.transformer import Block, Transformer

_tanh = rowwise(torch.tanh)
NO_TABLE, NOTHING = np.empty((0, 0), np.float32), np.empty((0, 0, 0), np.float32)


class ModuleDecoder:
    """Reads a Transformer's weights once; call `refresh` when they have changed.

    Raises Refused for glm-2d with an attention pattern.
    """

    kept = torch.float32
    """Type of the keys and values that the scheduler's cache holds for it."""

    def __init__(self, model: Transformer, precision: Precision = "float32") -> None:
        if model.config.position == "glm-2d" and any(block.attention.pattern != FULL for block in _blocks(model)):
            raise Refused(
                "the engine does not generate or score with position glm-2d and a sparse attention pattern: it would "
                "count from a blank's mask, not from the token before; the model's logits are to be had"
            )
        moe = model.config.moe
        self.queued = moe is not None and moe.sequence_capacity is not None
        if moe is not None and self.queued and moe.top_k > 1:
            raise Refused(
                f"the engine does not generate or score with moe.sequence_capacity and top_k {moe.top_k}: all first choices "
                "queue before second ones, so that what a token loses depends on later tokens; the model's logits are to "
                "be had"
            )
        self.model, self.precision, self.config = model, precision, model.config
        self.refresh()

    @torch.inference_mode()
    def refresh(self) -> None:
        """Lay the model's weights out anew."""
        self.device = self.model.embedding.weight.device
        lean = self.lean = packed(self.model, self.precision)
        self.blocks = _blocks(lean)
        head = lean.embedding.weight if self.model.head is None else self.model.head.weight
        bias = None if lean.head_bias is None else lean.head_bias.detach()
        self.head = Linear(head.detach().float(), bias, head_precision(self.precision))
        reach = torch.arange(1 - self.config.context_length, self.config.context_length, device=self.device)
        table = None
        if self.config.position == "alibi":
            table = Alibi(lean.slopes).dense(reach[None, None])[0, :, 0]
        elif lean.relative_bias is not None:
            buckets = Buckets(lean.relative_bias.weight, self.config.relative_distance, False)
            table = buckets.dense(reach[None, None])[0, :, 0]
        table = None if table is None else table.contiguous()
        self.terms = [
            Terms(block.attention.pattern, block.attention.scale, block.attention.softcap, table, relative)
            for block in self.blocks
            for relative in [_relative(block.attention, reach, self.config.d_model)]
        ]

    def states(self, hidden_ND: Tensor) -> Tensor:
        """Hidden states after the final norm, (N, D)."""
        return hidden_ND if self.lean.final_norm is None else self.lean.final_norm(hidden_ND)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """(N, V), float32, of hidden states as `prefill` and `decode` return them."""
        hidden = self.states(hidden_ND)
        hidden = hidden if self.lean.project_out is None else self.lean.project_out(hidden)
        logits = self.head(hidden if self.config.head_scale == 1.0 else hidden * self.config.head_scale)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * _tanh(logits / cap)

    def prefill(
        self,
        tokens: Sequence[Sequence[int]],
        *,
        positions: Sequence[Sequence[int]] | None = None,
        masks: Sequence[Tensor | None] | None = None,
        cache: Cache | None = None,
        rows: Sequence[int] = (),
        starts: Sequence[int] | None = None,
        sources: Sequence[Sequence[int] | None] | None = None,
        prefix: bool = False,
    ) -> Tensor:
        """Hidden states before the final norm of several sequences, one after another, (N, D).

        `positions` default to starts[i], starts[i] + 1, ...; `masks[i]` (T, starts[i] + T), True where a token sees
        another, defaults to causal, and with `prefix` to everything in a prefix decoder. With a cache, sequence i's
        keys and values go to row `rows[i]`, which holds the `starts[i]` tokens before it already. `sources[i]`: what
        the encoder reads for it, or of glm-2d where its blank is; None where the row has that in the cache.
        """
        lengths = [len(each) for each in tokens]
        starts = [0] * len(lengths) if starts is None else starts
        where = positions or [range(start, start + n) for start, n in zip(starts, lengths)]
        positions_N = torch.tensor(list(itertools.chain.from_iterable(where)), device=self.device)
        rows_N = torch.tensor([row for row, n in zip(rows, lengths) for _ in range(n)], device=self.device)
        spans = list(itertools.pairwise([0, *itertools.accumulate(lengths)]))
        memories = self._memories(sources, cache, rows, len(lengths))
        if masks is None:
            both = prefix and self.config.architecture == "prefix-decoder"
            blanks = [each if isinstance(each, Blank) else None for each in memories]
            masks = [sees(blank, n, self.device) if both else None for blank, n in zip(blanks, lengths)]

        def attend(layer: int, q_NHK: Tensor, other_NHK: Tensor | None, k_NGK: Tensor, v_NGK: Tensor) -> Tensor:
            found = []
            for i, (a, b) in enumerate(spans):
                k_SGK, v_SGK, keys_S = k_NGK[a:b], v_NGK[a:b], positions_N[a:b]
                if starts[i]:
                    assert cache is not None
                    first = cache.first(layer, starts[i])
                    before = cache.read(layer, rows[i], first, starts[i]).transpose(1, 2)
                    k_SGK, v_SGK = torch.cat((before[0], k_SGK)), torch.cat((before[1], v_SGK))
                    keys_S = torch.cat((torch.arange(first, starts[i], device=self.device), keys_S))
                other = None if other_NHK is None else other_NHK[a:b]
                each = (k_SGK, v_SGK, (positions_N[a:b], keys_S), self.terms[layer], masks[i])
                found.append(attend_tokens(q_NHK[a:b], other, *each))
            if cache is not None:  # after what stood before was read: in a window the new takes the place of the old
                cache.write(layer, torch.cat((k_NGK, v_NGK), 1).flatten(1), rows_N, positions_N)
            return torch.cat(found)

        flat = torch.tensor(list(itertools.chain.from_iterable(tokens)), device=self.device)
        return self._run(flat, positions_N, attend, spans, memories, self._queues(spans, starts, masks))

    def _queues(
        self, spans: Sequence[tuple[int, int]], starts: Sequence[int], masks: Sequence[Tensor | None]
    ) -> Queues:
        if not self.queued:
            return Queues()
        read = [i for i, start in enumerate(starts) if not start]
        orders = [None if mask is None else mask.tril() for mask in (masks[i] for i in read)]
        return Queues(spans=[spans[i] for i in read], orders=orders)

    def decode(self, tokens: list[int], positions: list[int], cache: Cache) -> Tensor:
        """Hidden states (B, D) of one new token for each of the cache's first B rows, at its position."""
        where = np.array(positions)
        positions_B, rows_B = torch.tensor(positions, device=self.device), torch.arange(len(tokens), device=self.device)
        sight = {terms.pattern: visible(terms.pattern, where, cache.size) for terms in self.terms}

        def attend(layer: int, q_BHK: Tensor, other: Tensor | None, k_BGK: Tensor, v_BGK: Tensor) -> Tensor:
            cache.write(layer, torch.cat((k_BGK, v_BGK), 1).flatten(1), rows_B, positions_B)
            terms = self.terms[layer]
            if not cache.arrays:
                return torch.cat([self._attend_row(b, layer, q_BHK, other, cache, n) for b, n in enumerate(positions)])
            out = torch.empty((len(tokens), q_BHK.shape[1] * q_BHK.shape[2]))
            table = NO_TABLE if terms.table_HR is None else terms.table_HR.numpy()
            relative = NOTHING if terms.relative_RHK is None else terms.relative_RHK.numpy()
            attend_slots(
                q_BHK.contiguous().numpy(),
                NOTHING if other is None else other.contiguous().numpy(),
                cache.arrays[layer],
                where,
                *sight[terms.pattern],
                table,
                relative,
                np.float32(terms.scale),
                np.float32(terms.softcap or 0),
                out.numpy(),
            )
            return out

        spans = [(b, b + 1) for b in range(len(tokens))]
        memories = [cache.memories.get(b) for b in range(len(tokens))]
        return self._run(torch.tensor(tokens, device=self.device), positions_B, attend, spans, memories, Queues())

    def _attend_row(
        self, b: int, layer: int, q_BHK: Tensor, other: Tensor | None, cache: Cache, position: int
    ) -> Tensor:
        """One row of a step with torch's operations: what an accelerator computes with."""
        first = cache.first(layer, position)
        kv = cache.read(layer, b, first, position + 1).transpose(1, 2)
        keys_S = torch.arange(first, position + 1, device=self.device)
        places = (keys_S[-1:], keys_S)
        mine = None if other is None else other[b : b + 1]
        return attend_tokens(q_BHK[b : b + 1], mine, kv[0], kv[1], places, self.terms[layer])

    def _run(
        self,
        tokens_N: Tensor,
        positions_N: Tensor,
        attend: Callable[[int, Tensor, Tensor | None, Tensor, Tensor], Tensor],
        spans: Sequence[tuple[int, int]],
        memories: Sequence[Beside | None],
        routing: Routing,
    ) -> Tensor:
        lean = self.lean
        inside_1N = None
        if self.config.position == "glm-2d":
            blanks = [each if isinstance(each, Blank) else None for each in memories]
            positions_N, inside_N = two_positions(positions_N, [b - a for a, b in spans], blanks)
            inside_1N = inside_N[None]
        x_ND = lean.placed(lean._embed(tokens_N)[None], positions_N[None], inside_1N)[0]
        turn = None
        if self.config.position == "rope":
            turn = (lean.cos[positions_N][:, None], lean.sin[positions_N][:, None])

        def think(block: Block, x_ND: Tensor) -> Tensor:
            return block._think(x_ND[None], routing)[0]

        for layer, block in enumerate(self.blocks):

            def look(x_ND: Tensor, layer: int = layer, attention: Attention = block.attention) -> Tensor:
                q_NHK, other_NHK, k_NGK, v_NGK = projected(attention, x_ND, turn)
                return attention.out(attend(layer, q_NHK, other_NHK, k_NGK, v_NGK))

            if block.placed is None:
                normed_ND = block.attention_norm(x_ND)
                other_ND = normed_ND if block.feed_forward_norm is None else block.feed_forward_norm(x_ND)
                x_ND = x_ND + look(normed_ND) + think(block, other_ND)
                continue
            x_ND = block.placed(x_ND, look, block.attention_norm, block.attention_post_norm, block.alpha)
            if block.cross_attention is not None:
                cross = block.cross_attention

                def recall(x_ND: Tensor, layer: int = layer, cross: Attention = cross) -> Tensor:
                    q_NHK = cross.queries(x_ND)
                    found = [_attend_memory(q_NHK[a:b], m, layer, cross) for (a, b), m in zip(spans, memories)]
                    return cross.out(torch.cat(found))

                norm = cast(nn.Module, block.cross_attention_norm)
                x_ND = block.placed(x_ND, recall, norm, block.cross_attention_post_norm, block.alpha)
            norm = cast(nn.Module, block.feed_forward_norm)
            think_here = lambda x, block=block: think(block, x)  # noqa: E731
            x_ND = block.placed(x_ND, think_here, norm, block.feed_forward_post_norm, block.alpha)
        return x_ND

    def _memories(
        self,
        sources: Sequence[Sequence[int] | None] | None,
        cache: Cache | None,
        rows: Sequence[int],
        count: int,
    ) -> list[Beside | None]:
        """Each sequence's keys and values of the encoder's states, a source that several have read once; or its blank."""
        if not self.config.has_encoder and self.config.position != "glm-2d":
            return [None] * count
        done: dict[tuple[int, ...], Beside] = {}
        found: list[Beside | None] = []
        for index in range(count):
            source = None if sources is None else sources[index]
            if source is None:
                found.append(None if cache is None else cache.memories.get(rows[index]))
                continue
            key = tuple(source)
            if key not in done:
                done[key] = source if isinstance(source, Blank) else self._remember(key)
            found.append(done[key])
            if cache is not None:
                cache.memories[rows[index]] = done[key]
        return found

    def _remember(self, source: Sequence[int]) -> Memory:
        memory_SD = self.lean.encode(torch.tensor([list(source)], device=self.device))[0]
        return [cast(Attention, block.cross_attention).keys_values(memory_SD) for block in self.blocks]


def _blocks(model: Transformer) -> list[Block]:
    return cast(list[Block], list(model.blocks))


def projected(
    attention: Attention, x_ND: Tensor, turn: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(q (N, H, K), Transformer-XL's q of positions or None, k and v (N, G, K)), normalised and rotated."""
    q_NHK, (k_NGK, v_NGK) = attention.queries(x_ND, turn), attention.keys_values(x_ND, turn)
    if attention.relative is None:
        return q_NHK, None, k_NGK, v_NGK
    return q_NHK + attention.content_bias, q_NHK + attention.position_bias, k_NGK, v_NGK


def _relative(attention: Attention, reach_R: Tensor, width: int) -> Tensor | None:
    """Transformer-XL's keys of all distances, (R, H, K)."""
    if attention.relative is None:
        return None
    return attention.relative(sinusoid(reach_R, width)).view(-1, attention.heads, attention.head_dim).contiguous()


def _attend_memory(q_THK: Tensor, memory: Beside | None, layer: int, cross: Attention) -> Tensor:
    """Cross-attention of one sequence's tokens, (T, H K)."""
    assert isinstance(memory, list)
    k_SGK, v_SGK = memory[layer]
    T, S = len(q_THK), len(k_SGK)
    seen_TS = torch.ones(T, S, dtype=torch.bool, device=q_THK.device)
    nowhere = torch.zeros(max(T, S), dtype=torch.long, device=q_THK.device)
    terms = Terms(cross.pattern, cross.scale, cross.softcap)
    return attend_tokens(q_THK, None, k_SGK, v_SGK, (nowhere[:T], nowhere[:S]), terms, seen_TS)
