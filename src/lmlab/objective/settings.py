"""The settings `pretrain.objective`: what a model is trained to predict. docs/objectives.md has the formulas and papers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lmlab.config import Config


class CausalLM(Config):
    """Every token is predicted from those before it (survey, eq. 4)."""

    name: Literal["causal-lm"] = "causal-lm"


class PrefixLM(Config):
    """A text is cut at a place drawn uniformly; what follows is predicted from what stands before (1910.10683, 3.2.3)."""

    name: Literal["prefix-lm"] = "prefix-lm"


class SpanCorruption(Config):
    """Spans of a text are each replaced by a sentinel, and predicted (1910.10683, 3.1.4)."""

    name: Literal["span-corruption"] = "span-corruption"
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are taken out."""
    mean_span: float = Field(default=3.0, ge=1)
    """Mean length of a span, in tokens."""


def _named(value: Any) -> Any:
    """An objective's name alone is the objective with its defaults."""
    return {"name": value} if isinstance(value, str) else value


ObjectiveConfig = Annotated[
    Annotated[CausalLM | PrefixLM | SpanCorruption, Field(discriminator="name")], BeforeValidator(_named)
]
"""One of the objectives; its name alone means its defaults."""
