"""The attention kernels: one formula, softmax(softcap(scale q k^T + bias)) v, computed in three ways.

`math` is the formula written out, `sdpa` is torch's fused kernel, `flex` is torch's FlexAttention, which never holds the scores.
They agree to rounding (a test says so). On CPU the formula is the faster one to train with below about 1,000 tokens
(measured by `benchmarks/train.py`): torch compiles its softmax into one pass, and its CPU kernel is slow in bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.device import quiet_compiling
from lmlab.model.pattern import Pattern
from lmlab.model.seeing import Bias, Sight, look
from lmlab.model.wide import wide

Kernel = Literal["auto", "math", "sdpa", "flex"]
Resolved = Literal["math", "sdpa", "flex"]


PARTS, SMALLEST_PART = 2, 64
"""Into how many parts the formula takes the queries of a causal model, and of how many queries a part is at least. (Four
parts save another 3% of attention's time and are twice as much to compile.)"""


@dataclass
class Scores:
    """What a kernel needs beside q, k and v. `bias_BHTS` is added in the model's scale; `bias` is the same as a function
    of head and distance where it is one."""

    sight: Sight
    pattern: Pattern
    mask_BTS: Tensor | None
    bias_BHTS: Tensor | None
    scale: float
    softcap: float | None = None
    bias: Bias | None = None
    blocks: dict[Pattern, Any] = field(default_factory=dict)
    """FlexAttention's block masks of this pass, one a pattern: made once, used by every layer."""
    hidden_BTS: Tensor | None = None
    """`hide` of what is seen, for the formula, likewise made once."""


UNSEEN = torch.finfo(torch.float32).min


@torch.library.custom_op("lmlab::hide", mutates_args=())
def hide(seen: Tensor) -> Tensor:
    """What is added to scores: 0 where a query sees a key, float32's least number elsewhere. Same shape, float32.

    An operator of its own, which torch.compile cannot take apart: else it would work out anew for every score whether it is
    seen, with masks of whole numbers, and the softmax would take twice as long as with a number to add (benchmarks/train.py).
    """
    return torch.where(seen, 0.0, UNSEEN)


@hide.register_fake
def _(seen: Tensor) -> Tensor:
    return torch.empty_like(seen, dtype=torch.float32)


def hidden_by(sight: Sight, mask_BTS: Tensor | None) -> Tensor | None:
    """`hide` of a mask, or of the triangle where `causal` says it all; None where everything is seen."""
    if mask_BTS is not None:
        return hide(mask_BTS)
    if not sight.causal:
        return None
    return hide(torch.ones(1, sight.queries, sight.keys, dtype=torch.bool, device=sight.device).tril())


def attend_math(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, scores: Scores) -> Tensor:
    """The formula (1706.03762, eq. 1), softmax in float32 at least -> (B, H, T, K).

    Where no query sees a key after it, queries are taken in up to `PARTS` parts, each with the keys up to its last query:
    of the square of scores three quarters are computed, and the rest, whose weights would be 0, is not.
    """
    T, sight, hidden_BTS = q_BHTK.shape[-2], scores.sight, scores.hidden_BTS
    if hidden_BTS is None:
        hidden_BTS = hidden_by(sight, scores.mask_BTS)
    if not (sight.causal and sight.prefix_BS is None and sight.first == 0 and k_BHSK.shape[-2] == T):
        return _attend_rows(q_BHTK, k_BHSK, v_BHSK, scores, hidden_BTS, 0)
    each = max(SMALLEST_PART, -(-T // PARTS))
    parts = [
        _attend_rows(q_BHTK[:, :, start:end], k_BHSK[:, :, :end], v_BHSK[:, :, :end], scores, hidden_BTS, start)
        for start, end in ((start, min(start + each, T)) for start in range(0, T, each))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def _attend_rows(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, scores: Scores, hidden_BTS: Tensor | None, start: int
) -> Tensor:
    """The formula for the queries from `start` on, with the first keys of all."""
    rows, columns = slice(start, start + q_BHTK.shape[-2]), slice(k_BHSK.shape[-2])
    scores_BHTS = wide(q_BHTK @ k_BHSK.transpose(-1, -2)) * scores.scale
    if scores.bias_BHTS is not None:
        scores_BHTS = scores_BHTS + scores.bias_BHTS[..., rows, columns]
    if scores.softcap is not None:
        scores_BHTS = scores.softcap * torch.tanh(scores_BHTS / scores.softcap)
    if hidden_BTS is not None:
        scores_BHTS = scores_BHTS + hidden_BTS[:, None, rows, columns]
    return scores_BHTS.softmax(-1).to(v_BHSK.dtype) @ v_BHSK


def attend_sdpa(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, scores: Scores) -> Tensor:
    """torch's fused kernel. A softcap, which it has not, is the formula's."""
    if scores.softcap is not None:
        return attend_math(q_BHTK, k_BHSK, v_BHSK, scores)
    mask = None if scores.mask_BTS is None else scores.mask_BTS[:, None]
    if scores.bias_BHTS is None:
        causal = mask is None and scores.sight.causal
        return F.scaled_dot_product_attention(
            q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, is_causal=causal, scale=scores.scale
        )
    bias = scores.bias_BHTS
    if mask is None and scores.sight.causal:
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    if mask is not None:
        bias = bias.masked_fill(~mask, torch.finfo(torch.float32).min)
    return F.scaled_dot_product_attention(
        q_BHTK, k_BHSK, v_BHSK, attn_mask=bias.to(q_BHTK.dtype).expand(len(q_BHTK), -1, -1, -1), scale=scores.scale
    )


@functools.cache
def _flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    quiet_compiling()
    return torch.compile(flex_attention)


def attend_flex(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, scores: Scores) -> Tensor:
    """FlexAttention. Raises ValueError where gradients are wanted on a CPU, for which it has no backward."""
    from torch.nn.attention.flex_attention import create_block_mask

    tensors = (q_BHTK, k_BHSK, v_BHSK)
    if q_BHTK.device.type == "cpu" and torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        raise ValueError("the flex kernel has no backward on a CPU: use math or sdpa to train, or torch.no_grad()")
    sight, block_mask = scores.sight, None
    if scores.pattern in scores.blocks:
        block_mask = scores.blocks[scores.pattern]
    elif sight.causal or not sight.is_plain(scores.pattern):
        function = sight.function(scores.pattern)
        rows = len(q_BHTK) if sight.varies_by_row else None
        block_mask = create_block_mask(function, rows, None, sight.queries, sight.keys, str(q_BHTK.device))
        scores.blocks[scores.pattern] = block_mask
    return _flex()(
        q_BHTK,
        k_BHSK.contiguous(),
        v_BHSK.contiguous(),
        score_mod=_score_function(scores),
        block_mask=block_mask,
        scale=scores.scale,
    )


def _score_function(scores: Scores) -> Callable[..., Tensor] | None:
    softcap, bias, dense = scores.softcap, scores.bias, scores.bias_BHTS
    if softcap is None and bias is None and dense is None:
        return None
    sight = scores.sight

    def change(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if bias is not None:
            distance = look(sight.query_positions_BT, b, i) - look(sight.key_positions_BS, b, j)
            score = score + bias.of(distance, h)
        elif dense is not None:
            score = score + (dense[b, h, i, j] if len(dense) > 1 else dense[0, h, i, j])
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    return change


KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, Scores], Tensor]] = {
    "math": attend_math,
    "sdpa": attend_sdpa,
    "flex": attend_flex,
}
