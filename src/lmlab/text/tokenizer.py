"""A tokenizer: trained by one of the algorithms of `algorithms.py`, or read from any Hugging Face `tokenizer.json`.

Whether the strings of special tokens inside a text are read as those tokens is the caller's word, never the text's:
`encode` reads them as plain text unless `specials=True`. So nobody who types `<|end|>` ends a turn.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as Backend

from lmlab.errors import Refused, nearest
from lmlab.run import write_atomic, write_json
from lmlab.text.algorithms import (
    DOCUMENT_END,
    END_OF_TURN,
    PAD,
    SPECIAL_TOKENS,
    UNKNOWN,
    Algorithm,
    Normalisation,
    learn,
    smallest,
)
from lmlab.text.fast import FastEncoder, fast_encoder

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

# Names under which public tokenizers keep the token that ends a turn, or pads, where no file says so.
_TURN_ENDS = (END_OF_TURN, "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end_of_turn|>", "<|eot|>", "<|return|>")
_PADS = (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<unk>", "[UNK]")

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    algorithm: Algorithm = "byte-level-bpe",
    normalisation: Normalisation = "none",
    min_frequency: int = 2,
    split_digits: bool = True,
    byte_fallback: bool = True,
    character_coverage: float = 0.9995,
    extra_tokens: Sequence[str] = (),
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries: the special tokens and `extra_tokens`, bytes, and what is learnt from
    the texts, until `vocab_size` is reached or no pair stands `min_frequency` times. The same texts give the same tokenizer.
    Raises Refused if `vocab_size` has no room for what every vocabulary of the algorithm begins with.
    """
    specials = tuple(dict.fromkeys((*SPECIAL_TOKENS, *extra_tokens)))
    least = smallest(algorithm, byte_fallback, len(specials) - len(SPECIAL_TOKENS))
    if vocab_size < least:
        rest = f"256 bytes and {len(specials)} special tokens" if least > 256 else "its special tokens"
        raise Refused(f"vocab_size {vocab_size}: {rest} need {least}")
    backend = learn(
        texts if isinstance(texts, list) else list(texts),
        vocab_size,
        specials,
        algorithm=algorithm,
        normalisation=normalisation,
        min_frequency=min_frequency,
        split_digits=split_digits,
        byte_fallback=byte_fallback,
        character_coverage=character_coverage,
    )
    named = {i: token.content for i, token in sorted(backend.get_added_tokens_decoder().items())}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": DOCUMENT_END,
        "pad_token": PAD,
        **dict([("unk_token", token) for token in named.values() if token in UNKNOWN.values()]),
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
            for i, token in named.items()
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
        model = json.loads(backend.to_str())["model"]
        self.algorithm: str = _algorithm(model)
        """byte-level-bpe, bpe, unigram, wordpiece, or what the file calls itself."""
        self.unk_id: int | None = self._unknown(model)
        """The token of what the vocabulary cannot spell; None where nothing is unknown."""

    def _end_of_document(self) -> int:
        named = self.named_tokens.get("eos_token")
        found = None if named is None else self._parsing.token_to_id(named)
        found = self._first_known((DOCUMENT_END, "</s>", "[SEP]")) if found is None else found
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

    def _unknown(self, model: dict[str, Any]) -> int | None:
        if model.get("byte_fallback") and self._parsing.token_to_id("<0xFF>") is not None:
            return None
        if "unk_id" in model:
            return model["unk_id"]
        named = model.get("unk_token")
        return None if named is None else self._parsing.token_to_id(named)

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

    @functools.cached_property
    def fast(self) -> FastEncoder | None:
        """tiktoken's encoder of this vocabulary, where it gives the same ids (see `fast.py`); None elsewhere."""
        return fast_encoder(self._plain)

    def encode_many(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """As `encode_batch`, by the fast path where there is one: for whole corpora. `threads`: of the fast path; None for
        as many as this process may use cores (`tokenizers` asks RAYON_NUM_THREADS)."""
        if self.fast is None:
            return self.encode_batch(texts)
        return self.fast(list(texts), threads or len(os.sched_getaffinity(0)))

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode_many`, in arrays of integers, on the thread that asks (`shards.write_shards` asks on several)."""
        if self.fast is None:
            return [np.array(ids, np.int64) for ids in self.encode_batch(texts)]
        return self.fast.arrays(texts)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids. Without special tokens in them, `decode(encode(text)) == text` for any text, where the
        tokenizer loses nothing: it normalises nothing, and has bytes for all that it does not know."""
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

    def token(self, token_id: int) -> str:
        """The string of one token by its id."""
        found = self._parsing.id_to_token(token_id)
        if found is None:
            raise Refused(f"tokenizer: no token of id {token_id}; it has {self.vocab_size}")
        return found

    def tokens(self) -> Iterator[tuple[int, str]]:
        """(id, string) of the whole vocabulary in order of ids; bytes are written in printable signs."""
        for token, i in sorted(self._parsing.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1]):
            yield i, token


def _algorithm(model: dict[str, Any]) -> str:
    kind = model["type"].lower()
    # Byte-level vocabularies write the byte 0 as this sign; nothing in the model's own part of the file says more.
    return "byte-level-bpe" if kind == "bpe" and "\u0100" in model["vocab"] else kind


def extended(tokenizer: Tokenizer, tokens: Sequence[str] = (), *, chat: bool = False) -> Tokenizer:
    """The tokenizer with these special tokens after its own, where it lacks them; with `chat` also lmlab's chat template
    and what that needs, where it has no template."""
    chat = chat and tokenizer.chat_template is None
    wanted = [*(t for t in SPECIAL_TOKENS if chat and t not in (DOCUMENT_END, PAD)), *tokens]
    new = [token for token in wanted if token not in tokenizer.special_tokens]
    if not new and not chat:
        return tokenizer
    backend = Backend.from_str(tokenizer.to_json())
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in new])
    config = {**tokenizer.config, "eos_token": tokenizer.token(tokenizer.eos_id)}
    return Tokenizer(backend, config, CHAT_TEMPLATE.read_text(encoding="utf-8") if chat else tokenizer.chat_template)


def find_tokenizer(reference: str | Path) -> Path:
    """The directory of a tokenizer: itself, its tokenizer.json, a run (its stage `tokenizer`, or of its model's
    files), or `hf:OWNER/NAME[@REVISION]`, whose tokenizer files are downloaded. Raises Refused with what was looked for.
    """
    text = str(reference)
    if text.startswith("hf:"):
        return _download(text[3:])
    path = Path(text)
    if path.name == "tokenizer.json" and path.is_file():
        return path.parent
    for folder in (path, path / "tokenizer", path / "model"):
        if (folder / "tokenizer.json").is_file():
            return folder
    beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    hint = "it holds no tokenizer.json" if path.exists() else f"no such directory{nearest(path.name, beside)}"
    raise Refused(
        f"tokenizer '{text}': {hint}; expected a directory with tokenizer.json, that file, a run or hf:OWNER/NAME"
    )


def _download(name: str) -> Path:
    repository, _, revision = name.partition("@")
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:  # the hub client raises many kinds; each means that it is not to be had
        first = (str(error).strip() or "no details").split("\n", 1)[0]
        raise Refused(f"tokenizer 'hf:{name}': could not be fetched: {type(error).__name__}: {first}") from None
    if not (folder / "tokenizer.json").is_file():
        raise Refused(f"tokenizer 'hf:{name}': has no tokenizer.json, which is the one format that is read")
    return folder


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
