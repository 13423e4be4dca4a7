"""In and out of the ecosystem's formats: one file a family, each a config map and a weight map (`family.Family`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, cast

from lmlab.errors import nearest
from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import Family, SpecialTokens

__all__ = ["FAMILIES", "Family", "SpecialTokens", "families", "family_of_config", "family_of_file", "misfits"]

FAMILIES: tuple[str, ...] = (
    "llama",
    "mixtral",
    "gemma",
    "olmo2",
    "glm",
    "t5",
    "bart",
    "switch_transformers",
    "gpt2",
    "openai_gpt",
    "opt",
    "bloom",
    "gpt_neox",
    "gptj",
    "codegen",
    "falcon",
    "phi",
    "starcoder2",
)
"""The files of this folder that are families, in the order in which a config is offered to them."""


def families() -> Iterator[Family]:
    """Every family, imported as it is asked for."""
    for name in FAMILIES:
        yield cast(Family, import_module(f"{__name__}.{name}"))


def family_of_file(hub: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises ValueError where none reads its model_type."""
    kind = hub.get("model_type", "")
    known = [name for family in families() for name in family.MODEL_TYPES]
    for family in families():
        if kind in family.MODEL_TYPES:
            return family
    raise ValueError(f"model_type '{kind}' is not read yet{nearest(str(kind), known)}")


def family_of_config(config: ModelConfig, prefer: str | None = None) -> Family | None:
    """The first family whose files hold a config exactly, or None. `prefer` is a model_type that is tried first: a config
    may fit several."""
    fitting = [family for family in families() if family.misfit(config) is None]
    wished = [family for family in fitting if prefer in family.MODEL_TYPES]
    return next(iter(wished + fitting), None)


def misfits(config: ModelConfig) -> dict[str, str]:
    """Why each family's files cannot hold a config: {first model_type: reason}."""
    found = {next(iter(family.MODEL_TYPES)): family.misfit(config) for family in families()}
    return {name: reason for name, reason in found.items() if reason is not None}
