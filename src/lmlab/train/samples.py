"""What a model in training writes: fixed beginnings, continued as its objective asks for it."""

from __future__ import annotations

import numpy as np

from lmlab.generate.engine import Engine, Sampling
from lmlab.model.transformer import Transformer
from lmlab.objective.example import Task
from lmlab.objective.layout import Layout
from lmlab.text.tokenizer import Tokenizer


def continuations(
    model: Transformer, tokenizer: Tokenizer, prompts: tuple[str, ...], task: Task, layout: Layout
) -> list[dict[str, str]]:
    """What the model writes after each beginning, asked as it was trained, at temperature 0.7 with fixed seeds."""
    engine = Engine(model, tokenizer)
    room = min(64, model.config.context_length // 2)
    asked, sampling = [], []
    for index, prompt in enumerate(prompts):
        beginning = np.array([tokenizer.eos_id, *tokenizer.encode(prompt)])
        example = task.continuation(beginning, beginning[:0])
        lead = example.target if example.inputs is None else example.inputs
        source, begun = example.source.tolist(), lead.tolist()
        asked.append(source if layout.has_encoder or layout.blocks else source + begun)
        own = (layout.start_id,) if example.inputs is None else ()
        starts = (*own, *begun) if layout.has_encoder or layout.blocks else None
        blank = len(source) - 1 if layout.blocks else None
        sampling.append(Sampling(room, temperature=0.7, seed=index, decoder_start_ids=starts, blank=blank))
    return [{"prompt": p, "text": c.text} for p, c in zip(prompts, engine.generate(asked, sampling), strict=True)]
