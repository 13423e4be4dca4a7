"""Published settings by name: all are settings of pretraining, and the recipe's own win."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lmlab.train.pretrain import PretrainConfig
from lmlab.train.published import PUBLISHED

K = 2**10
TABLE = """
    gpt3-175b           32K-3.2M   6e-5    cosine        adam       float16   0.1   1.0  -
    pangu-alpha-200b    -          2e-5    -             adam       -         0.1   -    -
    opt-175b            2M         1.2e-4  manual        adamw      float16   0.1   -    0.1
    palm-540b           1M-4M      1e-2    inverse-sqrt  adafactor  bfloat16  lr^2  1.0  0.1
    bloom-176b          4M         6e-5    cosine        adam       bfloat16  0.1   1.0  0.0
    mt-nlg-530b         64K-3.75M  5e-5    cosine        adam       bfloat16  0.1   1.0  -
    gopher-280b         3M-6M      4e-5    cosine        adam       bfloat16  -     1.0  -
    chinchilla-70b      1.5M-3M    1e-4    cosine        adamw      bfloat16  -     -    -
    galactica-120b      2M         7e-6    linear        adamw      -         0.1   1.0  0.1
    lamda-137b          256K       -       -             -          bfloat16  -     -    -
    jurassic-1-178b     32K-3.2M   6e-5    -             -          -         -     -    -
    llama-65b           4M         1.5e-4  cosine        adamw      -         0.1   1.0  -
    glm-130b            0.4M-8.25M 8e-5    cosine        adamw      float16   0.1   1.0  0.1
    t5-11b              64K        1e-2    inverse-sqrt  adafactor  -         -     -    0.1
    ernie-3-titan-260b  -          1e-4    -             adam       float16   0.1   1.0  -
    pangu-sigma-1t      0.5M       2e-5    -             adam       float16   -     -    -
"""
"""The survey's table of optimisation settings as it prints them: batch, rate, decay, optimizer, precision, weight
decay, clip, dropout."""
ROWS = {fields[0]: fields[1:] for fields in (line.split() for line in TABLE.splitlines()) if fields}
PAPERS = {
    ("opt-175b", "decay"): "linear",
    ("palm-540b", "dropout"): 0.0,
    ("gopher-280b", "clip"): 0.25,
    ("t5-11b", "batch"): 2**20,
    **{(name, "optimizer"): "adamw" for name, row in ROWS.items() if row[3] == "adam" and row[5] != "-"},
}
"""Where the papers say otherwise (see published.py)."""


def tokens(written: str) -> tuple[float, float]:
    """0.4M -> tokens, of thousands and millions as powers of two and of ten: the table has both."""
    number, power = float(written[:-1]), {"K": 1, "M": 2}[written[-1]]
    return number * K**power, number * 1000**power


@pytest.mark.parametrize("name", ROWS)
def test_every_column_of_every_row_is_the_table_s_or_the_paper_s(name: str) -> None:
    batch, rate, decay, optimizer, precision, weight_decay, clip, dropout = ROWS[name]
    given, config = PUBLISHED[name], PretrainConfig.model_validate({"published": name})
    sizes = [tokens(each) for each in batch.split("-") if each]
    found_sizes = [config.batch_tokens, *([_first_batch(config)] if len(sizes) == 2 else [])]
    for printed, found in zip(reversed(sizes), found_sizes):
        wanted = (PAPERS[name, "batch"],) if (name, "batch") in PAPERS else printed
        assert any(found == pytest.approx(each, rel=0.03) for each in wanted), (found, wanted)
    columns = {
        "rate": (rate, config.optimizer.learning_rate, "learning_rate" in given.get("optimizer", {})),
        "decay": (decay, config.schedule.name, "schedule" in given),
        "optimizer": (optimizer, config.optimizer.name, "optimizer" in given),
        "precision": (precision, config.precision, "precision" in given),
        "weight decay": (weight_decay, config.optimizer.weight_decay, True),
        "clip": (clip, config.clip, True),
        "dropout": (dropout, config.model.dropout, True),
    }
    for column, (text, found, set_here) in columns.items():
        if text == "-":
            continue
        wanted = PAPERS.get((name, column), float(text) if text[0].isdigit() else text)
        assert found == wanted and set_here, (column, found, wanted)
    if decay in ("cosine", "linear", "manual"):
        assert config.schedule.final == 0.1


def _first_batch(config: PretrainConfig) -> float:
    ramp = config.batch_ramp
    assert ramp is not None
    return float(ramp.start_tokens or ramp.stages[0][1])


@pytest.mark.parametrize("name", sorted({*PUBLISHED, *ROWS}))
def test_every_row_is_settings_of_pretraining(name: str) -> None:
    config = PretrainConfig.model_validate({"published": name})
    assert PretrainConfig.model_validate(config.model_dump()) == config, (
        "as resolved in recipe.yaml it is the same again"
    )


def test_what_the_papers_add() -> None:
    made = {name: PretrainConfig.model_validate({"published": name}) for name in ROWS}
    assert not made["palm-540b"].optimizer.factored
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
    assert config.optimizer.name == "adamw" and config.schedule.length == 260e9


@pytest.mark.parametrize("name", ["palm-540b", "gopher-280b", "chinchilla-70b"])
def test_a_smaller_batch_has_smaller_stages(name: str) -> None:
    whole, small = (PretrainConfig.model_validate({"published": name, **more}) for more in ({}, {"batch_tokens": 8192}))
    assert whole.batch_ramp is not None and small.batch_ramp is not None
    ratio = 8192 / whole.batch_tokens
    assert [step for step, _ in small.batch_ramp.stages] == [step for step, _ in whole.batch_ramp.stages]
    assert [size for _, size in small.batch_ramp.stages] == [size * ratio for _, size in whole.batch_ramp.stages]
    assert PretrainConfig.model_validate(small.model_dump()) == small


def test_stages_that_do_not_end_with_the_full_size_are_refused() -> None:
    with pytest.raises(ValidationError, match="end with 4,096 tokens and batch_tokens, the full size, is 2,048"):
        PretrainConfig.model_validate({"batch_ramp": {"stages": [[0, 1024], [10, 4096]]}})


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="no settings of 'gpt3-175'.*gpt3-175b"):
        PretrainConfig.model_validate({"published": "gpt3-175"})


def test_noise_needs_two_parts() -> None:
    with pytest.raises(ValidationError, match="micro_batches of at least 2"):
        PretrainConfig.model_validate({"noise_scale_every": 5})
