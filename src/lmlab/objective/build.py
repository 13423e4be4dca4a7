"""From the settings of an objective to its task; what an objective needs of a tokenizer and of an architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from lmlab.model.settings import Architecture
from lmlab.objective.example import Task, largest_text
from lmlab.objective.settings import CausalLM, ObjectiveConfig, PrefixLM, SpanCorruption
from lmlab.objective.tasks import CausalTask, PrefixTask, SpanTask


class Vocabulary(Protocol):
    """What an objective needs of a tokenizer."""

    eos_id: int
    pad_id: int

    def find(self, token: str) -> int | None: ...


SENTINEL = "<extra_id_{}>"
"""T5's name for the sentinels."""


def sentinels(vocabulary: Vocabulary) -> list[int]:
    """The ids of <extra_id_0>, <extra_id_1>, ... as far as there are."""
    found: list[int] = []
    while (each := vocabulary.find(SENTINEL.format(len(found)))) is not None:
        found.append(each)
    return found


def make_task(config: ObjectiveConfig, vocabulary: Vocabulary) -> Task:
    """The task. Its tokens are in the vocabulary: see `missing`."""
    return _TASKS[type(config)](config, vocabulary)


_TASKS: dict[type, Callable[[Any, Vocabulary], Task]] = {
    CausalLM: lambda config, vocabulary: CausalTask(),
    PrefixLM: lambda config, vocabulary: PrefixTask(),
    SpanCorruption: lambda config, vocabulary: SpanTask(
        config.rate, config.mean_span, sentinels(vocabulary), vocabulary.eos_id
    ),
}


def sentinels_needed(config: ObjectiveConfig, architecture: Architecture, context: int) -> int:
    """How many sentinels a text of a context's length needs."""
    if not isinstance(config, SpanCorruption):
        return 0
    task = SpanTask(config.rate, config.mean_span, (0,), 0)
    n = largest_text(task, context, architecture == "encoder-decoder")
    return int(task.lengths(n)[1] - 1) - min(max(round(n * config.rate), 1), n - 1)


def missing(config: ObjectiveConfig, architecture: Architecture, context: int, known: int) -> str | None:
    """What a tokenizer of `known` sentinels lacks, and what to set; None where it lacks nothing."""
    needed = sentinels_needed(config, architecture, context)
    if needed <= known:
        return None
    return (
        f"objective {config.name} needs {needed} sentinels ({SENTINEL.format(0)}, ...) for a context of {context} tokens, "
        f"and the tokenizer has {known}: set tokenizer.sentinels={max(needed, 100)}"
    )


def problems(config: ObjectiveConfig, architecture: Architecture, position: str, context: int) -> Iterator[str]:
    """Why a model of this architecture cannot carry the objective."""
    for rule in _RULES:
        found = rule(config, architecture, position)
        if found is not None:
            yield found
            return
    try:
        sentinels_needed(config, architecture, context)
    except ValueError as error:
        yield f"objective {config.name}: {error}"


def _needs_source(config: ObjectiveConfig, architecture: Architecture, position: str) -> str | None:
    if architecture != "encoder-decoder" or not isinstance(config, CausalLM):
        return None
    return (
        "objective causal-lm predicts every token from those before it and leaves an encoder nothing to read: set "
        "objective prefix-lm or span-corruption, or architecture causal-decoder"
    )


def _needs_blanks(config: ObjectiveConfig, architecture: Architecture, position: str) -> str | None:
    if position != "glm-2d":
        return None
    return f"position glm-2d counts places inside blanked spans, and objective {config.name} has none"


_RULES: Sequence[Callable[[ObjectiveConfig, Architecture, str], str | None]] = (_needs_source, _needs_blanks)
