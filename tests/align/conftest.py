"""A small tokenizer that knows the families' words, a small random model, and stages run in a temporary directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from align_stages import FAMILIES, REWARD, small

from lmlab.align import ppo, reward
from lmlab.instruct.families import draw, make
from lmlab.model.store import save_model
from lmlab.progress import Metrics
from lmlab.run import Context, write_json
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import Tokenizer, train

MODULES = {"reward": reward, "ppo": ppo}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    families = make(FAMILIES)
    texts = [draw(family, "train", 0, i).prompt for family in families.values() for i in range(200)]
    return train(texts, 600)


@pytest.fixture(scope="session")
def renderer(tokenizer: Tokenizer) -> Renderer:
    return Renderer(tokenizer)


@pytest.fixture(scope="session")
def model_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, small(tokenizer), tokenizer)
    return folder


Stage = Callable[..., dict[str, Any]]


@pytest.fixture
def stage() -> Stage:
    """Run a stage into a directory as the recipe would; whatever an earlier attempt left there is taken up."""

    def run(kind: str, out: Path, inputs: Mapping[str, Any], seed: int = 0, **settings: Any) -> dict[str, Any]:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "state.json", {"seconds": 0.0})
        spec = MODULES[kind].STAGE
        config = spec.config.model_validate(settings)
        metrics = Metrics(out)
        try:
            return dict(spec.run(Context(kind, kind, config, dict(inputs), out, seed, metrics)))
        finally:
            metrics.close()

    return run


@pytest.fixture(scope="session")
def reward_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished reward stage."""
    out = tmp_path_factory.mktemp("reward")
    write_json(out / "state.json", {"seconds": 0.0})
    config = reward.STAGE.config.model_validate(REWARD)
    reward.STAGE.run(Context("reward", "reward", config, {"model": model_folder}, out, 0, Metrics(out)))
    return out
