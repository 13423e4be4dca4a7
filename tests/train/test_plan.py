"""The shape of pretraining takes every switch of the model, and refuses what cannot be when the recipe is read."""

import pytest
from pydantic import ValidationError

from lmlab.model.config import ModelConfig, Parts
from lmlab.train import plan
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
    found = make_plan(given, 300, minutes=None, kernel="math", tokens_per_parameter=2.0, **settings)
    assert (found["measured"], found["kernel"], found["precision"], found["tokens"]) == ([], "math", "float32", 96)
    measured = make_plan(given, 300, minutes=None, kernel="auto", tokens_per_parameter=2.0, **settings)["measured"]
    assert {row["kernel"] for row in measured} == {"math", "sdpa"}


def test_minutes_of_several_ranks_are_more_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As fast as this process each: four times the tokens at a given shape, a larger model where the minutes choose it."""
    row = {"precision": "float32", "kernel": "math"}

    def measured(shape, rows, context, precisions, kernels):
        return [row | {"tokens_per_second": 1e12 / shape.flops_per_token(context)}]

    monkeypatch.setattr(plan, "measure", measured)
    settings = {"steps": None, "batch_tokens": 256, "precision": "float32", "compile_wish": False}
    one, four = (
        [
            make_plan(shape, 300, minutes=1, kernel="math", tokens_per_parameter=2.0, ranks=ranks, **settings)
            for shape in (Shape(d_model=64, layers=2, context_length=64), Shape(context_length=64))
        ]
        for ranks in (1, 4)
    )
    assert four[0]["tokens"] == pytest.approx(4 * one[0]["tokens"], rel=0.01)
    assert four[1]["parameters"]["total"] > one[1]["parameters"]["total"]
    assert four[1]["flops"] == pytest.approx(4 * one[1]["flops"], rel=0.05)
