"""Published models as configs, one small table a group of families. `preset(name)` is a ModelConfig, nothing more.

Shapes are the papers'. Where a paper leaves a switch open, the table says what was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmlab.errors import Refused, nearest
from lmlab.model.config import ModelConfig
from lmlab.model.presets import encoder_decoders, gpt, open_decoders, other_decoders


@dataclass(frozen=True)
class Preset:
    """A published model: its name here, its paper's arXiv number (or author and year) and its settings."""

    name: str
    paper: str
    settings: Mapping[str, Any]

    def config(self) -> ModelConfig:
        return ModelConfig.model_validate(dict(self.settings))


def _gather() -> dict[str, Preset]:
    found = {}
    for table in (gpt, encoder_decoders, open_decoders, other_decoders):
        for paper, common, models in table.FAMILIES:
            for name, own in models.items():
                found[name] = Preset(name, paper, {**common, **own})
    return found


PRESETS: dict[str, Preset] = _gather()


def preset(name: str) -> ModelConfig:
    """The config of a published model. Raises Refused with the nearest name where there is none."""
    if name not in PRESETS:
        raise Refused(f"preset '{name}': there is no such preset{_near(name)}")
    return PRESETS[name].config()


def _near(name: str) -> str:
    hint = nearest(name, PRESETS)
    return hint if "did you mean" in hint else "; lmlab model list names them"
