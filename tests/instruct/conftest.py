"""A small tokenizer that knows the families' own words."""

import pytest

from lmlab.instruct.families import draw, make
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import train


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    texts = [draw(family, "train", 0, i).prompt for family in make().values() for i in range(100)]
    return Renderer(train(texts, 900))
