"""Generated arithmetic: right answers, pairs apart, what a document is, the source that reads it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.config import Document, validate
from lmlab.corpus.arithmetic import (
    OPERATIONS,
    WAYS,
    Arithmetic,
    Problem,
    addition,
    answer_of,
    document,
    generator,
    held_out,
    operands,
    subtraction,
)  # fmt: skip
from lmlab.corpus.readers import listing, read
from lmlab.corpus.readers.records import Limits
from lmlab.corpus.source import SourceConfig
from lmlab.errors import Refused

numbers = st.integers(0, 99_999)
WORDS = {"sum": "+", "difference": "-"}


def test_lines_look_like_this() -> None:
    added, taken = Problem(47, 25, "sum"), Problem(25, 47, "difference")
    assert added.written("plain") == ("47+25=", "72") and taken.written("plain") == ("47-25=", "22")
    assert added.line("steps") == "47+25:7+5=12;4+2+1=7;72"
    assert Problem(52, 37, "difference").line("steps") == "52-37:12-7=5;5-3-1=1;15"
    assert Problem(984, 654, "sum").line("steps") == "984+654:4+4=8;8+5=13;9+6+1=16;1638"
    assert taken.line("symbol", "#") == "25#47=22", "the order of a symbol's operands tells nothing"
    assert Problem(25, 47, "larger").line("words") == "The larger of 25 and 47 is 47"


@given(a=numbers, b=numbers)
def test_columns_spell_the_answer_from_the_right(a: int, b: int) -> None:
    low, high = min(a, b), max(a, b)
    for columns, sign, total in ((addition(a, b), 1, a + b), (subtraction(high, low), -1, high - low)):
        found = list(columns)
        assert all(each.x + sign * (each.y + each.carried) == each.value for each in found)
        assert [each.carried for each in found] == [False, *(each.carries for each in found[:-1])]
        digits = [str(each.value)[-1] for each in found[:-1]] + [str(found[-1].value)[::-1]]
        assert int("".join(digits)[::-1]) == total


@given(a=numbers, b=numbers, operation=st.sampled_from(list(OPERATIONS)), way=st.sampled_from(WAYS))
def test_what_is_written_reads_back_as_the_answer(a: int, b: int, operation: str, way: str) -> None:
    if way in ("plain", "steps") and operation not in WORDS:
        operation = "sum"
    problem = Problem(a, b, operation)
    given_part, rest = problem.written(way)
    assert answer_of(way, f"{rest}\n99+1=") == problem.answer
    found = {"sum": a + b, "difference": abs(a - b), "larger": max(a, b), "smaller": min(a, b)}[operation]
    assert problem.answer == str(found)
    if way == "plain":
        assert eval(given_part.rstrip("=")) == found


def test_no_document_has_a_held_out_pair_and_all_lines_are_right() -> None:
    config = Arithmetic(digits=(1, 2, 2))
    seen = {way: 0 for way in WAYS}
    shapes = {
        "plain": re.compile(r"(\d+)([+-])(\d+)=(\d+)"),
        "steps": re.compile(r"(\d+)([+-])(\d+):.*;(\d+)"),
        "symbol": re.compile(r"(\d+)([#@&%])(\d+)=(\d+)"),
        "words": re.compile(r"The (\w+) of (\d+) and (\d+) is (\d+)"),
    }
    for number in range(600):
        text = document(config, number)
        lines = text.splitlines()
        way = next(way for way, shape in shapes.items() if shape.fullmatch(lines[0]))
        seen[way] += 1
        assert len(lines) == config.lines[way] and text.endswith("\n"), "each line has its end"
        secrets = set(OPERATIONS)
        for line in lines:
            parts = list(shapes[way].fullmatch(line).groups())
            sign = parts.pop(0 if way == "words" else 1)
            a, b, answer = map(int, parts)
            assert not held_out(a, b)
            right = {name for name, each in OPERATIONS.items() if each(a, b) == answer}
            secrets &= right
            if way != "symbol":
                assert {"+": "sum", "-": "difference"}.get(sign, sign) in right
        assert secrets or way != "symbol", "one operation explains all lines of a symbol"
        assert document(config, number) == text != document(config, number + 600)
    assert min(seen.values()) > 100, "four ways, each as often"


def test_one_pair_in_eight_is_held_out_in_either_order_and_no_table_is() -> None:
    held = [(a, b) for a in range(10, 100) for b in range(a, 100) if held_out(a, b)]
    assert 0.11 < len(held) / 4095 < 0.14
    assert all(held_out(b, a) for a, b in held)
    assert not any(held_out(a, b) for a in range(10) for b in range(1000))
    rng = generator("test")
    for digits in (2, 3):
        for test in (False, True):
            a, b = operands(rng, digits, test)
            assert len(str(a)) == len(str(b)) == digits and held_out(a, b) == test
    with pytest.raises(ValueError, match="never held out"):
        operands(rng, 1, test=True)


def test_the_source_makes_documents_by_its_settings() -> None:
    source = SourceConfig.model_validate(
        {
            "path": "generated:arithmetic",
            "arithmetic": {"documents": 30, "seed": 3, "ways": {"plain": 1}, "lines": {"plain": 2}},
        }
    )
    (file,) = listing(source).files
    records = list(read(file, source, Limits()))
    assert [record.text for record in records] == [document(source.arithmetic, number) for number in range(30)]
    assert len({record.unit for record in records}) == 30, "the held-out split is by document"
    assert all(len(record.text.splitlines()) == 2 for record in records)
    assert "\n".join(r.text for r in records) != "\n".join(
        document(Arithmetic(ways={"plain": 1}), n) for n in range(30)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": {"plain": 0}}, "ways: expected shares"),
        ({"ways": {"plain": 1, "words": 1}, "lines": {"plain": 3}}, "found none for words"),
        ({"digits": [0, 0]}, "digits: expected shares"),
        ({"ways": {"plane": 1}}, "plane"),
    ],
)
def test_bad_settings_are_refused(settings, message) -> None:
    with pytest.raises(Refused, match=message):
        validate(Arithmetic, settings, Document({}, {}, "recipe"), ())


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(Refused, match="did you mean 'generated:arithmetic'"):
        listing(SourceConfig(name="x", path="generated:arithmetics"))
