"""The Transformer's mathematics for inference, with as few operations a layer as possible.

Decoding a small model is bound by the cost of calling an operation, not by arithmetic. A layer's step is four matrix
products, two norms, one compiled attention and two operations of a gated activation. Tokens are rows of one matrix
(N, D): prompts of different lengths stand one after another without padding.

`tests/generate/test_decoder.py` holds this to the model: equal logits to 1e-5 over random configs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.errors import Refused
from lmlab.generate.attend import chunks
from lmlab.generate.cache import Cache
from lmlab.generate.kernels import attend_cached, attend_parallel, parts, spread
from lmlab.generate.mapped import as_it_is
from lmlab.generate.packed import rowwise
from lmlab.generate.prompt import CompiledLayer, Rotation, read_prompts
from lmlab.generate.prompt_attention import spans_of
from lmlab.generate.simd import ROWS
from lmlab.generate.step import ACTIVATION_CODES, layer_step
from lmlab.generate.weights import Layer, Norm, Precision, head_of, lay_out, scale_to_unit
from lmlab.model.config import ModelConfig
from lmlab.model.feed_forward import ACTIVATIONS
from lmlab.model.transformer import Block, Transformer

Attend = Callable[[int, Tensor], Tensor]
"""(layer, qkv (N, (H + 2 G) K) as the product gives it) -> what the heads found, (N, H K)."""


KNOWN = frozenset(
    {
        *("kv_heads", "head_dim", "d_ff", "norm", "norm_bias", "eps", "activation", "rope_theta", "bias", "qkv_bias"),
        *("attention_out_bias", "feed_forward_bias", "qk_norm", "tie_embeddings", "dropout", "initialisation"),
    }
)
"""Switches of a model that this decoder knows at any setting; of the others, their defaults."""


def unsupported(config: ModelConfig) -> str | None:
    """What of a model this decoder does not know yet, such as `position alibi`; None where it knows all."""
    other = {k: v for k, v in config.differs(KNOWN).items() if k != "position" or v not in ("learned", "none")}
    other = {k: v for k, v in other.items() if k != "final_norm" or not config.has_final_norm}
    found = [f"{name} {getattr(value, 'kind', value)}" for name, value in other.items() if name != "moe"]
    found += ["moe"] if "moe" in other else []
    return ", ".join(found) or None


class Decoder:
    """Reads a Transformer's weights once; call `refresh` when they have changed.

    Raises Refused for a model with a part that it does not know (`unsupported`).
    """

    def __init__(self, model: Transformer, precision: Precision = "float32") -> None:
        missing = unsupported(model.config)
        if missing is not None:
            raise Refused(f"the engine does not generate or score with {missing} yet; the model's logits are to be had")
        self.model, self.precision, self.config = model, precision, model.config
        self.kv_heads, self.head_dim, self.d_ff = model.config.dims
        self.inner = model.config.heads * self.head_dim
        self.group = model.config.heads // self.kv_heads
        self.scale, self.eps32 = np.float32(self.head_dim**-0.5), np.float32(model.config.eps)
        self.activation = rowwise(ACTIVATIONS[model.config.activation])
        self.refresh()

    @torch.inference_mode()
    def refresh(self) -> None:
        """Lay the model's weights out anew."""
        rotated = self.config.position == "rope"
        self.device = self.model.embedding.weight.device
        self.eps = torch.tensor(self.config.eps, device=self.device)
        kind = torch.float32 if self.precision == "float32" else torch.bfloat16
        self.embedding = as_it_is(self.model.embedding.weight, kind)
        self.position = None if self.model.position is None else self.model.position.weight.detach().clone()
        self.turn = torch.complex(self.model.cos, self.model.sin) if rotated else None
        angles = (self.model.cos, self.model.sin) if rotated else (torch.empty(self.config.context_length, 0),) * 2
        self.cos, self.sin = (each.cpu().numpy() for each in angles)
        blocks = cast(list[Block], list(self.model.blocks))
        self.layers: list[Layer] = [lay_out(block, self.precision, rotated) for block in blocks]
        self.steps = [self._compiled_layer(layer) for layer in self.layers]
        # Type of the keys and values that the scheduler's cache holds for it. At 32 rows reading them takes as long as
        # reading bfloat16 weights, so they are no wider.
        narrow = self.precision != "float32" and all(self.steps)
        self.kept = torch.bfloat16 if narrow else torch.float32
        self.final_norm = Norm(cast(nn.Module, self.model.final_norm), self.config.d_model)
        self.head = head_of(self.model, self.final_norm, self.precision)

    def states(self, hidden_ND: Tensor) -> Tensor:
        """Hidden states after the final norm, (N, D)."""
        normed_ND, gain = self.final_norm(hidden_ND), self.final_norm.gain
        return normed_ND if gain is None else normed_ND * gain

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """(N, V), float32, of hidden states as `prefill` and `decode` return them."""
        return self.head(self.final_norm(hidden_ND))

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
        last: bool = False,
    ) -> Tensor:
        """Hidden states before the final norm of several sequences, one after another, (N, D); with `last` those of each
        sequence's last token alone, (B, D).

        `positions` default to starts[i], starts[i] + 1, ...; `masks[i]` (T, starts[i] + T), True where a token sees
        another, defaults to causal. With a cache, sequence i's keys and values go to row `rows[i]`, which holds the
        `starts[i]` tokens before it already. `sources` and `prefix` are for other architectures (module_decoder.py).
        """
        lengths = [len(each) for each in tokens]
        starts = [0] * len(lengths) if starts is None else starts
        flat = torch.tensor(list(itertools.chain.from_iterable(tokens)), device=self.device)
        where = positions or [range(start, start + n) for start, n in zip(starts, lengths)]
        positions_N = torch.tensor(list(itertools.chain.from_iterable(where)), device=self.device)
        in_order = positions is None or all(list(p) == list(range(s, s + n)) for p, s, n in zip(where, starts, lengths))
        if in_order and not any(mask is not None for mask in masks or ()) and self._reads_compiled(cache, len(flat)):
            caches, held = ([], [0] * len(lengths)) if cache is None else (cache.arrays, rows)
            spans = spans_of(lengths, starts, held)
            heads = (self.config.heads, self.kv_heads, self.head_dim)
            x_ND = self._embed(flat, positions_N)
            narrow = self.kept == torch.bfloat16
            return torch.from_numpy(read_prompts(x_ND.numpy(), self._ready, spans, caches, heads, narrow, last))
        turn = None if self.turn is None else self.turn[positions_N][:, None]
        rows_N = torch.tensor([row for row, n in zip(rows, lengths) for _ in range(n)], device=self.device)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            self._turn(qkv, self.layers[layer], turn)
            if cache is not None:
                cache.write(layer, qkv[:, self.inner :], rows_N, positions_N)
            before: list[Tensor | None] = [None] * len(lengths)
            if cache is not None:
                held = zip(rows, starts)
                before = [cache.data[layer, row, :, :, :start] if start else None for row, start in held]
            return self._attend_sequences(qkv, lengths, masks, before, cache is not None)

        hidden_ND = self._run(flat, positions_N, attend)
        return hidden_ND[torch.tensor(lengths, device=self.device).cumsum(0) - 1] if last else hidden_ND

    def _reads_compiled(self, cache: Cache | None, tokens: int) -> bool:
        """Whether prompts go through `read_prompts`. A few rows on several threads go faster by spreading each product."""
        there = all(self.steps) and (cache is None or bool(cache.arrays))
        return there and (torch.get_num_threads() == 1 or tokens >= 2 * ROWS)

    def decode(self, tokens: list[int], positions: list[int], cache: Cache) -> Tensor:
        """Hidden states (B, D) of one new token for each of the cache's first B rows, at its position."""
        where = np.array(positions)
        threads = parts(positions, self.inner)
        positions_B = torch.tensor(positions, device=self.device)
        if all(self.steps) and cache.arrays and (len(tokens) > 1 or torch.get_num_threads() == 1):
            x_BD = self._embed(torch.tensor(tokens), positions_B)
            spread(len(tokens), lambda rows: self._step(x_BD.numpy()[rows], where[rows], cache, rows))
            return x_BD
        turn = None if self.turn is None or cache.arrays else self.turn[positions_B][:, None]

        def attend(layer: int, qkv: Tensor) -> Tensor:
            if not cache.arrays:
                self._turn(qkv, self.layers[layer], turn)
                return attend_cached(layer, qkv, cache, positions, self.inner)
            mixed = torch.empty((len(tokens), self.inner))
            settings = (self.layers[layer].qk_gain_array, self.eps32, self.cos, self.sin, self.scale)
            attend_parallel(threads, qkv.numpy(), cache.arrays[layer], where, *settings, mixed.numpy())
            return mixed

        return self._run(torch.tensor(tokens, device=self.device), positions_B, attend)

    def _step(self, x: np.ndarray, positions: np.ndarray, cache: Cache, rows: slice) -> None:
        """Rows x (B, D) through all layers, in place."""
        for layer, array in zip(self._ready, cache.arrays):
            where = (array[rows], positions, *layer.rotation, self.scale)
            layer_step(x, layer.norms, layer.matrices, layer.activation, layer.gated, *where)

    @property
    def _ready(self) -> list[CompiledLayer]:
        return cast(list[CompiledLayer], self.steps)

    def _compiled_layer(self, layer: Layer) -> CompiledLayer | None:
        """A layer as compiled functions take it; None where the processor has no kernel for its matrices."""
        panels = [each.panels for each in (layer.qkv, layer.out, layer.up, layer.down)]
        if any(each is None for each in panels):
            return None
        norms = (layer.attention_norm.arrays, layer.feed_forward_norm.arrays)
        matrices = cast(Any, tuple(each.packed for each in panels if each is not None))
        rotation = Rotation(layer.qk_gain_array, self.eps32, self.cos, self.sin)
        return CompiledLayer(norms, matrices, ACTIVATION_CODES[self.config.activation], layer.gated, rotation)

    def _embed(self, tokens_N: Tensor, positions_N: Tensor) -> Tensor:
        x_ND = F.embedding(tokens_N, self.embedding).float()
        return x_ND if self.position is None else x_ND + F.embedding(positions_N, self.position)

    def _run(self, tokens_N: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        x_ND = self._embed(tokens_N, positions_N)
        for index, layer in enumerate(self.layers):
            x_ND = layer.out(attend(index, layer.qkv(layer.attention_norm(x_ND))), x_ND)
            up = layer.up(layer.feed_forward_norm(x_ND))
            x_ND = layer.down(self._activate(up, layer.gated), x_ND)
        return x_ND

    def _turn(self, qkv: Tensor, layer: Layer, turn: Tensor | None) -> None:
        """Norm and rotation of queries and keys, in place (q_norm and k_norm have the model's one eps)."""
        N, heads = qkv.shape[0], self.config.heads + self.kv_heads
        qk_NHK = qkv[:, : heads * self.head_dim].view(N, heads, self.head_dim)
        if layer.qk_gain is not None:
            qk_NHK.copy_(scale_to_unit(qk_NHK, self.head_dim, self.eps).mul_(layer.qk_gain))
        if turn is not None:
            torch.view_as_complex(qk_NHK.view(N, heads, self.head_dim // 2, 2)).mul_(turn)

    def _activate(self, up: Tensor, gated: bool) -> Tensor:
        return self.activation(up[:, : self.d_ff]).mul_(up[:, self.d_ff :]) if gated else self.activation(up)

    def _attend_sequences(
        self,
        qkv: Tensor,
        lengths: Sequence[int],
        masks: Sequence[Tensor | None] | None,
        before: Sequence[Tensor | None],
        chunked: bool,
    ) -> Tensor:
        """Attention within each sequence; neighbours of one length without masks are one call. `before`: keys and
        values (2, G, start, K) that stand before a sequence's own."""
        out = torch.empty((qkv.shape[0], self.inner), device=self.device)
        start = 0
        masks = [None] * len(lengths) if masks is None else masks
        special = (i if m is not None or b is not None else -1 for i, (m, b) in enumerate(zip(masks, before)))
        for (T, index), run in itertools.groupby(zip(lengths, special)):
            B = len(list(run))
            span = slice(start, start + B * T)
            start += B * T
            q_BHTK = qkv[span, : self.inner].view(B, T, -1, self.head_dim).transpose(1, 2)
            k_BHSK, v_BHSK = qkv[span, self.inner :].view(B, T, 2, self.kv_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            held, mask = (None, None) if index < 0 else (before[index], masks[index])
            if held is not None:
                k_BHSK, v_BHSK = torch.cat((held[None, 0], k_BHSK), 2), torch.cat((held[None, 1], v_BHSK), 2)
            if self.group > 1:
                k_BHSK = k_BHSK.repeat_interleave(self.group, dim=1)
                v_BHSK = v_BHSK.repeat_interleave(self.group, dim=1)
            if mask is None and chunked:
                mixed = _attend_in_chunks(q_BHTK, k_BHSK, v_BHSK)
            else:
                mixed = F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, is_causal=mask is None)
            out[span] = mixed.transpose(1, 2).reshape(B * T, self.inner)
        return out


def _attend_in_chunks(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
    """Causal attention of the last T of S tokens, cut where the whole sequence's chunks end: see `chunks`."""
    T, S = q_BHTK.shape[2], k_BHSK.shape[2]
    found = []
    for a, b in chunks(S - T, S):
        q, k, v = q_BHTK[:, :, a - (S - T) : b - (S - T)], k_BHSK[:, :, :b], v_BHSK[:, :, :b]
        mask = None if a == 0 else torch.ones(b - a, b, dtype=torch.bool, device=q.device).tril(a)
        found.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=a == 0))
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)
