"""The laws of task families, and each one's answers checked by another way of working them out."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.corpus.arithmetic import held_out
from lmlab.errors import Failed, Refused
from lmlab.instruct.families import DEFAULT, FAMILIES, HELD_OUT, PAIRS, SEEN, draw, draw_distinct, generator, make
from lmlab.instruct.families.base import ATTEMPTS, TEST_SHARE, Family, Item
from lmlab.instruct.families.functions import Function, FunctionFamily, functions
from lmlab.instruct.families.numbers import addition_steps, subtraction_steps

MADE = make()
families = st.sampled_from(list(MADE.values()))
numbers = st.integers(0, 2**40)


def test_there_are_at_least_eight_seen_and_two_held_out() -> None:
    assert len(SEEN) >= 8
    assert len(HELD_OUT) >= 2
    assert set(SEEN) | set(HELD_OUT) == set(DEFAULT) == set(FAMILIES) - set(PAIRS)
    assert all(family.name == name for name, family in MADE.items())


@given(family=families, split=st.sampled_from(["train", "test"]), seed=numbers, index=numbers)
def test_an_item_is_a_function_of_its_number_and_its_target_is_right(family: Family, split, seed, index) -> None:
    item = draw(family, split, seed, index)
    assert item == draw(make([family.name])[family.name], split, seed, index)
    assert item.split == split
    assert family.judge(item, item.target) == "right"
    assert family.parse(item.target) == item.answer
    for shown in (True, False):
        assert family.correct(item, item.asked(shown).target)


@given(family=families, seed=numbers, index=numbers)
def test_the_split_is_of_what_is_asked_and_not_of_how(family: Family, seed, index) -> None:
    item = draw(family, "test", seed, index)
    other_wording = replace(item, question="said otherwise", show_steps=not item.show_steps)
    assert other_wording.split == "test"
    assert other_wording.id == item.id


@pytest.mark.parametrize("family", MADE.values(), ids=MADE)
def test_training_and_test_items_have_no_question_in_common(family: Family) -> None:
    trained = {draw(family, "train", 1, i).key for i in range(400)}
    tested = {item.key for item in draw_distinct(family, "test", 2, 50)}
    assert not trained & tested
    prompts = {draw(family, "train", 1, i).question for i in range(400)}
    assert not prompts & {item.question for item in draw_distinct(family, "test", 2, 50)}


@pytest.mark.parametrize("family", MADE.values(), ids=MADE)
def test_about_one_in_eight_possible_items_is_for_testing(family: Family) -> None:
    rng = generator("share", family.name)
    held = sum(family.sample(rng).split == "test" for _ in range(800))
    assert 50 <= held <= 160, f"expected about {800 // TEST_SHARE}"


@pytest.mark.parametrize("family", MADE.values(), ids=MADE)
def test_there_are_several_wordings(family: Family) -> None:
    items = [draw(family, "train", 0, i) for i in range(60)]
    assert len({re.sub(r"[\d\W]+", " ", item.question).split(" ")[0] for item in items}) > 1


ORACLES = {
    "copy": lambda q: q.split(": ", 1)[1],
    "reverse": lambda q: " ".join(q.split(": ", 1)[1].split()[::-1]),
    "case": lambda q: getattr(q.split(": ", 1)[1], re.search("upper|lower|title", q)[0])(),
    "sort": lambda q: " ".join(sorted(q.split(": ", 1)[1].split())),
    "pick": lambda q: re.split(r"[?:] ", q)[1].split()[
        {"first": 0, "second": 1, "third": 2, "last": -1}[
            re.search("first|second|third|last", re.split("[?:]", q)[0])[0]
        ]
    ],
    "swap": lambda q: re.sub(r"^(\w+)(.*?)(\w+)$", r"\3\2\1", q.split(": ", 1)[1]),
    "compare": lambda q: str((max if "largest" in q else min)(map(int, re.findall(r"\d+", q)))),
    "sum": lambda q: str(sum(map(int, re.findall(r"\d+", q)))),
    "difference": lambda q: str(abs(eval("-".join(re.findall(r"\d+", q))))),
    "larger": lambda q: max(re.findall(r"\d+", q)),
    "smaller": lambda q: min(re.findall(r"\d+", q)),
    "arithmetic": lambda q: str(eval(re.search(r"\d+ [+-] \d+", q)[0])),
}


@pytest.mark.parametrize("name", ORACLES)
def test_answers_agree_with_a_second_way_of_working_them_out(name) -> None:
    for i in range(150):
        item = draw(MADE[name], "train", 3, i)
        assert item.answer == ORACLES[name](item.question), item


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_held_out_of_instructions_and_of_generated_text_alike(name) -> None:
    for split in ("train", "test"):
        for i in range(60):
            a, b = map(int, re.findall(r"\d+", draw(MADE[name], split, 0, i).question))
            assert held_out(a, b) == held_out(b, a) == (split == "test")


def test_counts() -> None:
    for i in range(150):
        item = draw(MADE["count"], "train", 3, i)
        kind, listed = item.key.split(": ")
        assert kind in item.question
        assert listed in item.question
        parts = listed.split()
        letter = kind.removeprefix("letters").strip()
        assert item.answer == str(len(parts) if kind in ("words", "letters") else parts.count(letter))


def test_entries_are_taken_by_place() -> None:
    for i in range(150):
        item = draw(MADE["entry"], "train", 3, i)
        values = re.findall(r"^\w+(?:: | = | )(\d+)$", item.question, re.MULTILINE)
        place = {"first": 0, "second": 1, "last": -1}[re.search("first|second|last", item.question.split("\n")[-1])[0]]
        assert item.answer == values[place]


def test_tables_hold_each_answer_once() -> None:
    for i in range(150):
        for name in ("lookup", "find"):
            item = draw(MADE[name], "train", 3, i)
            pairs = re.findall(r"^(\w+)(?:: | = | )(\d+)$", item.question, re.MULTILINE)
            asked = item.key.split(" in ")[0]
            table = dict(pairs) if name == "lookup" else {value: key for key, value in pairs}
            assert table[asked] == item.answer


@given(a=st.integers(0, 99_999), b=st.integers(0, 99_999))
def test_the_steps_of_arithmetic_spell_the_answer_from_the_right(a, b) -> None:
    for steps, total in ((addition_steps(a, b), a + b), (subtraction_steps(max(a, b), min(a, b)), abs(a - b))):
        sums = [step.split(" = ") for step in re.split(r"\. ?", steps) if step]
        results = [right.split(",")[0] for _, right in sums]
        assert all(eval(left) == int(result) for (left, _), result in zip(sums, results, strict=True))
        digits = [*(result[-1] for result in results[:-1]), results[-1][::-1]]
        assert int("".join(digits)[::-1]) == total


def test_steps_look_like_this() -> None:
    assert addition_steps(47, 25) == "7 + 5 = 12, carry 1. 4 + 2 + 1 = 7."
    assert subtraction_steps(52, 37) == "12 - 7 = 5, borrow 1. 5 - 3 - 1 = 1."
    item = draw(MADE["arithmetic"], "train", 0, 0)
    shown, bare = item.asked(True), item.asked(False)
    assert shown.prompt.endswith(" Show your steps.")
    assert shown.target == f"Steps: {item.steps}\nAnswer: {item.answer}"
    assert bare.prompt.endswith(" Answer only.")
    assert bare.target == item.answer
    asking = [draw(MADE["arithmetic"], "train", 0, i).show_steps for i in range(200)]
    assert 60 < sum(asking) < 140


@pytest.mark.parametrize(
    ("family", "answer", "output", "verdict"),
    [
        ("count", "3", "3", "right"),
        ("count", "3", " 3.\n", "right"),
        ("count", "3", "Steps: 1 + 2 = 3.\nAnswer: 3", "right"),
        ("count", "3", "Answer: 4\nAnswer: 3\nmore", "right"),
        ("count", "3", "4", "wrong"),
        ("count", "3", "03", "wrong"),
        ("count", "3", "", "unparsed"),
        ("count", "3", "three", "unparsed"),
        ("count", "3", "3 words", "unparsed"),
        ("count", "3", "Answer:", "unparsed"),
        ("arithmetic", "-3", "-3", "right"),
        ("copy", "a b", "a b", "right"),
        ("copy", "a b", "a b\nc", "right"),
        ("copy", "a b", "a  b", "unparsed"),
        ("copy", "a b", "a B", "wrong"),
        ("copy", "a b", "a 1", "unparsed"),
        ("pick", "a", "a b", "unparsed"),
        ("function", "os_path", "os_path", "right"),
        ("function", "os_path", "os_path()", "unparsed"),
    ],
)
def test_one_parsing_rule_a_family(family, answer, output, verdict) -> None:
    item = Item(family, "?", answer, key="?")
    assert MADE[family].judge(item, output) == verdict
    assert MADE[family].correct(item, output) == (verdict == "right")


@given(family=families, output=st.text())
def test_any_output_can_be_judged(family: Family, output) -> None:
    item = draw(family, "test", 0, 0)
    found = family.parse(output)
    expected = "unparsed" if found is None else "right" if found == item.answer else "wrong"
    assert family.judge(item, output) == expected


class Tiny(Family):
    name = "tiny"
    pattern = re.compile(".*")

    def sample(self, rng):
        number = int(rng.integers(20))
        return Item(self.name, str(number), "x", key=str(number))


@settings(deadline=None)
@given(count=st.integers(0, 2))
def test_distinct_items_are_distinct(count) -> None:
    items = draw_distinct(Tiny(), "train", 0, 10 + count)
    assert len({item.key for item in items}) == 10 + count
    more = draw_distinct(Tiny(), "train", 0, 3, apart_from=items)
    assert not {item.key for item in more} & {item.key for item in items}


def test_a_family_with_too_few_items_says_so(monkeypatch) -> None:
    monkeypatch.setattr("lmlab.instruct.families.base.ATTEMPTS", ATTEMPTS // 50)
    with pytest.raises(Failed, match=r"family 'tiny': only .* different train items were found, 30"):
        draw_distinct(Tiny(), "train", 0, 30)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(Refused, match="'copi': there is none of that name; did you mean 'copy'"):
        make(["copi"])


DOCUMENT = """module shapes

def area(width: float, height=f(1, 2), *rest, **options) -> float
    Return the area of a rectangle.

    More about it.

def Shape.move(self, by)
    Move this shape by a vector. And so on.

def none()
    Return nothing at all here.

def _private(a)
    Return something private here.

def long(a)
    lower case sentences are not taken.

class Circle(Shape)
    Return a circle.
"""


def test_functions_are_found_in_docstring_documents() -> None:
    assert list(functions([DOCUMENT])) == [
        Function("area", ("width", "height", "rest", "options"), "Return the area of a rectangle"),
        Function("move", ("by",), "Move this shape by a vector"),
    ]


def test_the_corpus_functions_are_asked_about_where_there_are_enough() -> None:
    records = [Function(f"do_{i}", ("first", f"second_{i}"), f"Do the thing number {i}") for i in range(60)]
    family = FunctionFamily([*records, records[0]])
    assert family.records == sorted(records)
    for i in range(100):
        item = draw(family, "train", 0, i)
        assert "do_" in item.question
        if item.key.startswith("purpose"):
            described = re.search(r"(?:this|by): (Do the thing number (\d+))\?$", item.question)
            assert item.answer == f"do_{described[2]}"
            assert item.question.count(described[1]) == 2
    assert FunctionFamily(records[:10]).records == []
    assert make(["function"], [DOCUMENT])["function"].records == []
