"""Settings of tiny stages, and what tests of killed runs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.progress import read_jsonl
from lmlab.text.tokenizer import Tokenizer

FAMILIES = ("copy", "pick")
REWARD = {
    "families": FAMILIES, "prompts": 12, "test_prompts": 4, "samples": 3, "max_new_tokens": 12, "batch_prompts": 4,
    "train": {"checkpoint_steps": 1, "optimizer": {"learning_rate": 1e-3}},
}  # fmt: skip
PPO = {
    "families": FAMILIES, "iterations": 3, "episodes": 8, "epochs": 2, "minibatches": 2, "micro_episodes": 3,
    "max_new_tokens": 12, "test_prompts": 6, "shown": 2,
    "train": {"checkpoint_steps": 1, "optimizer": {"learning_rate": 1e-3}},
}  # fmt: skip


def small(tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> Transformer:
    """A random model of a few thousand parameters, in evaluation mode."""
    shape = {"layers": 2, "d_model": 32, "heads": 4, "kv_heads": 2, "d_ff": 64, "context_length": 96}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **{**shape, **changes})
    return Transformer(config).initialise(seed).eval()


class KilledError(Exception):
    """Stands for the signal."""


def killed_at(step: int, fit: Callable[..., Any]) -> Callable[..., Any]:
    """The trainer, dying right after a step."""

    def on_step(now: int, _: Any) -> None:
        if now == step:
            raise KilledError

    return lambda *args, **named: fit(*args, **named, on_step=on_step)


def without_times(path: Path) -> list[dict[str, Any]]:
    volatile = ("seconds", "tokens_per_second", "input_wait")
    return [{k: v for k, v in row.items() if k not in volatile} for row in read_jsonl(path)]


def same(first: Path, second: Path) -> None:
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("results.json", "model/config.json", "model/lmlab.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert without_times(first / "metrics.jsonl") == without_times(second / "metrics.jsonl")
