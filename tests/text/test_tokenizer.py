"""The laws of the tokenizer: lossless, deterministic, special tokens only when asked, one with transformers."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from lmlab.errors import Refused
from lmlab.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train

TEXTS = [
    "def add(first, second):\n    return first + second  # 12 and 345\n",
    "The quick brown fox doesn't jump over the lazy dog.\n\n",
    "naïve café, 日本語, emoji 🙂, tab\tand  spaces\n",
] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS, 400)


with_specials = st.lists(st.one_of(st.text(), st.sampled_from(SPECIAL_TOKENS)), max_size=6).map("".join)


@settings(max_examples=200)
@given(text=with_specials)
def test_decoding_undoes_encoding_for_any_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=with_specials)
def test_special_tokens_come_only_when_asked_for(tokenizer: Tokenizer, text: str) -> None:
    special = set(tokenizer.special_tokens.values())
    assert not special & set(tokenizer.encode(text))
    wanted = sum(text.count(token) for token in SPECIAL_TOKENS)
    asked = [i for i in tokenizer.encode(text, specials=True) if i in special]
    assert len(asked) == wanted


@given(texts=st.lists(with_specials, max_size=5))
def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_special_tokens_have_the_first_ids_and_pad_is_not_eos(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_id(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.end_of_turn_id) == (0, 1, 5)
    assert tokenizer.vocab_size == len(list(tokenizer.tokens())) <= 400
    with pytest.raises(Refused, match="no token '<none>'"):
        tokenizer.token_id("<none>")


def test_digits_stand_alone_unless_told_otherwise() -> None:
    texts = ["in 2024 and 2024 again 2024 "] * 50
    alone, together = train(texts, 330), train(texts, 330, split_digits=False)
    assert [alone.decode([i]) for i in alone.encode("x 2024")] == ["x", " ", "2", "0", "2", "4"]
    assert [together.decode([i]) for i in together.encode("x 2024")] == ["x", " 2024"]


def test_training_is_the_same_in_another_process(tokenizer: Tokenizer) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]; import json; from lmlab.text.tokenizer import train;"
        "print(train(json.loads(sys.argv[1]), 400).fingerprint)"
    )
    for hash_seed in "12":
        command = [sys.executable, "-c", script, json.dumps(TEXTS), *sys.path]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        made = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert made.stdout.strip() == tokenizer.fingerprint


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(Refused, match="256 bytes and 6 special tokens need 262"):
        train(["a"], 261)


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path)
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    assert {path.name for path in tmp_path.iterdir()} == names
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.chat_template == tokenizer.chat_template
    assert again.encode("a<|end|>b 12") == tokenizer.encode("a<|end|>b 12")


@pytest.mark.parametrize("model_type", [None, "llama"])
def test_transformers_opens_it_and_gives_equal_ids(tokenizer: Tokenizer, tmp_path, model_type) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    if model_type:  # a config of a family with a tokenizer class of its own beside it must not change the splitting
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS[:3], "x = 1234\n\n    y  =  5", " leading", "<|user|>\nhi<|end|>\n"]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text, specials=True)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert len(theirs) == tokenizer.vocab_size


def _foreign(folder, vocabulary: list[str], special: list[str], config: dict) -> Tokenizer:
    backend = Backend(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    backend.add_special_tokens(special)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


def test_special_ids_of_other_directories_are_found(tmp_path) -> None:
    config = {"eos_token": {"content": "</s>"}, "pad_token": None, "chat_template": "{{ messages[0]['content'] }}"}
    found = _foreign(tmp_path, ["<unk>", "</s>", "<|im_end|>", "a"], ["</s>", "<|im_end|>"], config)
    assert (found.eos_id, found.end_of_turn_id, found.pad_id) == (1, 2, 0)
    assert found.chat_template == config["chat_template"]
    assert found.named_tokens == {"eos_token": "</s>"}


def test_a_vocabulary_with_one_special_token_pads_with_it(tmp_path) -> None:
    found = _foreign(tmp_path, ["a", "<|endoftext|>"], ["<|endoftext|>"], {"eos_token": "<|endoftext|>"})
    assert found.eos_id == found.pad_id == found.end_of_turn_id == 1


def test_directories_without_a_tokenizer_are_refused(tmp_path) -> None:
    with pytest.raises(Refused, match=r"expected tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Refused, match="cannot be read as a tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(Refused, match="'</s>' is not in its vocabulary"):
        _foreign(tmp_path, ["a"], [], {"eos_token": "</s>"})
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(Refused, match="expected an object, found list"):
        Tokenizer.load(tmp_path)
