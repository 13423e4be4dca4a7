"""From the settings of an objective to its task; what an objective needs of a tokenizer and of an architecture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from lmlab.generate import infill
from lmlab.model.settings import Architecture
from lmlab.objective import middle
from lmlab.objective.blanks import BlankTask, Marks
from lmlab.objective.denoising import DenoisingTask
from lmlab.objective.example import Task, largest_text
from lmlab.objective.language_model import LanguageModel, MixedLanguageModel, RegularisedLanguageModel
from lmlab.objective.middle import MiddleTask
from lmlab.objective.mixture import MixtureTask
from lmlab.objective.settings import (
    UL2,
    BlankInfilling,
    CausalLM,
    Denoising,
    FillInTheMiddle,
    Mixture,
    ObjectiveConfig,
    Part,
    PrefixLM,
    SpanCorruption,
)
from lmlab.objective.spans import noise_counts
from lmlab.objective.tasks import CausalTask, PrefixTask, SpanTask


class Vocabulary(Protocol):
    """What an objective needs of a tokenizer."""

    eos_id: int
    pad_id: int

    def find(self, token: str) -> int | None: ...
    def token_id(self, token: str) -> int: ...
    def tokens(self) -> Iterator[tuple[int, str]]: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...


SENTINEL, MASK = "<extra_id_{}>", "<mask>"
"""T5's names for its sentinels, and BART's for its mask."""

SENTENCE_ENDS = (".", "!", "?", "\n", "Ċ")
"""A token that ends so ends a sentence (Ċ is a byte-level tokenizer's line feed). BART's code takes the full stop alone."""


def parts_of(config: ObjectiveConfig) -> tuple[Part, ...]:
    """The objectives and their weights: several for a mixture, else the one. None of them is a mixture itself."""
    if isinstance(config, UL2):
        config = config.mixture()
    if not isinstance(config, Mixture):
        return (Part(objective=config),)
    found: list[Part] = []
    for part in config.parts:
        inner = parts_of(part.objective)
        whole = sum(each.weight for each in inner)
        found += [Part(objective=each.objective, weight=part.weight * each.weight / whole) for each in inner]
    return tuple(found)


def make_task(config: ObjectiveConfig, vocabulary: Vocabulary) -> Task:
    """The task. Its tokens are in the vocabulary: see `missing`."""
    parts = parts_of(config)
    tasks = [_TASKS[type(part.objective)](part.objective, vocabulary) for part in parts]
    if len(tasks) == 1:
        return tasks[0]
    kinds = [isinstance(part.objective, (CausalLM, PrefixLM, FillInTheMiddle)) for part in parts]
    return MixtureTask(tasks, [part.weight for part in parts], kinds.index(True) if any(kinds) else 0)


def make_objective(config: ObjectiveConfig, z_loss: float = 0.0) -> LanguageModel:
    """The loss of a batch; of a mixture with the loss of each part in its report."""
    parts = parts_of(config)
    if len(parts) > 1:
        return MixedLanguageModel([label(part) for part in parts], z_loss)
    return RegularisedLanguageModel(z_loss) if z_loss else LanguageModel()


def label(part: Part) -> str:
    """An objective in a few signs, such as `span-corruption(0.5,3)`."""
    objective = part.objective
    inside = ""
    if isinstance(objective, SpanCorruption):
        inside = f"({objective.rate:g},{objective.mean_span:g})"
    return objective.name + inside


def sentinels(vocabulary: Vocabulary) -> list[int]:
    """The ids of <extra_id_0>, <extra_id_1>, ... as far as there are."""
    found: list[int] = []
    while (each := vocabulary.find(SENTINEL.format(len(found)))) is not None:
        found.append(each)
    return found


def _mode(config: PrefixLM | SpanCorruption, vocabulary: Vocabulary) -> int | None:
    return None if config.mode is None else vocabulary.token_id(config.mode)


def _stops(vocabulary: Vocabulary) -> np.ndarray:
    return np.array([i for i, token in vocabulary.tokens() if token.endswith(SENTENCE_ENDS)], dtype=np.int64)


def _span(config: SpanCorruption, vocabulary: Vocabulary) -> Task:
    mode = _mode(config, vocabulary)
    return SpanTask(config.rate, config.mean_span, sentinels(vocabulary), vocabulary.eos_id, mode)


def _denoising(config: Denoising, vocabulary: Vocabulary) -> Task:
    mask = vocabulary.find(MASK)
    return DenoisingTask(config.noises, -1 if mask is None else mask, vocabulary.eos_id, _stops(vocabulary))


def _blanks(config: BlankInfilling, vocabulary: Vocabulary) -> Task:
    return BlankTask(config, Marks(*(vocabulary.token_id(mark) for mark in infill.MARKS)), _stops(vocabulary))


def _middle(config: FillInTheMiddle, vocabulary: Vocabulary) -> Task:
    marks = [vocabulary.token_id(mark) for mark in middle.MARKS]

    def decode(ids: Sequence[int]) -> str:
        return vocabulary.decode(ids, skip_special=False)

    return MiddleTask(config.rate, config.spm, marks, vocabulary.eos_id, vocabulary.encode, decode)


_TASKS: dict[type, Callable[[Any, Vocabulary], Task]] = {
    CausalLM: lambda config, vocabulary: CausalTask(),
    PrefixLM: lambda config, vocabulary: PrefixTask(config.target, _mode(config, vocabulary)),
    SpanCorruption: _span,
    Denoising: _denoising,
    BlankInfilling: _blanks,
    FillInTheMiddle: _middle,
}


_MARKS: dict[type, tuple[str, ...]] = {BlankInfilling: infill.MARKS, FillInTheMiddle: middle.MARKS, Denoising: (MASK,)}


class _Stub:
    """A vocabulary that has every token: tasks are asked for lengths before there is a tokenizer."""

    eos_id = pad_id = 0

    def find(self, token: str) -> int | None:
        return None if token.startswith(SENTINEL[:10]) else 0

    def token_id(self, token: str) -> int:
        return 0

    def tokens(self) -> Iterator[tuple[int, str]]:
        return iter(())

    def encode(self, text: str) -> list[int]:
        return []

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return ""


def window(config: ObjectiveConfig, architecture: Architecture, context: int) -> int:
    """Tokens of text that a row of training is made of. Raises ValueError where a context is too short for any."""
    return largest_text(make_task(config, _Stub()), context, architecture == "encoder-decoder")


def lengths(config: ObjectiveConfig, architecture: Architecture, context: int) -> tuple[float, float]:
    """Mean tokens of source and target that a row of training comes to, before there is a tokenizer."""
    return make_task(config, _Stub()).lengths(window(config, architecture, context))


def needs(config: ObjectiveConfig, architecture: Architecture, context: int) -> tuple[int, tuple[str, ...]]:
    """How many sentinels an objective needs, and which tokens besides."""
    n = window(config, architecture, context)
    count = 0
    named: list[str] = []
    for part in parts_of(config):
        objective = part.objective
        if isinstance(objective, SpanCorruption):
            count = max(count, noise_counts(n, objective.rate, objective.mean_span)[1])
        named += _MARKS.get(type(objective), ())
        named += [mode for mode in [getattr(objective, "mode", None)] if mode is not None]
    return count, tuple(dict.fromkeys(named))


def lacking(config: ObjectiveConfig, architecture: Architecture, context: int, has: Callable[[str], bool]) -> list[str]:
    """The tokens that an objective needs and a tokenizer has not, in the order of their ids in a new one."""
    count, named = needs(config, architecture, context)
    return [token for token in (*map(SENTINEL.format, range(count)), *named) if not has(token)]


def missing(
    config: ObjectiveConfig, architecture: Architecture, context: int, known: int, has: Callable[[str], bool]
) -> str | None:
    """What a tokenizer of `known` sentinels lacks, and what to set; None where it lacks nothing."""
    count, named = needs(config, architecture, context)
    absent = [token for token in named if not has(token)]
    if count > known:
        return (
            f"objective {config.name} needs {count} sentinels ({SENTINEL.format(0)}, ...) for a context of {context} "
            f"tokens, and the tokenizer has {known}: set tokenizer.sentinels={max(count, 100)}"
        )
    if absent:
        return (
            f"objective {config.name} needs special tokens that the tokenizer has not: set "
            f"tokenizer.extra_tokens={json.dumps(absent)}"
        )
    return None


def problems(config: ObjectiveConfig, architecture: Architecture, position: str, context: int) -> Iterator[str]:
    """Why a model of this architecture cannot carry the objective."""
    for rule in _RULES:
        found = next((r for part in parts_of(config) if (r := rule(part.objective, architecture, position))), None)
        if found is not None:
            yield found
            return
    try:
        window(config, architecture, context)
    except ValueError as error:
        yield f"objective {config.name}: {error}"


def _needs_source(config: Any, architecture: Architecture, position: str) -> str | None:
    if architecture != "encoder-decoder" or not isinstance(config, (CausalLM, FillInTheMiddle)):
        return None
    return (
        f"objective {config.name} predicts every token from those before it and leaves an encoder nothing to read: set "
        "objective prefix-lm, span-corruption or denoising, or architecture causal-decoder"
    )


def _needs_blanks(config: Any, architecture: Architecture, position: str) -> str | None:
    if position != "glm-2d" or isinstance(config, BlankInfilling):
        return None
    return (
        f"position glm-2d counts places inside blanked spans, and objective {config.name} has none: set objective "
        "blank-infilling, or another position"
    )


_RULES: Sequence[Callable[[Any, Architecture, str], str | None]] = (_needs_source, _needs_blanks)
