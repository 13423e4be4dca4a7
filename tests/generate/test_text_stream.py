"""What is streamed adds up to the text, in whole characters, without a stop string or the beginning of one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.generate.text import TextStream
from lmlab.text.tokenizer import Tokenizer, train


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["the cat sat on the mat, naïve café 日本語 🙂🙃\n"] * 30, 300)


@given(ids=st.lists(st.integers(0, 299), max_size=40))
def test_any_tokens_add_up_to_what_decoding_gives(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Half characters and special tokens included."""
    ids = [i % tokenizer.vocab_size for i in ids]
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in ids]
    pieces.append(stream.flush())
    assert "".join(pieces) == stream.text == tokenizer.decode(ids)


@given(text=st.text(alphabet="the cat日🙂é", max_size=30))
def test_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream = TextStream(tokenizer)
    assert all("\ufffd" not in stream.push(i) for i in tokenizer.encode(text))
    assert stream.flush() == ""
    assert stream.text == text


@given(text=st.text(alphabet="abc日", max_size=30), stops=st.lists(st.text(alphabet="abc日", min_size=1, max_size=4)))
def test_the_text_ends_before_the_first_stop_string(tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    """First: the earliest in the text among those complete when the first of them is complete."""
    stream = TextStream(tokenizer, stops)
    out = ""
    for i in tokenizer.encode(text):
        out += stream.push(i)
        if stream.stopped:
            break
    out += stream.flush()
    assert out == stream.text
    if any(stop in text for stop in stops):
        assert stream.stopped
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(stop) for stop in stops)
        assert not any(stop in out for stop in stops)
    else:
        assert out == text and not stream.stopped


def test_what_may_begin_a_stop_string_waits(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ["<end>"])
    said = [stream.push(i) for i in tokenizer.encode("a<en")]
    assert "".join(said) == "a"
    assert stream.flush() == "<en"
