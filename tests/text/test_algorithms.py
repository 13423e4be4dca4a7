"""The four algorithms: what each promises to lose and not to lose, and that the rest of lmlab can live with each."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.generate.text import TextStream
from lmlab.text.algorithms import SPECIAL_TOKENS
from lmlab.text.chat import Renderer
from lmlab.text.compare import round_trip
from lmlab.text.tokenizer import Tokenizer, train

TEXTS = [
    "def add(first, second):\n    return first + second  # 12 and 345\n",
    "The quick brown fox doesn't jump over the lazy dog.\n\n",
    "naïve café, 日本語 の 本, emoji 🙂, tab\tand  spaces\n",
] * 30

KINDS = {
    "byte-level-bpe": {},
    "bpe": {"algorithm": "bpe"},
    "unigram": {"algorithm": "unigram"},
    "bpe, unknown": {"algorithm": "bpe", "byte_fallback": False},
    "unigram, unknown": {"algorithm": "unigram", "byte_fallback": False},
    "wordpiece": {"algorithm": "wordpiece"},
}
LOSSLESS = ("byte-level-bpe", "bpe", "unigram")
SIZES = {"wordpiece": 200, "unigram": 380, "bpe": 380, "byte-level-bpe": 380}


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    return {name: train(TEXTS, SIZES.get(name, 120), **settings) for name, settings in KINDS.items()}


pieces = st.sampled_from([*SPECIAL_TOKENS, "<0x41>", "▁", "##", "<unk>", "[UNK]", " \n ", "12", "日本", "🙂"])
texts = st.lists(st.one_of(st.text(), pieces), max_size=6).map("".join)


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_what_promises_to_lose_nothing_loses_nothing(made, name: str, text: str) -> None:
    tokenizer = made[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_id is None and not set(ids) & set(tokenizer.special_tokens.values())


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None)
@given(text=texts)
def test_a_text_stream_gives_what_decoding_gives(made, name: str, text: str) -> None:
    tokenizer = made[name]
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    given_out = "".join([*map(stream.push, ids), stream.flush()])
    assert given_out == stream.text == tokenizer.decode(ids)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_the_same_in_another_process_and_after_saving(made, name: str, tmp_path) -> None:
    script = (
        "import sys, json; sys.path[:0] = sys.argv[4:]; from lmlab.text.tokenizer import train;"
        "print(train(json.loads(sys.argv[1]), int(sys.argv[2]), **json.loads(sys.argv[3])).fingerprint)"
    )
    size = str(SIZES.get(name, 120))
    command = [sys.executable, "-c", script, json.dumps(TEXTS), size, json.dumps(KINDS[name]), *sys.path]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.strip()
    assert again == made[name].fingerprint
    made[name].save(tmp_path)
    opened = Tokenizer.load(tmp_path)
    assert opened.fingerprint == again and opened.unk_id == made[name].unk_id
    assert opened.encode(TEXTS[2]) == made[name].encode(TEXTS[2])
    assert opened.algorithm == KINDS[name].get("algorithm", "byte-level-bpe")


@pytest.mark.parametrize("name", KINDS)
def test_transformers_opens_every_kind(made, name: str, tmp_path) -> None:
    from transformers import AutoTokenizer

    made[name].save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:3]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == made[name].encode(text)


@pytest.mark.parametrize("name", KINDS)
def test_chats_are_rendered_and_masked_with_every_kind(made, name: str) -> None:
    tokenizer = made[name]
    messages = [{"role": "user", "content": "add 日本 12 <|end|>"}, {"role": "assistant", "content": "second ☃ fox"}]
    ids, mask = Renderer(tokenizer).encode_trained(messages)
    trained = [i for i, learnt in zip(ids, mask, strict=True) if learnt]
    assert trained[-1] == tokenizer.end_of_turn_id
    assert ids.count(tokenizer.end_of_turn_id) == 2, "the user's own words end no turn"
    alone = tokenizer.encode("second ☃ fox")
    assert trained[:-1] == alone


def test_digits_stand_alone_in_every_kind(made) -> None:
    for tokenizer in made.values():
        assert len(tokenizer.encode("345")) == 3
    together = train(["in 2024 and 2024 again 2024 "] * 50, 330, algorithm="bpe", split_digits=False)
    assert together.decode([together.encode("x 2024")[-1]]) == " 2024"


def test_bytes_have_the_ids_after_the_special_tokens(made) -> None:
    for name in ("bpe", "unigram"):
        assert [made[name].token_id(f"<0x{byte:02X}>") for byte in (0, 65, 255)] == [6, 71, 261]
        assert made[name].encode("\u2603") == [6 + byte for byte in "\u2603".encode()]


def test_what_is_unknown_is_counted_in_bytes(made) -> None:
    text = "the fox ☃☃ dog"
    for name in ("bpe, unknown", "unigram, unknown", "wordpiece"):
        tokenizer = made[name]
        found = round_trip(tokenizer, [text, "the fox"], tokenizer.encode_batch([text, "the fox"]))
        assert found["unknown_bytes"] == 6
        assert found["bytes_lost"] == 6 + (name == "wordpiece"), "a word that is skipped takes its space along"
        assert found["restored"]["value"] == 0.5 and found["bytes"] == 25
    spaced = round_trip(made["wordpiece"], ["the  fox\n"], [made["wordpiece"].encode("the  fox\n")])
    assert spaced["bytes_lost"] == 2 and spaced["unknown_tokens"] == 0


def test_normalisation_costs_what_it_changes() -> None:
    text = "the ﬁne CAFE\u0301 ½"
    expected = {"none": text, "nfc": "the ﬁne CAF\u00c9 ½", "nfkc": "the fine CAF\u00c9 1⁄2"}
    expected["lowercase"] = text.lower()
    for name, back in expected.items():
        tokenizer = train(TEXTS, 300, normalisation=name)
        assert tokenizer.decode(tokenizer.encode(text)) == back, name
        lost = round_trip(tokenizer, [text], [tokenizer.encode(text)])["bytes_lost"]
        assert (lost > 0) == (back != text)


def test_rare_characters_are_left_to_the_bytes() -> None:
    texts = ["abcdefgh " * 200 + "☃"] * 5
    everything = train(texts, 400, algorithm="bpe", character_coverage=1.0)
    most = train(texts, 400, algorithm="bpe", character_coverage=0.999)
    assert len(everything.encode("☃")) == 1 and len(most.encode("☃")) == 3


def test_no_room_is_refused() -> None:
    for settings_, least in (({"algorithm": "bpe"}, 262), ({"algorithm": "wordpiece"}, 7)):
        with pytest.raises(Refused, match=f"need {least}"):
            train(["a"], least - 1, **settings_)
