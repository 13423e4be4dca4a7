"""The probe of copying: a model that copies is seen to copy, one that does not is not."""

import math

import numpy as np
import torch

from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Output, Transformer
from lmlab.train.copying import copying

CONFIG = ModelConfig(layers=1, d_model=16, heads=2, vocab_size=50, context_length=33)
TOKENS = np.arange(400) % 50


class Copier(Transformer):
    """Says the token that followed the last one when it came before; without one, all alike."""

    def forward(self, tokens_BT, **_):  # type: ignore[override]
        batch, time = tokens_BT.shape
        logits_BTV = torch.zeros(batch, time, 50)
        for row, ids in enumerate(tokens_BT.tolist()):
            for at in range(16, time):
                logits_BTV[row, at, ids[at - 15]] = 9.0
        return Output(logits_BTV, torch.eye(50))


def test_a_copier_is_seen_to_copy() -> None:
    found = copying(Copier(CONFIG), TOKENS, 0, rows=40)
    assert found["accuracy"]["value"] == 1.0
    assert abs(found["first"]["value"] - math.log(50)) < 1e-5
    assert found["second"]["value"] < 0.1 < 3.5 < found["gain"]["value"]
    assert found["gain"]["n"] == 40 and found == copying(Copier(CONFIG), TOKENS, 0, rows=40)


def test_a_model_without_training_is_not() -> None:
    found = copying(Transformer(CONFIG).initialise(0), TOKENS, 0, rows=24)
    assert found["accuracy"]["value"] < 0.2 and abs(found["gain"]["value"]) < 0.5
