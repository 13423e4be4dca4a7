"""Prompts of models with GLM's two positions (2103.10360): a text with a blank, and behind it what fills the blank.

Part A is the text with a mask where the blank is, read in both directions; part B begins with a start token and is
written token by token. First position: a token's place in part A, and for all of part B the place of the mask. Second:
0 in part A; 1, 2, 3, ... in part B, its start token counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lmlab.errors import Refused
from lmlab.text.tokenizer import Tokenizer

MARKS = ("[MASK]", "[sMASK]", "[gMASK]", "<|startofpiece|>", "<|endofpiece|>")
"""The masks of spans, of sentences and of a text's end; what a blank's filling begins and ends with."""


class Blank(NamedTuple):
    """`source` tokens of part A, and the place among them of the mask that is filled."""

    source: int
    place: int


def two_positions(places_N: Tensor, counts: Sequence[int], blanks: Sequence[Blank | None]) -> tuple[Tensor, Tensor]:
    """(first, second) positions (N,) of tokens at their places in sequences. `counts[i]` tokens are of sequence i; one
    without a blank is all part A."""
    whole = Blank(int(places_N.max()) + 1 if len(places_N) else 0, 0)
    rows = torch.tensor([blank or whole for blank in blanks], device=places_N.device).view(-1, 2)
    source_N, mask_N = rows.repeat_interleave(torch.tensor(counts, device=places_N.device), dim=0).unbind(1)
    first_N = torch.where(places_N < source_N, places_N, mask_N)
    return first_N, (places_N - source_N + 1).clamp_min(0)


def sees(blank: Blank | None, tokens: int, device: torch.device) -> Tensor:
    """(T, T), True where a token of a sequence from its first on sees another: part A all of part A, part B what stands
    before it. Without a blank all see all."""
    source = tokens if blank is None else min(blank.source, tokens)
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    seen[:, :source] = True
    return seen


class Blanks:
    """How prompts of ids become part A and the beginning of part B."""

    def __init__(self, tokenizer: Tokenizer | None, start_id: int | None) -> None:
        """`start_id` None: the tokenizer's <|startofpiece|>, where it has one."""
        self.masks = [] if tokenizer is None else [tokenizer.find(mark) for mark in MARKS[:3]]
        found = None if tokenizer is None else tokenizer.find(MARKS[3])
        self.start_id = found if start_id is None else start_id
        end = None if tokenizer is None else tokenizer.find(MARKS[4])
        self.stop_ids = () if end is None else (end,)

    def opened(
        self, name: str, ids: Sequence[int], place: int | None = None, starts: Sequence[int] | None = None
    ) -> tuple[tuple[int, ...], Blank]:
        """(part A and what part B begins with, the blank) of a prompt. `place`: of the mask; None is the one mask that
        the prompt has, and where it has none, a mask is put behind it: [gMASK], else [MASK].

        Raises Refused where that does not say which blank is meant, or nothing says what part B begins with.
        """
        if starts is None and self.start_id is not None:
            starts = (self.start_id,)
        if not starts:
            raise Refused(
                f"{name}: what fills a blank begins with a start token (glm-2d); expected {MARKS[3]} in the tokenizer, "
                "decoder_start_id of the engine or decoder_start_ids of the request"
            )
        part = tuple(ids)
        if place is not None and not 0 <= place < len(part):
            raise Refused(f"{name}: blank is {place}; expected a place in the prompt, 0 to {len(part) - 1}")
        if place is None:
            masks = [mask for mask in self.masks if mask is not None]
            there = [at for at, each in enumerate(part) if each in masks]
            ending = next((mask for mask in (self.masks[i] for i in (2, 0, 1) if self.masks) if mask is not None), None)
            if len(there) > 1:
                raise Refused(f"{name}: has blanks at {', '.join(map(str, there))}; blank says which is to be filled")
            if not there and ending is None:
                raise Refused(
                    f"{name}: a model with position glm-2d fills a blank; expected blank, the place of the mask, since no "
                    f"tokenizer names one of {', '.join(MARKS[:3])}"
                )
            if not there and ending is not None:
                part += (ending,)
            place = there[0] if there else len(part) - 1
        return (*part, *starts), Blank(len(part), place)
