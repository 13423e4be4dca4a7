"""Prompts for sampling: items of the task families, rendered; each a pure function of (seed, split, number)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmlab.corpus.store import documents
from lmlab.errors import Failed
from lmlab.instruct.families import Family, Item, Split, draw, make
from lmlab.instruct.formatting import messages
from lmlab.text.chat import Renderer

ATTEMPTS = 64
"""Items drawn in place of one whose prompt leaves no room for an answer, before the context counts as too short."""


@dataclass(frozen=True)
class Prompt:
    """An item and the token ids that ask it, up to where the assistant begins to answer."""

    item: Item
    ids: tuple[int, ...]


def derived(seed: int, *words: object) -> int:
    """A seed in [0, 2^62) that is a pure function of a run's seed and of what it is for."""
    text = "\n".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def families_of(names: Sequence[str], corpus: Path | None) -> dict[str, Family]:
    """The families of these names; functions come from the corpus' docstrings where there is a corpus."""
    texts = []
    if corpus is not None and "function" in names:
        texts = [document["text"] for document in documents(corpus, split="train", source="docstrings")]
    return make(names, texts)


class Prompts:
    """Prompt number i asks an item of family i modulo the number of families. `longest` bounds a prompt's tokens."""

    def __init__(
        self, renderer: Renderer, families: Mapping[str, Family], split: Split, seed: int, longest: int
    ) -> None:
        self.renderer, self.families, self.split, self.seed, self.longest = renderer, families, split, seed, longest
        self._names = tuple(families)

    def __getitem__(self, number: int) -> Prompt:
        """Raises Failed where no item's prompt is short enough."""
        family = self.families[self._names[number % len(self._names)]]
        for attempt in range(ATTEMPTS):
            item = draw(family, self.split, self.seed, number * ATTEMPTS + attempt)
            ids = self.renderer.encode(messages(item), add_generation_prompt=True)
            if len(ids) <= self.longest:
                return Prompt(item, tuple(ids))
        raise Failed(
            f"family '{family.name}': no prompt of at most {self.longest} tokens in {ATTEMPTS} draws; the model's "
            "context is too short for it beside max_new_tokens: lower max_new_tokens, or leave the family out"
        )

    def take(self, start: int, count: int) -> list[Prompt]:
        """Prompts number start, start + 1, ..."""
        return [self[number] for number in range(start, start + count)]

    def distinct(self, count: int) -> list[Prompt]:
        """The first `count` prompts that ask different things."""
        found: dict[str, Prompt] = {}
        for number in range(count * ATTEMPTS):
            if len(found) == count:
                break
            prompt = self[number]
            found.setdefault(prompt.item.id, prompt)
        if len(found) < count:
            raise Failed(f"only {len(found)} different {self.split} prompts were found, {count} are asked for")
        return list(found.values())
