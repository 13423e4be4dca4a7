"""A mixture of experts in place of a feed-forward layer (Switch 2101.03961, GShard 2006.16668, Mixtral 2401.04088)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.model.config import ModelConfig
from lmlab.model.feed_forward import ACTIVATIONS, FeedForward
from lmlab.model.settings import GATED, MoEConfig
from lmlab.model.wide import wide, wide_type


class Routing:
    """What the routers of a pass did. `real_N`: False at padding, which takes no expert's place; None: all are real.

    For each layer with experts: the balance loss, the z-loss, and each expert's share of the assignments (E,). (No dataclass,
    because torch's FSDP gives a module copies of the dataclasses that it is called with, and these lists are written to.)
    """

    def __init__(self, real_N: Tensor | None = None) -> None:
        self.real_N = real_N
        self.balance: list[Tensor] = []
        self.z: list[Tensor] = []
        self.load_E: list[Tensor] = []

    def auxiliary(self) -> dict[str, Tensor]:
        """Means over layers, and the loads (layers, E). Empty where there are no experts."""
        if not self.balance:
            return {}
        return {
            "balance": torch.stack(self.balance).mean(),
            "router_z": torch.stack(self.z).mean(),
            "expert_load": torch.stack(self.load_E),
        }

    def penalty(self, moe: MoEConfig) -> Tensor:
        """The weighted losses, summed over layers: what is added to the training loss."""
        return moe.balance_loss * torch.stack(self.balance).sum() + moe.z_loss * torch.stack(self.z).sum()


Total = Callable[[Tensor], Tensor]
"""A count of some tokens -> that of the whole micro-batch, where several networks share one."""


def all_there_are(count: Tensor) -> Tensor:
    """The total where one network sees the whole micro-batch."""
    return count


def balance_loss(
    probabilities_NE: Tensor, chosen_NC: Tensor, real_N: Tensor | None = None, total: Total = all_there_are
) -> tuple[Tensor, Tensor]:
    """(E x sum over experts of f P, f): f is the share of the N x C assignments, P the mean probability (2101.03961,
    eq. 4; with C = 1 it is Switch's). It is 1 where both are uniform, and E where one expert takes all.

    Where the tokens are a part of a micro-batch, f is the whole's and the loss is the part's summand.
    """
    experts = probabilities_NE.shape[-1]
    weight_N = torch.ones_like(probabilities_NE[:, 0]) if real_N is None else real_N.to(probabilities_NE.dtype)
    real = total(weight_N.sum()).clamp_min(1)
    assigned_NE = F.one_hot(chosen_NC, experts).sum(1) * weight_N[:, None]
    share_E = total(assigned_NE.sum(0)) / (real * chosen_NC.shape[1])
    mean_E = (probabilities_NE * weight_N[:, None]).sum(0) / real
    return experts * (share_E * mean_E).sum(), share_E


class Experts(nn.Module):
    """The experts' matrices, stacked: gate and up (E, F, D), down (E, D, F), and their biases (E, F) and (E, D)."""

    def __init__(self, config: ModelConfig, experts: int, d_ff: int, activation: str) -> None:
        super().__init__()
        D, bias = config.d_model, config.has_bias("feed_forward")
        self.activation = ACTIVATIONS[activation]
        self.gate = nn.Parameter(torch.empty(experts, d_ff, D)) if activation in GATED else None
        self.up = nn.Parameter(torch.empty(experts, d_ff, D))
        self.down = nn.Parameter(torch.empty(experts, D, d_ff))
        self.gate_bias = nn.Parameter(torch.zeros(experts, d_ff)) if bias and activation in GATED else None
        self.up_bias = nn.Parameter(torch.zeros(experts, d_ff)) if bias else None
        self.down_bias = nn.Parameter(torch.zeros(experts, D)) if bias else None
        for weight in (self.gate, self.up, self.down):
            if weight is not None:
                nn.init.normal_(weight, std=0.02)

    def weights(self) -> dict[str, Tensor | None]:
        """The matrices and biases by name. May be replaced where this network holds a part of them."""
        names = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
        return {name: getattr(self, name) for name in names}

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One expert's product. May be replaced where it is made in another precision."""
        return F.linear(x, weight, bias)

    def forward(self, x_ND: Tensor, sizes: list[int]) -> Tensor:
        """Rows of which the first `sizes[0]` go through the first expert, the next `sizes[1]` through the second, ..."""
        held = self.weights()

        def expert(x: Tensor, number: int) -> Tensor:
            def linear(x: Tensor, name: str) -> Tensor:
                weight, bias = held[name], held[f"{name}_bias"]
                assert weight is not None
                return self.linear(x, weight[number], None if bias is None else bias[number])

            up = linear(x, "up")
            inner = self.activation(up) if self.gate is None else self.activation(linear(x, "gate")) * up
            return linear(inner, "down")

        parts = [expert(rows, number) for number, rows in enumerate(x_ND.split(sizes)) if len(rows)]
        if not parts:  # the experts keep a gradient, of zeros: whoever sums gradients waits for each of them
            return x_ND + 0.0 * sum(each.sum() for each in held.values() if each is not None)
        return torch.cat(parts)


class MoE(nn.Module):
    """(B, T, D) -> (B, T, D): the sum over a token's experts of weight x expert(x), plus the shared experts.

    `total` may be replaced where several networks share a micro-batch: the routers' statistics are then the whole's.
    """

    total: Total = staticmethod(all_there_are)

    def __init__(self, config: ModelConfig, moe: MoEConfig, d_ff: int) -> None:
        super().__init__()
        self.moe = moe
        width, activation = moe.d_ff or d_ff, moe.activation or config.activation
        self.router = nn.Linear(config.d_model, moe.experts, bias=False)
        self.experts = Experts(config, moe.experts, width, activation)
        shared = moe.shared_experts * width
        self.shared = FeedForward(config, shared, activation) if shared else None

    def forward(self, x_BTD: Tensor, routing: Routing) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        weights_NC, chosen_NC = self.route(x_ND, routing, len(x_BTD))
        out_ND = self.dispatch(x_ND, weights_NC, chosen_NC)
        if self.shared is not None:
            out_ND = out_ND + self.shared(x_ND)
        return out_ND.view_as(x_BTD)

    def route(self, x_ND: Tensor, routing: Routing, sequences: int = 1) -> tuple[Tensor, Tensor]:
        """Weights and experts of each token, (N, C); the weight is 0 where a token is dropped. In float32."""
        moe = self.moe
        with torch.autocast(x_ND.device.type, enabled=False):
            seen_ND = wide(x_ND)
            if self.training and moe.jitter:
                seen_ND = seen_ND * torch.empty_like(seen_ND).uniform_(1 - moe.jitter, 1 + moe.jitter)
            logits_NE = F.linear(seen_ND, wide(self.router.weight))
            probabilities_NE = logits_NE.softmax(-1)
            weights_NC, chosen_NC = probabilities_NE.topk(moe.top_k, dim=-1)
            real_N = routing.real_N
            loss, load_E = balance_loss(probabilities_NE, chosen_NC, real_N, self.total)
            square_N = logits_NE.logsumexp(-1).square()
            # Of one type, padding or not: ranks of which some have padding add these up.
            weight_N = torch.ones_like(square_N) if real_N is None else real_N.to(square_N.dtype)
            real = weight_N.sum()
            square = square_N.sum() if real_N is None else (square_N * weight_N).sum()
            routing.z.append(square / self.total(real).clamp_min(1))
            routing.balance.append(loss)
            routing.load_E.append(load_E.detach())
            if moe.normalise == "chosen":
                weights_NC = weights_NC / weights_NC.sum(-1, keepdim=True)
            return weights_NC * self._kept(weights_NC.detach(), chosen_NC, real_N, sequences), chosen_NC

    def _kept(self, weights_NC: Tensor, chosen_NC: Tensor, real_N: Tensor | None, sequences: int) -> Tensor:
        """1.0 where a token is taken by an expert, 0.0 where it is dropped, (N, C)."""
        N, C = chosen_NC.shape
        kept_NC = torch.ones_like(weights_NC, dtype=torch.bool)
        if real_N is not None:
            kept_NC = kept_NC & real_N[:, None]
        if self.training and self.moe.second_policy == "random":
            drawn_N = torch.rand_like(weights_NC[:, 1]) < 2 * weights_NC[:, 1]
            kept_NC = torch.stack((kept_NC[:, 0], kept_NC[:, 1] & drawn_N), dim=1)
        factor = self.moe.capacity_factor if self.training else self.moe.evaluation_capacity_factor
        if factor is not None:
            tokens = torch.as_tensor(N, device=kept_NC.device) if real_N is None else real_N.sum()
            capacity = torch.ceil(tokens.double() * factor * C / self.moe.experts)
            kept_NC = self._taken(chosen_NC, kept_NC, capacity, 1)
        if self.moe.sequence_capacity is not None:
            kept_NC = self._taken(chosen_NC, kept_NC, self.moe.sequence_capacity, sequences)
        return kept_NC.to(weights_NC.dtype)

    def _taken(self, chosen_NC: Tensor, kept_NC: Tensor, capacity: int | Tensor, groups: int) -> Tensor:
        """Of the tokens kept so far, those that find a place where an expert has `capacity` of them in each of `groups`
        equal parts. All first choices queue before all second ones (GShard), tokens in their order."""
        chosen_GCT, kept_GCT = (each.view(groups, -1, each.shape[1]).transpose(1, 2) for each in (chosen_NC, kept_NC))
        queue_GXE = F.one_hot(chosen_GCT.flatten(1), self.moe.experts) * kept_GCT.flatten(1)[:, :, None]
        place_GX = (queue_GXE.cumsum(1) * queue_GXE).sum(-1)
        return kept_NC & (place_GX <= capacity).view(chosen_GCT.shape).transpose(1, 2).reshape(kept_NC.shape)

    def dispatch(self, x_ND: Tensor, weights_NC: Tensor, chosen_NC: Tensor) -> Tensor:
        """Each expert's rows together; rows of weight 0 are not computed."""
        token_X, choice_X, sizes = self.taken(weights_NC, chosen_NC)
        found_XD = self.experts(x_ND[token_X], sizes)
        weight_X = weights_NC[token_X, choice_X]
        out_ND = torch.zeros(x_ND.shape, dtype=wide_type(x_ND), device=x_ND.device)
        return out_ND.index_add(0, token_X, wide(found_XD) * weight_X[:, None]).to(found_XD.dtype)

    def taken(self, weights_NC: Tensor, chosen_NC: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Tokens sorted by their expert, the places (of C) of these choices, and how many each expert takes. May be replaced
        where there are no values to choose by."""
        token_X, choice_X = (weights_NC > 0).nonzero(as_tuple=True)
        expert_X = chosen_NC[token_X, choice_X]
        order = expert_X.argsort(stable=True)
        sizes = torch.bincount(expert_X, minlength=self.moe.experts).tolist()
        return token_X[order], choice_X[order], sizes
