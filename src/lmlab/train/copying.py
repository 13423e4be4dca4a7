"""Does a model copy from its context? Random tokens, then the same again: what it predicts the second time, it has copied.

The probe of induction heads (2209.11895): tokens drawn independently have no other regularity than that they come
again. They are drawn from the training tokens, so that each is as familiar as it is frequent. Duplicates in the data are said to
harm this ability first (2205.10487; survey, section 4.1.3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lmlab.generate.weights import Precision
from lmlab.measure import mean
from lmlab.model.transformer import Transformer
from lmlab.train.step import autocast


@torch.inference_mode()
def copying(
    model: Transformer, tokens: Any, end_of_text: int, *, rows: int, seed: int = 0, precision: Precision = "float32"
) -> dict[str, Any]:
    """Over `rows` sequences of end-of-text, a random half of a context and the same half again: nats a token in both halves,
    how many fewer in the second ("gain"), and the share of the second half's tokens that is the likeliest ("accuracy").
    The first token of the second half is left out: nothing says that it comes. Each is a score, rows its units.

    `tokens`: an array that the ids are drawn from, uniformly by place; end-of-text ids are drawn again.
    """
    half = (model.config.context_length - 1) // 2
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x636F7079]))
    nats: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for start in range(0, rows, 16):
        n = min(16, rows - start)
        ids = np.full((n, half), end_of_text, dtype=np.int64)
        while (missing := ids == end_of_text).any():
            ids[missing] = tokens[rng.integers(0, len(tokens), int(missing.sum()))]
        row_BT = torch.from_numpy(np.concatenate([np.full((n, 1), end_of_text), ids, ids], axis=1))
        with autocast(precision):
            logits_BTV = model(row_BT[:, :-1]).logits()
        logits_BTV = logits_BTV.float()
        target_BT1 = row_BT[:, 1:, None]
        nats.append((logits_BTV.logsumexp(-1) - logits_BTV.gather(-1, target_BT1)[..., 0]).double().numpy())
        right.append((logits_BTV.argmax(-1) == row_BT[:, 1:]).double().numpy())
    nats_BT, right_BT = np.concatenate(nats), np.concatenate(right)
    first, second = nats_BT[:, 1:half].mean(axis=1), nats_BT[:, half + 1 :].mean(axis=1)
    return {
        "first": mean(first).to_json(),
        "second": mean(second).to_json(),
        "gain": mean(first - second).to_json(),
        "accuracy": mean(right_BT[:, half + 1 :].mean(axis=1)).to_json(),
    }
