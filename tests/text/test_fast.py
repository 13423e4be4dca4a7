"""The fast path gives the ids of the slow one: on any text, on every code point, and is not taken where it could differ."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lmlab.text.algorithms import SPECIAL_TOKENS, pieces
from lmlab.text.fast import GPT2, LLAMA3, byte_signs, fast_encoder
from lmlab.text.tokenizer import train

TEXTS = [
    "def add(first, second):\n    return first + second  # 12 and 345, I'll\n",
    "The quick brown fox doesn't jump over the lazy dog.\r\n\n",
    "naïve café, 日本語, ภาษาไทย, emoji 🙂, tab\tand  spaces\n",
] * 20


def backend(expression: str, size: int = 420) -> Backend:
    made = Backend(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), byte_level])
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return made


@pytest.fixture(scope="module")
def tokenizer():
    return train(TEXTS, 500)


anything = st.lists(
    st.one_of(st.text(), st.sampled_from([*SPECIAL_TOKENS, "doesn't", "  ", "\r\n", "日本語", "345", "'LL"])),
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(text=anything.map("".join))
def test_its_ids_are_the_slow_path_s(tokenizer, text: str) -> None:
    assert tokenizer.fast is not None
    assert tokenizer.fast([text]) == [tokenizer.encode(text)]


@settings(max_examples=40, deadline=None)
@given(corpus=st.lists(st.text("abc ", min_size=1), min_size=1, max_size=20), text=st.text("abc ", max_size=60))
def test_any_training_text_gives_merges_that_agree(corpus: list[str], text: str) -> None:
    """Few letters make many ways to the same token."""
    made = train(corpus, 300, min_frequency=1)
    if made.fast is not None:
        assert made.fast([text]) == [made.encode(text)]


@pytest.mark.parametrize("expression", [pieces(True), pieces(False), GPT2, LLAMA3])
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_code_point_is_cut_alike(expression: str, whole: bool) -> None:
    slow = backend(expression)
    fast = fast_encoder(slow)
    assert fast is not None
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    if not whole:  # all but most of the letters of the large scripts and of what no text holds
        points = [c for i, c in enumerate(points) if unicodedata.category(c) not in ("Lo", "Cn", "Co") or i % 500 == 0]
    texts = []
    for start in range(0, len(points), 512):
        texts.append("".join(f"a{c}{c} {c}1{c}\n{c}'{c}" for c in points[start : start + 512]))
    expected = [each.ids for each in slow.encode_batch_fast(texts, add_special_tokens=False)]
    assert fast(texts) == expected


def test_many_threads_and_hard_texts_change_nothing(tokenizer) -> None:
    hard = ["\0no token\0", " " * 50_000, "a" * 50_000, "\n" * 30_000 + "x", "!" * 50_000, "日" * 20_000, ""]
    expected = tokenizer.encode_batch(hard)
    assert tokenizer.encode_many(hard) == expected == tokenizer.encode_many(hard, threads=2)
    assert [ids.tolist() for ids in tokenizer.encode_arrays(hard)] == expected
    for encode in (tokenizer.fast, tokenizer.fast.arrays):
        with pytest.raises(UnicodeEncodeError):
            encode(["\ud800"])


def test_it_is_not_taken_where_ids_could_differ(tokenizer) -> None:
    others = [train(TEXTS, 300, normalisation="nfkc"), train(TEXTS, 300, algorithm="bpe")]
    assert [each.fast for each in others] == [None, None]
    assert fast_encoder(backend(r"\w+|\W+")) is None, "an expression that nobody has compared"
    odd = json.loads(tokenizer.to_json())
    odd["added_tokens"][2]["special"] = False
    assert fast_encoder(Backend.from_str(json.dumps(odd))) is None, "it is read in plain text"


def test_a_vocabulary_whose_merges_do_not_make_its_tokens_is_left_to_the_slow_path() -> None:
    """abc is made of ab and c, but bc comes first: tokenizers never makes it, tiktoken would of a and bc."""
    signs = sorted(byte_signs())
    words = [*signs, "bc", "ab", "abc"]
    made = Backend(models.BPE({word: i for i, word in enumerate(words)}, [("b", "c"), ("a", "b"), ("ab", "c")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert made.encode("abc").tokens == ["a", "bc"]
    assert fast_encoder(made) is None


def test_ids_in_another_order_than_the_merges_are_put_back() -> None:
    signs = sorted(byte_signs())
    words = ["ab", "abc", *signs, "bcd", "cd"]
    merges = [("c", "d"), ("a", "b"), ("b", "cd"), ("ab", "c")]
    made = Backend(models.BPE({word: i for i, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = fast_encoder(made)
    assert fast is not None
    texts = ["abcd", "abc bcd ab", "xcdcd", "abcabcd"]
    assert fast(texts) == fast(texts, threads=2) == [made.encode(text).ids for text in texts]
