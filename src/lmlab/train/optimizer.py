"""Which optimizer serves which parameter, and the optimizers' state under the parameters' names."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lmlab.config import Config
from lmlab.model.initialise import learning_rate_multipliers
from lmlab.model.transformer import Transformer
from lmlab.train.adafactor import Adafactor
from lmlab.train.lion import Lion
from lmlab.train.muon import Muon
from lmlab.train.pieces import Saved
from lmlab.train.sharded import alike, is_part, local, mesh_of, whole

OptimizerName = Literal["adam", "adamw", "adafactor", "lion", "muon"]


class OptimizerConfig(Config):
    """Adam's settings default to the survey's (section 4.3.1): betas 0.9 and 0.95, eps 1e-8, weight decay 0.1."""

    name: OptimizerName = "adamw"
    """adam: weight decay in the gradient. muon: the hidden layers' matrices by Muon, all else (embeddings, head, norms) by
    AdamW."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """The peak. adafactor with `scale_parameter` multiplies it by each parameter's root mean square."""
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    """Muon's."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of lion (0.9, 0.99) is usual. adafactor takes the first as its momentum, 0 for none; its second moment's decay is
    1 - k^-0.8 at step k."""
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float | Literal["lr^2"] = 0.1
    """Of matrices; gains, biases and embeddings are not decayed. "lr^2", for adafactor: by the square of the rate (PaLM)."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's."""
    factored: bool = True
    """adafactor: rows' and columns' means instead of the whole second moment; PaLM keeps it whole."""
    scale_parameter: bool = True
    """adafactor: relative steps, that is times max(1e-3, RMS of the parameter)."""

    @model_validator(mode="after")
    def _decay_goes_with_the_optimizer(self) -> OptimizerConfig:
        if self.weight_decay == "lr^2" and self.name != "adafactor":
            raise ValueError(f'weight_decay "lr^2" goes with adafactor, found {self.name}')
        if self.weight_decay != "lr^2" and self.weight_decay < 0:
            raise ValueError(f"weight_decay: expected at least 0, found {self.weight_decay}")
        return self


NOT_HIDDEN = ("embedding", "position", "head", "score", "bias", "router")
"""Parts of names: tables, heads, biases that are matrices (Transformer-XL's, T5's), and the router of experts, whose rows
are choices rather than features."""


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Also a stack of experts' matrices."""
    return parameter.dim() >= 2 and not any(word in name for word in NOT_HIDDEN)


def make_optimizers(
    network: nn.Module, config: OptimizerConfig, owns: Callable[[str], bool] = lambda name: True
) -> list[torch.optim.Optimizer]:
    """One optimizer, or two for muon. Each group remembers its peak rate as `peak`. `owns`: of which parameters, by name.

    Rates other than Muon's follow muP where the model's initialisation is muP (`learning_rate_multipliers`).
    """
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad and owns(n)]
    matrices = [p for n, p in named if is_hidden_matrix(n, p)]
    others = [p for n, p in named if not is_hidden_matrix(n, p)]
    made: list[torch.optim.Optimizer] = []
    decay = None if config.weight_decay == "lr^2" else config.weight_decay
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
    if config.name == "muon":
        rates = (config.matrix_learning_rate, config.momentum, decay or 0.0)
        made.append(Muon([{"params": matrices}], *rates, muon_type()))
    else:
        groups.append({"params": matrices, "weight_decay": decay})
    parts = [part for group in groups for part in _by_rate(group, network, config.learning_rate)]
    if parts or not made:
        parts = parts or [{"params": [], "weight_decay": 0.0, "lr": config.learning_rate}]
        made.append(MAKERS[config.name](parts, config))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def _adafactor(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    whole = {"momentum": config.betas[0], "factored": config.factored, "scale_parameter": config.scale_parameter}
    return Adafactor(groups, config.learning_rate, **whole)


def _adam(
    groups: list[dict[str, Any]], config: OptimizerConfig, kind: type[torch.optim.Adam] = torch.optim.AdamW
) -> torch.optim.Optimizer:
    return kind(groups, config.learning_rate, config.betas, config.eps, fused=True)


MAKERS: dict[str, Callable[[list[dict[str, Any]], OptimizerConfig], torch.optim.Optimizer]] = {
    "adam": functools.partial(_adam, kind=torch.optim.Adam),
    "adamw": _adam,
    "muon": _adam,
    "adafactor": _adafactor,
    "lion": lambda groups, config: Lion(groups, config.learning_rate, config.betas),
}
"""What serves the parameters that Muon does not."""


def _by_rate(group: dict[str, Any], network: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    """A group cut into one for each learning rate, and for each set of ranks that parameters lie on."""
    multipliers: dict[str, float] = {}
    for prefix, module in network.named_modules():
        if isinstance(module, Transformer) and module.config.width_multiplier != 1.0:
            found = learning_rate_multipliers(module)
            multipliers |= {f"{prefix}.{name}" if prefix else name: value for name, value in found.items()}
    factor = {id(parameter): multipliers.get(name, 1.0) for name, parameter in network.named_parameters()}
    parts: dict[tuple[float, Any], list[Tensor]] = {}
    for parameter in group["params"]:
        parts.setdefault((factor[id(parameter)], mesh_of(parameter)), []).append(parameter)
    return [{**group, "params": each, "lr": learning_rate * factor} for (factor, _), each in parts.items()]


def muon_type() -> torch.dtype:
    """The type that Muon's iteration is made in on this machine."""
    fast = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def set_rate(optimizers: Sequence[torch.optim.Optimizer], fraction: float) -> float:
    """Set every group's rate to a fraction of its peak; returns the first group's rate, for the log."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * fraction
    return float(optimizers[0].param_groups[0]["lr"])


def named_state(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' tensors as {`parameter/state`: tensor}, to be saved without pickle."""
    names = {id(p): n for n, p in network.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_state(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], saved: Saved, group: str) -> None:
    """Put `named_state`'s tensors back, as they stand in a checkpoint under `group`: of each this rank's part."""
    parameters = dict(network.named_parameters())
    owner = {id(p): (o, g) for o in optimizers for g in o.param_groups for p in g["params"]}
    for name in saved.names(group):
        parameter_name, key = name.rsplit("/", 1)
        parameter, place = parameters.get(parameter_name), f"{group}/{name}"
        if parameter is None or id(parameter) not in owner:
            continue  # another rank's
        optimizer, settings = owner[id(parameter)]
        lies = is_part(parameter) and saved.shape(place) == list(parameter.shape)
        kept = saved.part(place, parameter) if lies else saved.read(place)
        if key != "step" or settings.get("fused"):  # an optimizer that is not fused counts on the CPU
            kept = kept.to(parameter.device)
        optimizer.state[parameter][key] = alike(kept, parameter) if lies else kept


def clip(
    parameters: Sequence[Tensor],
    largest: float,
    agree: Callable[[float], float] = float,
    measured: Sequence[Tensor] | None = None,
) -> float:
    """Scale all gradients so that their global norm is at most `largest` (0: only measure). Returns the norm before.
    `agree`: of this rank's norm the number that all ranks take, so that weights which several of them hold stay alike to the
    last bit. `measured`: which parameters' gradients make up the norm, None for all."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    by_mesh: dict[Any, list[Tensor]] = {}
    for gradient in gradients if measured is None else [p.grad for p in measured if p.grad is not None]:
        by_mesh.setdefault(mesh_of(gradient), []).append(gradient)
    norms = [float(whole(torch.nn.utils.get_total_norm(each))) for each in by_mesh.values()]
    norm = agree(norms[0] if len(norms) == 1 else math.hypot(*norms))
    if largest and norm > largest:
        torch._foreach_mul_([local(each) for each in gradients], largest / (norm + 1e-6))
    return norm
