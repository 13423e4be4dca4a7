"""Precision and attention kernel for this machine, chosen by measurement: a few real training steps of each."""

from __future__ import annotations

import shutil
import sysconfig
import time
from pathlib import Path
from typing import Any, cast

import torch

from lmlab.model.config import ModelConfig
from lmlab.model.kernels import Kernel
from lmlab.model.transformer import Transformer
from lmlab.objective.batch import Batch
from lmlab.objective.language_model import LanguageModel
from lmlab.train.parallel.eight_bits import from_float8, to_float8
from lmlab.train.parallel.layout import Layout
from lmlab.train.parallel.world import World, device_here
from lmlab.train.step import accumulate, make_forward, matrix_library

PRECISIONS = ("float32", "float32-onednn", "bfloat16")
KERNELS = ("math", "sdpa")


def measure(
    shape: ModelConfig,
    rows: int,
    length: int,
    precisions: tuple[str, ...] = PRECISIONS,
    kernels: tuple[str, ...] = KERNELS,
    seconds: float = 0.7,
) -> list[dict[str, Any]]:
    """Tokens a second of forward and backward for each precision x kernel, the fastest first. Of an encoder-decoder tokens
    of the target, with as many of the source beside them.

    On the GPU that pretraining takes, where there is one. Each is warmed by one step and then timed by the best of as many
    as fit into `seconds`, uncompiled.
    """
    table = []
    objective = LanguageModel()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocab_size, (rows, length + 1), generator=generator)
    batch = Batch(ids[:, :-1], ids[:, 1:], torch.ones(rows, length, dtype=torch.bool))
    if shape.has_encoder:
        batch.encoder_tokens_BS = ids[:, 1:]
    layout = Layout(world=World(device=device_here()))
    network = Transformer(shape).initialise(0).train().to(layout.world.device)
    forward = make_forward(network, objective, False)
    for precision in precisions:
        for kernel in kernels:
            network.kernel = cast(Kernel, kernel)
            if precision == "float8":
                to_float8(network)
            with matrix_library(precision):
                accumulate(forward, objective, [batch], precision, layout=layout)
                best, end = float("inf"), time.monotonic() + seconds
                while time.monotonic() < end or best == float("inf"):
                    begun = time.perf_counter()
                    accumulate(forward, objective, [batch], precision, layout=layout)
                    best = min(best, time.perf_counter() - begun)
            network.zero_grad(set_to_none=True)
            from_float8(network)
            table.append({"precision": precision, "kernel": kernel, "tokens_per_second": rows * length / best})
    return sorted(table, key=lambda row: -row["tokens_per_second"])


def can_compile() -> bool:
    """Whether torch.compile can work here: a C++ compiler and Python's headers."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return any(shutil.which(name) for name in ("g++", "c++", "clang++")) and headers.exists()
