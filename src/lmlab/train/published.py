"""The optimisation settings of published models by name: the survey's table 5, with what their own papers add.

A setting that a source does not give is left out, and the stage's own default stands. Batches count tokens. Where the survey's
table and a paper differ, the paper's is taken:

* PaLM used no dropout in pretraining (2204.02311); T5's final models saw 2^20 tokens a step (1910.10683; 2^16 is that of its
  ablations); Gopher's 280B was clipped at 0.25 (2112.11446); OPT decayed linearly to a tenth, and by hand where it had to
  (2205.01068).
* "Adam" with a weight decay is AdamW here. GPT-1 and GPT-3 cite decoupled decay (1711.05101), and the Adam of Megatron, with
  which BLOOM and MT-NLG were trained, decouples by default; of PanGu-alpha and ERNIE 3.0 Titan it is assumed. In the gradient a
  decay of 0.1 would be far stronger than what they trained with.
"""

from __future__ import annotations

from typing import Any

K, M = 2**10, 2**20
COSINE = {"name": "cosine", "final": 0.1}
ADAM = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}


def _ramp(start: float, over: float, rows: int = 1) -> dict[str, Any]:
    return {"start_tokens": int(start), "over_tokens": over, "increment_rows": rows}


def _gpt3(rate: float, batch: float, ramp: float = 4e9) -> dict[str, Any]:
    return {
        "batch_tokens": int(batch),
        "batch_ramp": _ramp(32 * K, ramp),
        "optimizer": {"name": "adamw", "learning_rate": rate, **ADAM},
        "schedule": {**COSINE, "unit": "tokens", "warmup": 375e6, "length": 260e9},
        "clip": 1.0,
        "precision": "float16",
    }


def _stages(*stages: tuple[int, int]) -> dict[str, Any]:
    return {"batch_tokens": stages[-1][1], "batch_ramp": {"stages": [list(each) for each in stages]}}


def _palm(*stages: tuple[int, int]) -> dict[str, Any]:
    return {
        **_stages(*stages),
        "optimizer": {
            "name": "adafactor", "learning_rate": 1e-2, "betas": [0.9, 0.99], "factored": False, "weight_decay": "lr^2",
        },
        "schedule": {"name": "inverse-sqrt", "warmup": 0, "offset": 10_000},
        "clip": 1.0,
        "z_loss": 1e-4,
        "precision": "bfloat16",
    }  # fmt: skip


def _opt(rate: float, batch: float, warmup: float = 375e6) -> dict[str, Any]:
    schedule: dict[str, Any] = {"name": "linear", "final": 0.1, "unit": "tokens", "warmup": warmup}
    if warmup < 1e5:
        schedule |= {"unit": "steps"}
    return {
        "batch_tokens": int(batch),
        "optimizer": {"name": "adamw", "learning_rate": rate, **ADAM},
        "schedule": schedule,
        "clip": 1.0,
        "precision": "float16",
        "model": {"dropout": 0.1},
        "spikes": {"policy": "lower"},
    }


def _galactica(rate: float, batch: float, warmup: float = 375e6) -> dict[str, Any]:
    return {
        "batch_tokens": int(batch),
        "optimizer": {"name": "adamw", "learning_rate": rate, **ADAM},
        "schedule": {"name": "linear", "final": 0.1, "unit": "tokens", "warmup": warmup},
        "clip": 1.0,
        "model": {"dropout": 0.1},
    }


def _llama(rate: float) -> dict[str, Any]:
    return {
        "batch_tokens": 4 * M,
        "optimizer": {"name": "adamw", "learning_rate": rate, **ADAM, "eps": 1e-5},
        "schedule": {**COSINE, "warmup": 2000},
        "clip": 1.0,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt3-small": _gpt3(6e-4, 0.5 * M),
    "gpt3-medium": _gpt3(3e-4, 0.5 * M),
    "gpt3-large": _gpt3(2.5e-4, 0.5 * M),
    "gpt3-xl": _gpt3(2e-4, 1 * M),
    "gpt3-2.7b": _gpt3(1.6e-4, 1 * M),
    "gpt3-6.7b": _gpt3(1.2e-4, 2 * M),
    "gpt3-13b": _gpt3(1e-4, 2 * M),
    "gpt3-175b": _gpt3(6e-5, 3.2e6, 12e9),
    "pangu-alpha-200b": {"optimizer": {"name": "adamw", "learning_rate": 2e-5, "weight_decay": 0.1}},
    "opt-13b": _opt(1e-4, 4 * M),
    "opt-66b": _opt(8e-5, 2 * M),
    "opt-175b": _opt(1.2e-4, 2 * M, 2000),
    "palm-8b": _palm((0, M // 2), (50_000, M)),
    "palm-540b": _palm((0, M), (50_000, 2 * M), (115_000, 4 * M)),
    "bloom-176b": {
        "batch_tokens": 4 * M,
        "batch_ramp": _ramp(192 * 2048, 9_765_625 * 2048, 16),
        "optimizer": {"name": "adamw", "learning_rate": 6e-5, **ADAM},
        "schedule": {**COSINE, "unit": "tokens", "warmup": 375e6, "length": 410e9},
        "clip": 1.0,
        "precision": "bfloat16",
    },
    "mt-nlg-530b": {
        "batch_tokens": int(3.75 * M),
        "batch_ramp": _ramp(64 * K, 12e9),
        "optimizer": {"name": "adamw", "learning_rate": 5e-5, **ADAM},
        "schedule": COSINE,
        "clip": 1.0,
        "precision": "bfloat16",
    },
    "gopher-280b": {
        **_stages((0, 3 * M), (50_000, 6 * M)),
        "optimizer": {"name": "adam", "learning_rate": 4e-5, "weight_decay": 0.0},
        "schedule": {**COSINE, "warmup": 1500},
        "clip": 0.25,
        "precision": "bfloat16",
    },
    "chinchilla-70b": {
        **_stages((0, int(1.5 * M)), (250_000, 3 * M)),
        "optimizer": {"name": "adamw", "learning_rate": 1e-4},
        "schedule": COSINE,
        "precision": "bfloat16",
    },
    "galactica-125m": _galactica(6e-4, 0.5e6),
    "galactica-1.3b": _galactica(2e-4, 1e6),
    "galactica-6.7b": _galactica(1.2e-4, 2e6),
    "galactica-30b": _galactica(1e-4, 2e6),
    "galactica-120b": _galactica(7e-6, 2e6, 1.125e9),
    "lamda-137b": {"batch_tokens": 256 * K, "precision": "bfloat16"},
    "jurassic-1-178b": {
        "batch_tokens": int(3.2e6),
        "batch_ramp": _ramp(32 * K, 12e9),
        "optimizer": {"name": "adam", "learning_rate": 6e-5},
    },
    "llama-7b": _llama(3e-4),
    "llama-13b": _llama(3e-4),
    "llama-33b": _llama(1.5e-4),
    "llama-65b": _llama(1.5e-4),
    "glm-130b": {
        "batch_tokens": 4224 * 2048,
        "batch_ramp": _ramp(192 * 2048, 0.025 * 400e9, 24),
        "optimizer": {"name": "adamw", "learning_rate": 8e-5, **ADAM},
        "schedule": {**COSINE, "unit": "tokens", "warmup": 0.005},
        "clip": 1.0,
        "precision": "float16",
        "model": {"dropout": 0.1},
        "embedding_gradient": 0.1,
    },
    "t5-11b": {
        "batch_tokens": M,
        "optimizer": {"name": "adafactor", "learning_rate": 1e-2, "betas": [0.0, 0.99], "weight_decay": 0.0},
        "schedule": {"name": "inverse-sqrt", "warmup": 0, "offset": 10_000},
        "model": {"dropout": 0.1},
    },
    "ernie-3-titan-260b": {
        "optimizer": {"name": "adamw", "learning_rate": 1e-4, "weight_decay": 0.1},
        "clip": 1.0,
        "precision": "float16",
    },
    "pangu-sigma-1t": {
        "batch_tokens": M // 2,
        "optimizer": {"name": "adam", "learning_rate": 2e-5},
        "precision": "float16",
    },
    "gpt1": {
        "batch_tokens": 64 * 512,
        "optimizer": {"name": "adamw", "learning_rate": 2.5e-4, "betas": [0.9, 0.999], "weight_decay": 0.01},
        "schedule": {"name": "cosine", "final": 0.0, "warmup": 2000},
        "model": {"dropout": 0.1},
    },
}
"""Name -> settings of pretraining. The stages of Gopher's and Chinchilla's batches change at steps that are not published:
midway is a guess."""


def settings_of(name: str, batch_tokens: int | None = None) -> dict[str, Any]:
    """A published model's settings. With another full size of the batch its stages are so many times smaller or larger."""
    found = PUBLISHED[name]
    stages = found.get("batch_ramp", {}).get("stages")
    if batch_tokens is None or not stages:
        return found
    full = stages[-1][1]
    return {**found, "batch_ramp": {"stages": [[step, max(1, size * batch_tokens // full)] for step, size in stages]}}
