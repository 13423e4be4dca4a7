"""Byte-level BPE (1508.07909 over bytes, as in GPT-2): training, and any Hugging Face `tokenizer.json` directory.

Whether the strings of special tokens inside a text are read as those tokens is the caller's word, never the text's:
`encode` reads them as plain text unless `specials=True`. So nobody who types `<|end|>` ends a turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lmlab.errors import Refused
from lmlab.run import write_atomic, write_json

DOCUMENT_END, PAD, END_OF_TURN = "<|endoftext|>", "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (DOCUMENT_END, PAD, "<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)
"""The special tokens of a tokenizer trained here, in the order of their ids, from 0."""

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

# One piece of text becomes one or more tokens, never a part of a token with its neighbour: an English contraction, a
# word with the space before it, digits, other signs with the space before them, white space (the last space of a run
# goes with the word after it). This is GPT-2's rule (FACTS 8), with digits one by one, as LLaMA has them, if asked: a
# digit then is the same token wherever it stands, which is what column arithmetic needs.
_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|%s| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS = {True: r"\p{N}", False: r" ?\p{N}+"}

# Names under which public tokenizers keep the token that ends a turn, or pads, where no file says so.
_TURN_ENDS = (END_OF_TURN, "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end_of_turn|>", "<|eot|>", "<|return|>")
_PADS = (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<unk>", "[UNK]")

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    min_frequency: int = 2,
    split_digits: bool = True,
    extra_tokens: Sequence[str] = (),
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries: the special tokens and `extra_tokens`, the 256 bytes, then merges of the
    most frequent pair, until `vocab_size` is reached or no pair stands `min_frequency` times. The same texts give the same
    tokenizer. Raises Refused if `vocab_size` has no room for the bytes and the special tokens.
    """
    specials = tuple(dict.fromkeys((*SPECIAL_TOKENS, *extra_tokens)))
    least = 256 + len(specials)
    if vocab_size < least:
        raise Refused(f"vocab_size {vocab_size}: 256 bytes and {len(specials)} special tokens need {least}")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES % _DIGITS[split_digits]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": DOCUMENT_END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(i): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, token in enumerate(specials)
        },
    }
    return Tokenizer(backend, config, CHAT_TEMPLATE.read_text(encoding="utf-8"))


class Tokenizer:
    """Text to token ids and back. `eos_id` ends a document and a generation, `end_of_turn_id` ends a chat turn."""

    def __init__(self, backend: Backend, config: dict[str, Any], chat_template: str | None) -> None:
        """`config` is what stands in tokenizer_config.json. Raises Refused where it names no known end token."""
        backend.no_padding()
        backend.no_truncation()
        self._parsing = backend
        self._plain = Backend.from_str(backend.to_str())
        self._plain.encode_special_tokens = True
        self.config = config
        self.chat_template = chat_template
        self.special_tokens: dict[str, int] = {
            token.content: i for i, token in sorted(backend.get_added_tokens_decoder().items()) if token.special
        }
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        """One more than the highest id, so that an embedding of this many rows fits."""
        self.eos_id: int = self._end_of_document()
        turn_end = self._first_known(_TURN_ENDS)
        self.end_of_turn_id: int = self.eos_id if turn_end is None else turn_end
        self.pad_id: int = self._padding()
        self.fingerprint: str = hashlib.sha256(
            json.dumps([json.loads(backend.to_str()), self.eos_id, self.pad_id, self.end_of_turn_id]).encode()
        ).hexdigest()
        """Identity of what text becomes: vocabulary, merges, splitting, special ids."""

    def _end_of_document(self) -> int:
        named = self.named_tokens.get("eos_token")
        found = None if named is None else self._parsing.token_to_id(named)
        found = self._first_known((DOCUMENT_END, "</s>")) if found is None else found
        if found is None:
            raise Refused(
                f"tokenizer: its end token {named!r} is not in its vocabulary; expected eos_token in its config"
            )
        return found

    def _padding(self) -> int:
        """A pad that is not the end token wherever the vocabulary has one; a lone eos (GPT-2) pads as well, which harms
        nothing here, since labels and lengths never come from the pad id."""
        named = self.named_tokens.get("pad_token")
        found = None if named is None else self._parsing.token_to_id(named)
        if found is None or found == self.eos_id:
            others = self._first_known(_PADS)
            found = found if others is None else others
        return self.eos_id if found is None else found

    def _first_known(self, tokens: Sequence[str]) -> int | None:
        return next((i for i in map(self._parsing.token_to_id, tokens) if i is not None), None)

    @property
    def named_tokens(self) -> dict[str, str]:
        """`eos_token`, `bos_token` and so on, as the config names them: a chat template may ask for them."""
        found = {}
        for key, value in self.config.items():
            content = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(content, str):
                found[key] = content
        return found

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Open a directory that holds tokenizer.json, ours or any model's. Raises Refused with what is wrong."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise Refused(f"{folder}: holds no tokenizer: expected tokenizer.json in it")
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for whatever it cannot read
            raise Refused(f"{path}: cannot be read as a tokenizer: {error}") from None
        config = {**_read(folder / "special_tokens_map.json"), **_read(folder / "tokenizer_config.json")}
        return cls(backend, config, _template(folder, config))

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja, each whole or
        not at all."""
        folder = Path(folder)
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        write_atomic(folder / "tokenizer.json", self._parsing.to_str(pretty=True))
        write_json(folder / "tokenizer_config.json", config)
        named = {key: token for key, token in self.named_tokens.items() if self._parsing.token_to_id(token) is not None}
        write_json(folder / "special_tokens_map.json", named)
        if self.chat_template is not None:
            write_atomic(folder / "chat_template.jinja", self.chat_template)

    def to_json(self) -> str:
        """What stands in tokenizer.json."""
        return self._parsing.to_str()

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """The ids of a text, nothing added at either end. `specials=True` reads special-token strings as the tokens."""
        return self.encoding(text, specials=specials).ids

    def encoding(self, text: str, *, specials: bool = False) -> Encoding:
        """As `encode`, with the characters (offsets) that each token covers."""
        backend = self._parsing if specials else self._plain
        return backend.encode(text, add_special_tokens=False)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, on all cores; special-token strings are plain text."""
        return [encoding.ids for encoding in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids. Without special tokens in them, `decode(encode(text)) == text` for any text."""
        return self._parsing.decode(list(ids), skip_special_tokens=skip_special)

    def find(self, token: str) -> int | None:
        """The id of one token by its string, or None."""
        return self._parsing.token_to_id(token)

    def token_id(self, token: str) -> int:
        """The id of one token by its string. Raises Refused if there is none."""
        found = self.find(token)
        if found is None:
            raise Refused(f"tokenizer: no token {token!r} in its vocabulary")
        return found

    def tokens(self) -> Iterator[tuple[int, str]]:
        """(id, string) of the whole vocabulary in order of ids; bytes are written in printable signs."""
        for token, i in sorted(self._parsing.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1]):
            yield i, token


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(f"{path}: expected an object, found {type(value).__name__}")
    return value


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """The chat template: its own file, or in tokenizer_config.json as a text or as a list of named ones."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    inside = config.get("chat_template")
    if isinstance(inside, list):
        named = {entry.get("name"): entry.get("template") for entry in inside if isinstance(entry, dict)}
        return named.get("default")
    return inside if isinstance(inside, str) else None
