"""The four ways to a vocabulary, over the `tokenizers` library (survey, section 4.1.2).

    byte-level-bpe  GPT-2's: text is bytes, merges of the most frequent pair (1508.07909); lossless
    bpe             LLaMA's: text is characters, and bytes where a character is unknown; merges as above; lossless
    unigram         T5's and Gopher's: a probability for each piece, the likeliest segmentation (1804.10959); lossless with
                    byte fallback
    wordpiece       BERT's: words between white space, longest piece first, [UNK] for a word it cannot spell; it loses white
                    space, and the words it does not know

Three of them cut the text alike before they look for pieces (`pieces`), so that a comparison of them compares the
algorithm. SentencePiece's sign for a space and its space before the text are left out: both lose text (a literal sign comes back
as a space), and neither changes what can be learnt. Normalisation, where it is asked for, comes before everything else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

DOCUMENT_END, PAD, END_OF_TURN = "<|endoftext|>", "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (DOCUMENT_END, PAD, "<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)
"""The special tokens of a tokenizer trained here, in the order of their ids, from 0."""

UNKNOWN = {"bpe": "<unk>", "unigram": "<unk>", "wordpiece": "[UNK]"}
"""What stands for text that a vocabulary cannot spell, where there are no bytes to fall back on."""

Algorithm = Literal["byte-level-bpe", "bpe", "unigram", "wordpiece"]
Normalisation = Literal["none", "nfc", "nfkc", "lowercase"]

# One piece of text becomes one or more tokens, never a part of a token with its neighbour: an English contraction, a
# word with the space before it, digits, other signs with the space before them, white space (the last space of a run
# goes with the word after it). This is GPT-2's rule (FACTS 8), with digits one by one, as LLaMA has them, if asked: a
# digit then is the same token wherever it stands, which is what column arithmetic needs.
_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|%s| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS = {True: r"\p{N}", False: r" ?\p{N}+"}

_NORMALISERS: dict[str, Any] = {
    "nfc": normalizers.NFC,
    "nfkc": normalizers.NFKC,
    "lowercase": normalizers.Lowercase,
}

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def pieces(split_digits: bool) -> str:
    """The regular expression whose matches are the pieces of a text; together they are the whole text."""
    return _PIECES % _DIGITS[split_digits]


def smallest(algorithm: Algorithm, byte_fallback: bool, extra: int = 0) -> int:
    """Entries that a vocabulary has before any is learnt: special tokens (`extra` more than the usual), bytes or the
    unknown token."""
    has_bytes = algorithm == "byte-level-bpe" or (algorithm != "wordpiece" and byte_fallback)
    return len(SPECIAL_TOKENS) + extra + (256 if has_bytes else 1)


def learn(
    texts: Sequence[str],
    vocab_size: int,
    special_tokens: Sequence[str],
    *,
    algorithm: Algorithm,
    normalisation: Normalisation,
    min_frequency: int,
    split_digits: bool,
    byte_fallback: bool,
    character_coverage: float,
) -> Backend:
    """Train one of the algorithms; its special tokens have the first ids, the bytes of byte fallback the next 256.

    `character_coverage` (of all but byte-level BPE): the rarest characters that together make less than the rest are not
    in the vocabulary. They are spelt in bytes, or are unknown.
    """
    fallback = byte_fallback and algorithm in ("bpe", "unigram")
    unknown = None if fallback else UNKNOWN.get(algorithm)
    backend = Backend(_empty(algorithm, unknown))
    if normalisation != "none":
        backend.normalizer = _NORMALISERS[normalisation]()
    backend.pre_tokenizer = _cutting(algorithm, split_digits)
    specials = [*special_tokens, *([unknown] if unknown else [])]
    common: dict[str, Any] = {
        "vocab_size": vocab_size - (256 if fallback else 0),
        "special_tokens": [AddedToken(token, normalized=False, special=True) for token in specials],
        "show_progress": False,
    }
    if algorithm == "byte-level-bpe":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer: Any = trainers.BpeTrainer(min_frequency=min_frequency, initial_alphabet=alphabet, **common)
    else:
        texts = _without_rare(texts, character_coverage)
        if algorithm == "wordpiece":
            common["special_tokens"] += [f"##{sign}" for sign in sorted(set(_normalised(backend, texts)))]
        trainer = _trainer(algorithm, min_frequency, unknown, common)
    backend.train_from_iterator(texts, trainer)
    backend.decoder = _decoder(algorithm, fallback)
    return backend if algorithm == "byte-level-bpe" else _settled(backend, len(specials), fallback)


def _empty(algorithm: Algorithm, unknown: str | None) -> Any:
    if algorithm == "unigram":
        return models.Unigram()
    return models.WordPiece(unk_token=unknown) if algorithm == "wordpiece" else models.BPE(unk_token=unknown)


def _trainer(algorithm: Algorithm, min_frequency: int, unknown: str | None, common: dict[str, Any]) -> Any:
    if algorithm == "unigram":
        # The trainer wants an unknown token; with byte fallback the first special one stands in and never occurs.
        return trainers.UnigramTrainer(unk_token=unknown or DOCUMENT_END, **common)
    if algorithm == "wordpiece":
        # The library numbers the continuing characters in the order of a hash table, another one in every process, and ties
        # between merges go by number. Given as special tokens they have fixed numbers; `_settled` makes them plain again.
        return trainers.WordPieceTrainer(min_frequency=min_frequency, **common)
    return trainers.BpeTrainer(min_frequency=min_frequency, **common)


def _cutting(algorithm: Algorithm, split_digits: bool) -> Any:
    if algorithm == "wordpiece":
        # BERT's: white space is thrown away, every punctuation sign stands alone, and so does every Han character.
        steps = [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")]
        return pre_tokenizers.Sequence(steps + [pre_tokenizers.Digits(individual_digits=True)] * split_digits)
    cut = pre_tokenizers.Split(Regex(pieces(split_digits)), "isolated")
    if algorithm == "byte-level-bpe":
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return cut


def _decoder(algorithm: Algorithm, fallback: bool) -> Any:
    if algorithm == "byte-level-bpe":
        return decoders.ByteLevel()
    if algorithm == "wordpiece":
        return decoders.WordPiece(prefix="##", cleanup=True)
    return decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]) if fallback else decoders.Fuse()


def _without_rare(texts: Sequence[str], coverage: float) -> list[str]:
    """The texts with a line feed, which joins no words, for each character outside the coverage."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    room = (1 - coverage) * counts.total()
    rare: dict[int, str] = {}
    for character, count in sorted(counts.items(), key=lambda entry: (entry[1], entry[0])):
        room -= count
        if room < 0:
            break
        rare[ord(character)] = "\n"
    return [text.translate(rare) for text in texts] if rare else list(texts)


def _normalised(backend: Backend, texts: Sequence[str]) -> Iterator[str]:
    """The characters, other than white space, that the trainer will see."""
    for text in texts:
        seen = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        yield from (sign for sign in set(seen) if not sign.isspace())


def _settled(backend: Backend, specials: int, fallback: bool) -> Backend:
    """The same tokenizer with what the library leaves to chance settled, and with the 256 byte tokens after its special
    ones if they are wanted."""
    data = json.loads(backend.to_str())
    model = data["model"]
    data["added_tokens"] = data["added_tokens"][:specials]
    if model["type"] == "Unigram":
        # The trainer adds floating-point numbers in the order of a hash table: the last bits differ from run to run.
        rounded = [(token, round(score, 6)) for token, score in model["vocab"]]
        learnt = sorted(rounded[specials:], key=lambda entry: (-entry[1], entry[0]))
        # No piece of text is such a string (pieces never mix letters with signs), so their score matters to nothing.
        least = min((score for _, score in learnt), default=0.0)
        fixed = [(token, least) for token in _BYTES] if fallback else []
        model["vocab"] = [*rounded[:specials], *fixed, *learnt]
    elif fallback:
        moved = {token: place + 256 * (place >= specials) for token, place in model["vocab"].items()}
        moved.update((token, specials + byte) for byte, token in enumerate(_BYTES))
        model["vocab"] = dict(sorted(moved.items(), key=lambda entry: entry[1]))
    if fallback:
        model["byte_fallback"] = True
    return Backend.from_str(json.dumps(data))
