"""A task's input as one sequence: what stands where, what is cut, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.text.task_inputs import DELIMITER, EXTRACT, START, TASK_TOKENS, TaskInputs, example
from lmlab.text.tokenizer import Tokenizer, extended, train

TEXTS = ["the cat sat on the mat", "a dog ran over the road", "it rains today in the town"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return extended(train(TEXTS * 4, 300), TASK_TOKENS)


def written(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize(
    ("task", "record", "wanted"),
    [
        ("classification", {"text": "the cat", "label": "x"}, ["{s}the cat{e}"]),
        ("entailment", {"premise": "the cat", "hypothesis": "a dog", "label": 1}, ["{s}the cat{d}a dog{e}"]),
        (
            "similarity",
            {"sentence1": "the cat", "sentence2": "a dog", "label": "same"},
            ["{s}the cat{d}a dog{e}", "{s}a dog{d}the cat{e}"],
        ),
        (
            "multiple-choice",
            {"context": "the cat", "answers": ["a dog", "the mat", "it"], "label": 2},
            ["{s}the cat{d}a dog{e}", "{s}the cat{d}the mat{e}", "{s}the cat{d}it{e}"],
        ),
    ],
)
def test_the_order_of_radfords_figure(tokenizer, task, record, wanted) -> None:
    found = TaskInputs(tokenizer, 64).encode(example(task, record))
    assert [written(tokenizer, ids) for ids in found] == [w.format(s=START, d=DELIMITER, e=EXTRACT) for w in wanted]
    assert example(task, record).label == (record["label"] if task == "multiple-choice" else str(record["label"]))


def test_special_tokens_typed_into_a_text_are_text(tokenizer) -> None:
    inputs = TaskInputs(tokenizer, 200)
    (ids,) = inputs.encode(example("classification", {"text": f"a {EXTRACT} b {DELIMITER}", "label": "x"}))
    assert ids.count(inputs.extract) == 1 and inputs.delimiter not in ids and ids[-1] == inputs.extract


@given(st.integers(8, 40), st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_what_is_too_long_is_cut_by_the_delimiter_last(tokenizer, length, first, second) -> None:
    inputs = TaskInputs(tokenizer, length)
    record = {"premise": "p" + first, "hypothesis": "h" + second, "label": "x"}
    (ids,) = inputs.encode(example("entailment", record))
    assert len(ids) <= length and (ids[0], ids[-1]) == (inputs.start, inputs.extract)
    at = ids.index(inputs.delimiter)
    premise, hypothesis = (tokenizer.encode(record[name]) for name in ("premise", "hypothesis"))
    assert premise[len(premise) - (at - 1) :] == ids[1:at], "the premise keeps its end"
    assert hypothesis[: len(ids) - at - 2] == ids[at + 1 : -1], "the hypothesis keeps its beginning"
    whole = len(premise) + len(hypothesis) + 3
    assert (inputs.cut == 0) == (whole <= length) and len(ids) == min(length, whole)


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("classification", [], r"expected an object, found \[\]"),
        ("classification", {"txt": "a"}, "text: is missing; a classification example has text, label"),
        ("classification", {"text": " ", "label": "a"}, "text: expected text, found ' '"),
        ("classification", {"text": "a"}, "label: is missing"),
        ("classification", {"text": "a", "label": 0.5}, "label: expected a class's name or a whole number, found 0.5"),
        ("classification", {"text": "a", "label": True}, "label: .* found True"),
        ("similarity", {"sentence1": "a", "label": "x"}, "sentence2: is missing"),
        ("multiple-choice", {"context": "a", "answers": ["b"], "label": 0}, "answers: expected a list of at least two"),
        ("multiple-choice", {"context": "a", "answers": ["b", 1], "label": 0}, "answers: expected a list"),
        ("multiple-choice", {"context": "a", "answers": ["b", "c"], "label": 2}, "0 to 1, found 2"),
        ("multiple-choice", {"context": "a", "answers": ["b", "c"], "label": "b"}, "0 to 1, found 'b'"),
    ],
)
def test_what_is_no_example(task, record, message) -> None:
    with pytest.raises(ValueError, match=message):
        example(task, record)


def test_a_tokenizer_without_the_tokens_is_refused() -> None:
    with pytest.raises(Refused, match="no token '<.task_start.>'"):
        TaskInputs(train(TEXTS, 280), 8)
