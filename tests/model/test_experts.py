"""Experts against a brute-force sum; what is dropped, what is penalised, and what padding may not do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import make, random_tokens, shaken, small

from lmlab.model.feed_forward import FeedForward
from lmlab.model.moe import MoE, Routing, balance_loss
from lmlab.model.settings import MoEConfig
from lmlab.objective.batch import Batch
from lmlab.objective.language_model import LanguageModel
from lmlab.train.optimizer import OptimizerConfig, make_optimizers
from lmlab.train.step import accumulate, make_forward


def layer(bias: bool = False, activation: str = "swiglu", **moe) -> MoE:
    config = small(bias=bias, activation=activation, d_ff=20, moe=MoEConfig(**moe))
    assert config.moe is not None
    return shaken(MoE(config, config.moe, 20), size=0.4).eval()  # type: ignore[arg-type]


def one(moe: MoE, expert: int) -> FeedForward:
    """An expert as the dense layer that it is."""
    dense = FeedForward(
        small(bias=moe.experts.up_bias is not None), 20, "swiglu" if moe.experts.gate is not None else "relu"
    )
    for name in ("gate", "up", "down"):
        part, weight = getattr(dense, name), getattr(moe.experts, name)
        if part is not None:
            part.weight = torch.nn.Parameter(weight[expert].detach().clone())
            if part.bias is not None:
                part.bias = torch.nn.Parameter(getattr(moe.experts, f"{name}_bias")[expert].detach().clone())
    return dense


def x_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, rows, 32, generator=torch.Generator().manual_seed(seed))


def test_jitter_turns_the_router_s_choice_in_training_only() -> None:
    """Of a token of ones and a router of one weight an expert, the logit is the sum of the jittered ones."""
    moe = layer(experts=2, top_k=2, normalise="all", jitter=0.5)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[0, 0] = 1.0
    x_ND = torch.ones(4000, 32)
    still, _ = moe.route(x_ND, Routing())
    assert still[:, 0].unique().numel() == 1
    moe.train()
    torch.manual_seed(0)
    weights_NC, chosen_NC = moe.route(x_ND, Routing())
    first_N = torch.where(chosen_NC[:, 0] == 0, weights_NC[:, 0], weights_NC[:, 1])
    factor_N = (first_N / (1 - first_N)).log().detach()
    assert float(factor_N.min()) >= 0.5 - 1e-4 and float(factor_N.max()) <= 1.5 + 1e-4
    # Uniform on (0.5, 1.5): mean 1, variance 1/12; six standard errors of 4,000 draws.
    assert abs(float(factor_N.mean()) - 1) < 6 * math.sqrt(1 / 12 / 4000)
    assert abs(float(factor_N.var()) - 1 / 12) < 0.01


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("normalise", ["chosen", "all"])
def test_one_expert_is_the_dense_layer(bias: bool, normalise: str) -> None:
    moe = layer(bias=bias, experts=1, top_k=1, normalise=normalise)
    torch.testing.assert_close(moe(x_of(5), Routing()), one(moe, 0)(x_of(5)))


@settings(max_examples=25, deadline=None)
@given(
    experts=st.integers(1, 6),
    top_k=st.integers(1, 3),
    normalise=st.sampled_from(["chosen", "all"]),
    activation=st.sampled_from(["swiglu", "relu"]),
    shared=st.integers(0, 2),
)
def test_without_a_capacity_it_is_the_weighted_sum_of_the_chosen(
    experts: int, top_k: int, normalise: str, activation: str, shared: int
) -> None:
    top_k = min(top_k, experts)
    moe = layer(
        activation=activation, bias=True, experts=experts, top_k=top_k, normalise=normalise, shared_experts=shared
    )
    x = x_of(7)
    with torch.no_grad():
        probabilities = (x @ moe.router.weight.T).softmax(-1)
        values, chosen = probabilities.topk(top_k)
        weights = values / values.sum(-1, keepdim=True) if normalise == "chosen" else values
        wanted = torch.zeros_like(x) if moe.shared is None else moe.shared(x)
        for expert in range(experts):
            share = (weights * (chosen == expert)).sum(-1, keepdim=True)
            wanted = wanted + share * one(moe, expert)(x)
        torch.testing.assert_close(moe(x, Routing()), wanted, atol=1e-4, rtol=1e-4)


def test_the_gradient_reaches_every_expert_and_the_router() -> None:
    moe = layer(experts=3, top_k=2)
    x = x_of(40).requires_grad_()
    moe(x, Routing()).square().sum().backward()
    for parameter in (moe.router.weight, moe.experts.up, moe.experts.down):
        assert parameter.grad is not None and bool((parameter.grad.flatten(1).abs().sum(1) > 0).all())


@settings(max_examples=25, deadline=None)
@given(factor=st.sampled_from([0.25, 0.5, 1.0, 1.5]), top_k=st.integers(1, 2), seed=st.integers(0, 9))
def test_the_capacity_drops_the_overflow_and_nothing_else(factor: float, top_k: int, seed: int) -> None:
    moe = layer(experts=4, top_k=top_k, evaluation_capacity_factor=factor)
    x = x_of(9, seed)
    capacity = math.ceil(factor * top_k * 18 / 4)
    with torch.no_grad():
        weights, chosen = moe.route(x.flatten(0, 1), Routing())
        left = {expert: capacity for expert in range(4)}
        for choice in range(top_k):  # all first choices before all second ones
            for token in range(18):
                expert = int(chosen[token, choice])
                assert (float(weights[token, choice]) > 0) == (left[expert] > 0)
                left[expert] -= 1
        dropped = (weights == 0).all(-1)
        assert bool((moe(x, Routing()).flatten(0, 1)[dropped] == 0).all())
        moe.moe = MoEConfig(experts=4, top_k=top_k)  # no capacity: none is dropped
        assert bool((moe.route(x.flatten(0, 1), Routing())[0] > 0).all())


def test_the_capacity_of_training_and_of_evaluation_are_apart() -> None:
    moe = layer(experts=4, top_k=1, capacity_factor=0.25)
    x = x_of(16).flatten(0, 1)
    with torch.no_grad():
        assert (
            int((moe.train().route(x, Routing())[0] > 0).sum())
            <= 8
            < int((moe.eval().route(x, Routing())[0] > 0).sum())
        )


def test_the_random_second_expert_is_kept_in_proportion() -> None:
    moe = layer(experts=4, top_k=2, second_policy="random").train()
    x = x_of(3000).flatten(0, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        random, _ = moe.route(x, Routing())
        all_of_them, _ = moe.eval().route(x, Routing())
    assert bool((random[:, 0] > 0).all())
    expected = (2 * all_of_them[:, 1]).clamp_max(1).mean()
    assert float((random[:, 1] > 0).float().mean()) == pytest.approx(float(expected), abs=0.03)


def test_the_balance_loss_is_least_when_all_are_used_alike() -> None:
    uniform = torch.full((8, 4), 0.25)
    even = torch.arange(8)[:, None] % 4
    assert float(balance_loss(uniform, even)[0]) == pytest.approx(1.0)
    sharp = torch.eye(4)[even[:, 0]]
    assert float(balance_loss(sharp, even)[0]) == pytest.approx(1.0)
    one_takes_all = torch.eye(4)[torch.zeros(8, dtype=torch.long)]
    loss, load = balance_loss(one_takes_all, torch.zeros(8, 1, dtype=torch.long))
    assert float(loss) == pytest.approx(4.0) and load.tolist() == [1, 0, 0, 0]
    logits = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 2 + torch.tensor([1.0, 0, 0, -1])
    for _ in range(300):  # its gradient leads to balance
        logits = logits.detach().requires_grad_()
        probabilities = logits.softmax(-1)
        loss, load = balance_loss(probabilities, probabilities.topk(2).indices)
        loss.backward()
        assert logits.grad is not None
        logits = logits - 20 * logits.grad
    assert float(load.max()) < 0.3


def test_padding_takes_no_place_and_does_not_count() -> None:
    shape = {"moe": MoEConfig(experts=4, top_k=2, evaluation_capacity_factor=0.6, z_loss=0.1), "layers": 3}
    model = make(**shape)
    tokens = random_tokens(1, 10)
    padded = torch.cat((torch.zeros(1, 6, dtype=torch.long), tokens), 1)
    padding = torch.tensor([[True] * 6 + [False] * 10])
    with torch.no_grad():
        whole, part = model(tokens), model(padded, padding_BT=padding)
    torch.testing.assert_close(part.logits()[:, 6:], whole.logits(), atol=1e-4, rtol=1e-4)
    for name in ("balance", "router_z", "expert_load"):
        torch.testing.assert_close(part.auxiliary[name], whole.auxiliary[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["causal-decoder", "prefix-decoder", "encoder-decoder"])
def test_auxiliary_losses_of_every_architecture(architecture: str) -> None:
    moe = MoEConfig(experts=4, top_k=2, every=2, balance_loss=0.5, z_loss=0.25)
    model = make(architecture=architecture, moe=moe, layers=4, encoder_layers=2 if architecture[0] == "e" else None)
    given = {"encoder_tokens_BS": random_tokens(2, 5)} if architecture[0] == "e" else {}
    output = model(random_tokens(2, 6), **given)
    layers = 3 if architecture[0] == "e" else 2
    assert output.auxiliary["expert_load"].shape == (layers, 4)
    torch.testing.assert_close(output.auxiliary["expert_load"].sum(-1), torch.ones(layers))
    wanted = layers * (0.5 * output.auxiliary["balance"] + 0.25 * output.auxiliary["router_z"])
    torch.testing.assert_close(output.penalty, wanted)
    assert make()(random_tokens(1, 3)).auxiliary == {}


def test_the_trainer_adds_the_penalty_averaged_over_micro_batches() -> None:
    moe = MoEConfig(experts=4, top_k=2, balance_loss=0.5, z_loss=0.01)
    model = make(moe=moe)
    ids = random_tokens(4, 9)
    batches = [
        Batch(part[:, :-1], part[:, 1:], torch.ones_like(part[:, 1:], dtype=torch.bool)) for part in ids.split(2)
    ]
    found = accumulate(make_forward(model, LanguageModel(), False), LanguageModel(), batches, "float32")
    penalties = [model(batch.tokens_BT).penalty for batch in batches]
    assert found["loss"] == pytest.approx(found["lm"] + float(sum(penalties).detach()) / 2, rel=1e-5)
    assert {"balance", "router_z", "largest_load"} < found.keys() and "penalty" not in found
    gradient = model.blocks[0].feed_forward.router.weight.grad.clone()
    model.zero_grad()
    loss = sum(LanguageModel().loss(model(b.tokens_BT), b)["lm"] for b in batches) / 32 + sum(penalties) / 2
    loss.backward()
    torch.testing.assert_close(model.blocks[0].feed_forward.router.weight.grad, gradient, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_experts_are_trained_as_matrices(name: str) -> None:
    model = make(moe=MoEConfig(experts=4, top_k=2), bias=True)
    optimizers = make_optimizers(model, OptimizerConfig(name=name, weight_decay=0.1))  # type: ignore[arg-type]
    before = {key: value.clone() for key, value in model.named_parameters()}
    output = model(random_tokens(4, 12))
    (output.logits().square().mean() + output.penalty).backward()
    for optimizer in optimizers:
        optimizer.step()
    decayed = {id(p) for o in optimizers for g in o.param_groups if g["weight_decay"] for p in g["params"]}
    for key, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[key]), key
        matrix = ".experts." in key and not key.endswith("_bias")
        assert (id(parameter) in decayed) or not matrix
        assert (id(parameter) not in decayed) or not key.endswith(("_bias", "router.weight"))


def test_impossible_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k 3 is more than the 2 experts"):
        MoEConfig(experts=2, top_k=3)
    with pytest.raises(ValueError, match="GShard's, of top_k 2; found top_k 1"):
        MoEConfig(experts=2, top_k=1, second_policy="random")
