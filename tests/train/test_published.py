"""Published settings by name: all are settings of pretraining, and the recipe's own win."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lmlab.train.pretrain import PretrainConfig
from lmlab.train.published import PUBLISHED

ROWS = """
    gpt3-175b pangu-alpha-200b opt-175b palm-540b bloom-176b mt-nlg-530b gopher-280b chinchilla-70b galactica-120b lamda-137b
    jurassic-1-178b llama-65b glm-130b t5-11b ernie-3-titan-260b pangu-sigma-1t
""".split()  # noqa: SIM905
"""The rows of the survey's table of optimisation settings."""


@pytest.mark.parametrize("name", sorted({*PUBLISHED, *ROWS}))
def test_every_row_is_settings_of_pretraining(name: str) -> None:
    config = PretrainConfig.model_validate({"published": name})
    assert PretrainConfig.model_validate(config.model_dump()) == config, (
        "as resolved in recipe.yaml it is the same again"
    )


def test_rates_batches_and_decays_are_the_tables() -> None:
    made = {name: PretrainConfig.model_validate({"published": name}) for name in ROWS}
    rates = {name: config.optimizer.learning_rate for name, config in made.items()}
    assert rates["gpt3-175b"] == 6e-5 and rates["opt-175b"] == 1.2e-4 and rates["llama-65b"] == 1.5e-4
    assert made["palm-540b"].optimizer.weight_decay == "lr^2" and not made["palm-540b"].optimizer.factored
    assert made["palm-540b"].model.dropout == 0.0 and made["t5-11b"].batch_tokens == 2**20, "the papers, not the table"
    assert made["glm-130b"].embedding_gradient == 0.1 and made["glm-130b"].batch_tokens == 8_650_752


def test_what_the_recipe_says_wins() -> None:
    given = {
        "published": "gpt3-175b",
        "batch_tokens": 2048,
        "optimizer": {"learning_rate": 1e-3},
        "model": {"heads": 2},
    }
    config = PretrainConfig.model_validate(given)
    assert config.batch_tokens == 2048 and config.optimizer.learning_rate == 1e-3
    assert config.optimizer.name == "adam" and config.schedule.length == 260e9


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="no settings of 'gpt3-175'.*gpt3-175b"):
        PretrainConfig.model_validate({"published": "gpt3-175"})


def test_noise_needs_two_parts() -> None:
    with pytest.raises(ValidationError, match="micro_batches of at least 2"):
        PretrainConfig.model_validate({"noise_scale_every": 5})
