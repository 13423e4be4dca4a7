"""A model's weights in another context: within the old one nothing changes, and a table of positions has an end."""

import pytest
import torch
from model_helpers import make, pairs, random_tokens

from lmlab.errors import Refused
from lmlab.model.config import RopeScaling
from lmlab.model.context import with_context


@pytest.mark.parametrize(("architecture", "position"), pairs())
def test_a_longer_context_changes_nothing_within_the_old_one(architecture: str, position: str) -> None:
    model = make(architecture=architecture, position=position)
    inputs = {"encoder_tokens_BS": random_tokens(2, 20, 1)} if model.config.has_encoder else {}
    if position in ("learned", "glm-2d"):
        with pytest.raises(Refused, match="no row past 24"):
            with_context(model, 48)
        longer, ids = with_context(model, 16), random_tokens(2, 16)
        inputs = {key: ids for key in inputs}
    else:
        longer, ids = with_context(model, 48), random_tokens(2, 24)
        assert longer(random_tokens(2, 48), **inputs).hidden_BTD.isfinite().all()
    torch.testing.assert_close(longer(ids, **inputs).hidden_BTD, model(ids, **inputs).hidden_BTD)
    assert longer.embedding.weight.data_ptr() == model.embedding.weight.data_ptr()


def test_a_stretched_rotation_stays_as_stretched_as_it_was() -> None:
    model = make(rope_scaling=RopeScaling(kind="yarn", factor=2.0))
    torch.testing.assert_close(with_context(model, 96).cos[:24], model.cos)
