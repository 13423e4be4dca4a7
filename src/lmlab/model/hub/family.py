"""What all families' files share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that a `config.json` names."""

    eos_id: int | None
    pad_id: int | None = None
    bos_id: int | None = None
    decoder_start_id: int | None = None
