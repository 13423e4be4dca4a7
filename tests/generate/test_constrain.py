"""A constrained answer of random weights that ends by itself has the form that was asked for."""

import json
import re
import sys

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lmlab.errors import Failed, Refused
from lmlab.generate.engine import Engine, Sampling
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import train

pytest.importorskip("llguidance")

REGEXES = ["(yes|no)", "[0-9]{3}-[0-9]{4}", "A: [a-z]{1,5}(, [a-z]{1,5}){0,3}\\.", "(ab)*c", "日本[語人]", "x?"]
SCHEMAS = [
    {"type": "integer"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"enum": ["red", "green", 3]},
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = train(['{"name": "the cat", "age": 12} yes no true false 日本語\n'] * 20, 330)
    # The model has more tokens than the tokenizer: those never stand for anything.
    config = ModelConfig(layers=1, d_model=32, heads=2, vocab_size=tokenizer.vocab_size + 9, context_length=128)
    model = Transformer(config).initialise(0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    return Engine(model, tokenizer, max_batch=4)


sampled = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@sampled
@given(seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=6), temperature=st.sampled_from([0.0, 1.0, 3.0]))
def test_what_ends_matches_its_regular_expression(engine: Engine, seeds: list[int], temperature: float) -> None:
    limits = [Sampling(60, temperature, seed=s, regex=REGEXES[i % len(REGEXES)]) for i, s in enumerate(seeds)]
    free = Sampling(8, temperature, seed=1)  # shares the batch and is not touched
    *answers, other = engine.generate([[7, 8]] * (len(limits) + 1), [*limits, free])
    assert other == engine.generate([[7, 8]], free)[0]
    for answer, sampling in zip(answers, limits):
        assert answer == engine.generate([[7, 8]], sampling)[0]
        assert answer.finish_reason == "stop" or sampling.regex == "(ab)*c"
        if answer.finish_reason == "stop":
            assert re.fullmatch(sampling.regex or "", answer.text), answer.text


@sampled
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.7, 1.0]), which=st.integers(0, len(SCHEMAS) - 1))
def test_what_ends_is_valid_json_of_its_schema(engine: Engine, seed: int, temperature: float, which: int) -> None:
    sampling = Sampling(100, temperature, seed=seed, json_schema=SCHEMAS[which])
    answer = engine.generate([[7, 8]], sampling)[0]
    if answer.finish_reason == "stop":
        jsonschema.validate(json.loads(answer.text), SCHEMAS[which])


def test_schemas_do_end(engine: Engine) -> None:
    settings_of = [Sampling(100, 1.0, seed=s, json_schema=SCHEMAS[s % 4], truncate=None) for s in range(12)]
    answers = engine.generate([[9]] * 12, settings_of)
    assert sum(answer.finish_reason == "stop" for answer in answers) >= 6


def test_a_stop_token_is_chosen_only_where_the_answer_may_end(engine: Engine) -> None:
    assert engine.tokenizer is not None
    (letter,) = engine.tokenizer.encode("b")
    ended = set()
    for seed in range(30):
        sampling = Sampling(60, 1.0, seed=seed, regex="a{2,4}(ba){0,9}", stop_ids=(letter,))
        answer = engine.generate([[9]], sampling)[0]
        assert letter not in answer.ids[:-1]
        assert re.fullmatch("a{2,4}", answer.text)
        ended.add(answer.ids[-1])
    assert letter in ended
    with pytest.raises(Failed, match="prompt 0: no token may follow the first 1: .*stop token"):
        engine.generate([[9]], Sampling(9, regex="[a]b", stop_ids=(letter,)))


def test_a_stream_keeps_the_form(engine: Engine) -> None:
    sampling = Sampling(20, 1.0, seed=4, regex="[0-9]{3}-[0-9]{4}")
    text = "".join(piece.text for piece in engine.stream([7], sampling))
    assert re.fullmatch("[0-9]{3}-[0-9]{4}", text)


def test_what_cannot_be_read_is_refused_before_work(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="prompt 1: regex cannot be read"):
        engine.generate([[7], [7]], [Sampling(), Sampling(regex="(a")])
    with pytest.raises(Refused, match="prompt 0: json_schema"):
        engine.generate([[7]], Sampling(json_schema={"type": "strin"}))
    with pytest.raises(Refused, match="json_schema is no JSON"):
        Sampling(json_schema="{")
    with pytest.raises(Refused, match="both set"):
        Sampling(regex="a", json_schema={})
    with pytest.raises(Refused, match="stop strings would cut"):
        Sampling(regex="a", stop=("a",))
    with pytest.raises(Refused, match="need a tokenizer"):
        Engine(engine.model).generate([[7]], Sampling(regex="a"))
    with pytest.raises(Refused, match="not known here"):
        engine.speculate([[7]], engine, Sampling(regex="a"))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(Refused, match=r"pip install 'lmlab\[constrain\]'"):
        Engine(engine.model, engine.tokenizer).generate([[7]], Sampling(regex="a"))
