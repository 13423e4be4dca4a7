"""Each optimizer is its paper's: beside a reference, or beside the formula written out."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from transformers.optimization import Adafactor as TheirAdafactor

from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.train.adafactor import Adafactor
from lmlab.train.average import Average, averaged, beside
from lmlab.train.lion import Lion
from lmlab.train.optimizer import OptimizerConfig, make_optimizers

CONFIG = ModelConfig(layers=1, d_model=16, heads=2, vocab_size=20, context_length=12)


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (5,), (3, 4, 2)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def drive(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, a: list, b: list, steps: int = 6) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step + 1)
        for first, second in zip(a, b, strict=True):
            first.grad = torch.randn(first.shape, generator=generator) * 10 ** (step - 3)
            second.grad = first.grad.clone()
        ours.step()
        theirs.step()
        for first, second in zip(a, b, strict=True):
            torch.testing.assert_close(first, second, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("scale", [True, False])
def test_adafactor_beside_transformers(momentum: float, scale: bool) -> None:
    a, b = parameters(), parameters()
    theirs = TheirAdafactor(
        b, lr=0.01, beta1=momentum or None, scale_parameter=scale, relative_step=False, warmup_init=False
    )
    if momentum:  # theirs averages updates that were multiplied by the rate: the same while the rate stays the same
        theirs.param_groups[0]["scale_parameter"] = scale = False
    drive(Adafactor(a, lr=0.01, momentum=momentum, scale_parameter=scale), theirs, a, b)


def test_unfactored_adafactor_is_adam_with_a_growing_second_decay() -> None:
    """PaLM's form, written out: v whole, no bias correction, u clipped to a root mean square of 1, decay lr^2."""
    x = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
    optimizer = Adafactor([x], lr=0.1, momentum=0.9, factored=False, weight_decay=None)
    expected, v, m = x.detach().clone(), torch.zeros(2, 2), torch.zeros(2, 2)
    for k in range(1, 5):
        gradient = torch.tensor([[0.3, -1.0], [2.0, 0.01]]) * k
        x.grad = gradient.clone()
        optimizer.step()
        decay = 1 - k**-0.8
        v = decay * v + (1 - decay) * (gradient**2 + 1e-30)
        u = gradient / v.sqrt()
        u = u / max(1.0, float(u.square().mean().sqrt()))
        m = 0.9 * m + 0.1 * u
        rate = 0.1 * float(expected.square().mean().sqrt())
        expected = expected * (1 - 0.1**2) - rate * m
        torch.testing.assert_close(x.detach(), expected)


def test_factored_state_is_rows_and_columns_only() -> None:
    x = torch.nn.Parameter(torch.randn(30, 50))
    optimizer = Adafactor([x])
    x.grad = torch.randn(30, 50)
    optimizer.step()
    assert sum(value.numel() for value in optimizer.state[x].values()) == 30 + 50 + 1


def test_lion_is_its_formula() -> None:
    x = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = Lion([x], lr=0.1, betas=(0.9, 0.99), weight_decay=0.2)
    expected, m = x.detach().clone(), torch.zeros(3)
    for k in range(4):
        gradient = torch.tensor([1.0, -1.0, 0.1]) * (-1) ** k * (k + 1)
        x.grad = gradient.clone()
        optimizer.step()
        expected = expected - 0.1 * (torch.sign(0.9 * m + 0.1 * gradient) + 0.2 * expected)
        m = 0.99 * m + 0.01 * gradient
        torch.testing.assert_close(x.detach(), expected)


@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor", "lion", "muon"])
def test_each_optimizer_serves_every_parameter_once_and_learns(name: str) -> None:
    network = Transformer(CONFIG).initialise(0)
    rate = {"lion": 4e-3, "adafactor": 0.1}.get(name, 5e-3)
    optimizers = make_optimizers(network, OptimizerConfig(name=name, learning_rate=rate))  # type: ignore[arg-type]
    served = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(served) == sorted(id(p) for p in network.parameters())
    tokens = torch.randint(0, 20, (4, 12), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(
            network(tokens[:, :-1]).logits().flatten(0, 1), tokens[:, 1:].flatten()
        )
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_only_matrices_are_decayed() -> None:
    network = Transformer(CONFIG).initialise(0)
    (optimizer,) = make_optimizers(network, OptimizerConfig(name="lion", weight_decay=0.3))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in network.named_parameters():
        assert decays[id(p)] == (0.3 if p.dim() == 2 and "embedding" not in name else 0.0), name


def test_decay_by_the_square_of_the_rate_is_adafactors() -> None:
    with pytest.raises(ValidationError, match="goes with adafactor, found adamw"):
        OptimizerConfig(weight_decay="lr^2")
    with pytest.raises(ValidationError, match="expected at least 0"):
        OptimizerConfig(weight_decay=-0.1)


def test_a_network_in_training_shows_its_running_mean_and_goes_on_from_its_weights() -> None:
    network = torch.nn.Linear(3, 2)
    average, own = Average(network, 0.5), network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(torch.randn(2, 3))
    average.update()
    now, mean = network.weight.detach().clone(), average.mean["weight"].clone()
    assert not torch.equal(now, mean) and not torch.equal(own, mean)
    with beside(network, average):
        with pytest.raises(KeyError), averaged(network):
            assert torch.equal(network.weight, mean)
            raise KeyError
        assert torch.equal(network.weight, now) and torch.equal(average.mean["weight"], mean)
    for none in (contextlib.nullcontext(), beside(network, None)):  # after training, and without a mean: itself
        with none, averaged(network):
            assert torch.equal(network.weight, now)


def test_the_running_mean_forgets_its_beginning_and_is_put_in_place() -> None:
    network = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(0.0)
    average = Average(network, 0.9)
    mean = 0.0
    for n in range(40):
        with torch.no_grad():
            network.weight.fill_(1.0)
        average.update()
        keep = min(0.9, (1 + n) / (10 + n))
        mean = keep * mean + (1 - keep)
    again = Average(network, 0.9)
    kept = {f"average/{name}": tensor.clone() for name, tensor in average.state().items()}
    again.restore(SimpleNamespace(read=kept.get, part=lambda name, like: kept[name]), "average")
    again.put()
    torch.testing.assert_close(network.weight.detach(), torch.full((1, 2), mean))
