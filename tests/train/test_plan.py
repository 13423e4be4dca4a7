"""The shape of pretraining takes every switch of the model, and refuses what cannot be when the recipe is read."""

import pytest
from pydantic import ValidationError

from lmlab.model.config import ModelConfig, Parts
from lmlab.train.plan import LADDER, Shape, make_plan, shape_of_width


def test_every_switch_is_there_with_the_model_s_default() -> None:
    assert set(ModelConfig.model_fields) - set(Shape.model_fields) == {"vocab_size"}
    assert set(Shape.model_fields) <= set(ModelConfig.model_fields)
    for name, field in Parts.model_fields.items():
        assert Shape.model_fields[name].default == field.default, name


def test_what_is_given_reaches_the_model_and_the_rest_follows_from_the_width() -> None:
    given = Shape.model_validate(
        {
            "architecture": "prefix-decoder",
            "position": "alibi",
            "norm_placement": "sandwich",
            "attention": ["full", "local(32)"],
            "moe": {"experts": 4, "top_k": 1, "every": 2},
            "kv_heads": 1,
        }
    )
    found = shape_of_width(given, 192, 1000)
    assert (found.layers, found.d_model, found.heads, found.vocab_size, found.context_length) == (4, 192, 3, 1000, 256)
    assert found.attention == ("full", "local(32)") and found.moe is not None and found.moe.every == 2
    assert (found.architecture, found.position, found.norm_placement) == ("prefix-decoder", "alibi", "sandwich")
    fixed = shape_of_width(Shape(d_model=64, heads=4, layers=3), LADDER[-1], 1000)
    assert (fixed.layers, fixed.d_model, fixed.heads) == (3, 64, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"position": "glm-2d"}, "glm-2d counts places inside blanked spans"),
        ({"attention": "locl(3)"}, "did you mean 'local"),
        ({"moe": {"experts": 2, "top_k": 3}}, "top_k 3 is more than the 2 experts"),
        ({"d_model": 64, "heads": 5}, "no multiple of heads 5"),
        ({"vocab_size": 5}, "vocab_size"),
    ],
)
def test_what_cannot_be_is_refused_at_once(wrong: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Shape.model_validate(wrong)


def test_where_all_is_given_the_clock_is_not_read() -> None:
    given = Shape(d_model=16, heads=2, layers=1, context_length=8)
    settings = {"steps": 3, "batch_tokens": 32, "precision": "float32", "compile_wish": False}
    plan = make_plan(given, 300, minutes=None, kernel="math", tokens_per_parameter=2.0, **settings)
    assert (plan["measured"], plan["kernel"], plan["precision"], plan["tokens"]) == ([], "math", "float32", 96)
    measured = make_plan(given, 300, minutes=None, kernel="auto", tokens_per_parameter=2.0, **settings)["measured"]
    assert {row["kernel"] for row in measured} == {"math", "sdpa"}
