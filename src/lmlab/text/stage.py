"""The stage `tokenizer`: trained on a corpus or taken from elsewhere, and what it makes of text that it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from lmlab import measure
from lmlab.config import Config
from lmlab.errors import Failed, Refused, nearest
from lmlab.progress import say
from lmlab.run import Context, Input, StageKind, write_json
from lmlab.text.algorithms import Algorithm, Normalisation, smallest
from lmlab.text.compare import round_trip
from lmlab.text.tokenizer import FILES, Tokenizer, extended, find_tokenizer, train

MEASURED_DOCUMENTS = 2000
"""At most this many documents of a split, evenly spaced, are encoded for the figures: the interval over 2,000 is
narrow already, and its bootstrap costs memory by the document."""


class TokenizerConfig(Config):
    """Settings of the stage `tokenizer`."""

    algorithm: Algorithm = "byte-level-bpe"
    """byte-level-bpe (GPT-2), bpe (of characters; with `byte_fallback` and `split_digits`, LLaMA's), unigram (T5, Gopher)
    or wordpiece (BERT, which loses white space and the words that it cannot spell)."""
    vocab_size: int = Field(default=4096, ge=64)
    """Entries: special tokens, 256 bytes where the algorithm has them, and what is learnt. Fewer come out if the text has
    no more pairs worth merging."""
    normalisation: Normalisation = "none"
    """Of every text before it is cut: nfc, nfkc (Unicode's forms) or lowercase. What it changes does not come back: the
    loss is measured. SentencePiece's habit is nfkc; Chinchilla and LLaMA dropped it."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair of tokens is merged only if it stands at least this often in the text (unigram has no such rule)."""
    split_digits: bool = True
    """Every digit is a token of its own (LLaMA, PaLM), so that arithmetic can be learnt column by column."""
    byte_fallback: bool = True
    """bpe and unigram spell a character that they do not know in bytes; without it, it is <unk> and lost."""
    character_coverage: float = Field(default=0.9995, gt=0, le=1)
    """Share of the text's characters that the vocabulary covers, the rarest ones left out (SentencePiece's default; LLaMA:
    0.99995). Byte-level BPE has no such limit."""
    from_path: str | None = None
    """Take an existing tokenizer instead of training one: a directory with tokenizer.json, that file, a run, or
    hf:OWNER/NAME[@REVISION]. The settings of training then say nothing; `sentinels` and `extra_tokens` are added."""
    add_chat: bool = True
    """Give an existing tokenizer without a chat template lmlab's, and the special tokens that it needs after its own."""
    sentinels: int = Field(default=0, ge=0)
    """Special tokens <extra_id_0>, <extra_id_1>, ... that stand for spans taken out of a text (T5: 100)."""
    extra_tokens: tuple[str, ...] = ()
    """More special tokens, such as <mask>, that an objective asks for."""
    sources: tuple[str, ...] = ()
    """Train on these sources of the corpus only; empty means all."""
    max_megabytes: float | None = Field(default=None, gt=0)
    """Train on whole documents evenly spaced over the corpus, about this many megabytes; null means all of it."""

    @property
    def added(self) -> tuple[str, ...]:
        """The special tokens beside those that every tokenizer here has."""
        return (*(f"<extra_id_{i}>" for i in range(self.sentinels)), *self.extra_tokens)

    @model_validator(mode="after")
    def _room(self) -> TokenizerConfig:
        least = smallest(self.algorithm, self.byte_fallback, len(self.added))
        if self.from_path is None and self.vocab_size < least:
            raise ValueError(f"vocab_size {self.vocab_size}: {self.algorithm} begins with {least} entries")
        return self


def documents(corpus: Path, split: str, sources: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """(source, text) of a finished corpus' kept documents in their fixed order. Read from its Parquet files, since the
    corpus' own reader stands a floor above this room. Raises Refused where there are none, or a source is unknown.
    """
    parts = sorted((corpus / "documents").glob("part-*.parquet"))
    if not parts:
        raise Refused(f"{corpus}: holds no documents: expected documents/part-00000.parquet")
    known: set[str] = set()
    columns = ("source", "split", "keep", "text")
    for part in parts:
        for batch in pq.ParquetFile(part).iter_batches(4096, columns=list(columns)):
            for source, which, kept, text in zip(*(batch[name].to_pylist() for name in columns), strict=True):
                known.add(source)
                if kept and which == split and (not sources or source in sources):
                    yield source, text
    for source in sources:
        if source not in known:
            raise Refused(f"tokenizer.sources: the corpus has no source '{source}'{nearest(source, known)}")


def run(context: Context) -> Mapping[str, Any]:
    """Train, measure, write. Cut off, it starts again: it takes seconds, and gives the same again."""
    config: TokenizerConfig = context.config
    corpus: Path = context.inputs["corpus"]
    if config.from_path is not None:
        return _taken(context, config.from_path)
    began = time.perf_counter()
    texts = [text for _, text in documents(corpus, "train", config.sources)]
    if config.max_megabytes is not None:
        total = sum(len(text.encode()) for text in texts)
        texts = _spread(texts, max(1, round(len(texts) * min(1.0, config.max_megabytes * 1e6 / max(1, total)))))
    if not texts:
        raise Failed(f"{corpus}: has no kept training document to train a tokenizer on")
    tokenizer = train(
        texts,
        config.vocab_size,
        algorithm=config.algorithm,
        normalisation=config.normalisation,
        min_frequency=config.min_frequency,
        split_digits=config.split_digits,
        byte_fallback=config.byte_fallback,
        character_coverage=config.character_coverage,
        extra_tokens=config.added,
    )
    trained = time.perf_counter()
    if tokenizer.vocab_size < config.vocab_size:
        say(f"tokenizer: {tokenizer.vocab_size} of {config.vocab_size} entries: the text has no more pairs to merge")
    results = {
        **_measure(tokenizer, corpus, config),
        "trained_on": {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)},
    }
    # Seconds go to the log and not into results.json, which is the same bytes whenever it is made again.
    context.metrics.log(0, {"seconds_training": trained - began, "seconds_measuring": time.perf_counter() - trained})
    return _leave(context, tokenizer, results)


def _taken(context: Context, reference: str) -> Mapping[str, Any]:
    """An existing tokenizer, measured on the corpus."""
    tokenizer = Tokenizer.load(find_tokenizer(reference))
    tokenizer = extended(tokenizer, context.config.added, chat=context.config.add_chat)
    results = {**_measure(tokenizer, context.inputs["corpus"], context.config), "taken_from": reference}
    return _leave(context, tokenizer, results)


def _leave(context: Context, tokenizer: Tokenizer, results: dict[str, Any]) -> Mapping[str, Any]:
    tokenizer.save(context.out)
    write_json(context.out / "results.json", results)
    lost = results["round_trip"]["heldout"]
    if lost and lost["restored"]["value"] < 1:
        say(
            f"tokenizer: {1 - lost['restored']['value']:.1%} of held-out documents do not come back as they were "
            f"({lost['bytes_lost']:,} of {lost['bytes']:,} bytes are lost, {lost['unknown_bytes']:,} of them as unknown)"
        )
    return {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": results["bytes_per_token"]["heldout"] or results["bytes_per_token"]["train"],
    }


def _files(config: TokenizerConfig) -> list[Path]:
    """The files of a tokenizer that is taken from this machine: they belong to the stage's fingerprint."""
    if config.from_path is None or config.from_path.startswith("hf:"):
        return []
    return [path for path in find_tokenizer(config.from_path).iterdir() if path.name in FILES]


def _spread(texts: list[Any], count: int) -> list[Any]:
    """`count` items evenly spaced, in order; all of them if there are no more."""
    if len(texts) <= count:
        return texts
    return [texts[i] for i in np.linspace(0, len(texts) - 1, count).astype(int)]


def _measure(tokenizer: Tokenizer, corpus: Path, config: TokenizerConfig) -> dict[str, Any]:
    """Bytes per token of each split (documents are the units of the interval), by source, and vocabulary use."""
    per_token: dict[str, Any] = {}
    by_source: dict[str, dict[str, Any]] = {}
    used: dict[str, int] = {}
    restored: dict[str, Any] = {}
    for split in ("train", "heldout"):
        sample = _spread([d for d in documents(corpus, split, config.sources) if d[1]], MEASURED_DOCUMENTS)
        encoded = tokenizer.encode_batch([text for _, text in sample])
        size = np.array([len(text.encode()) for _, text in sample], dtype=np.float64)
        tokens = np.array([len(ids) for ids in encoded], dtype=np.float64)
        per_token[split] = measure.ratio(size, tokens).to_json() if sample else None
        origin = np.array([source for source, _ in sample])
        by_source[split] = {
            str(source): measure.ratio(size[origin == source], tokens[origin == source]).to_json()
            for source in np.unique(origin)
        }
        seen = np.unique(np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded])) if sample else []
        used[split] = len(seen)
        restored[split] = round_trip(tokenizer, [text for _, text in sample], encoded) if sample else None
    vocabulary = {"size": tokenizer.vocab_size, "special": len(tokenizer.special_tokens), "used": used}
    return {"bytes_per_token": per_token, "by_source": by_source, "vocabulary": vocabulary, "round_trip": restored}


STAGE = StageKind(config=TokenizerConfig, run=run, inputs=(Input("corpus", ("corpus",)),), seeded=False, sources=_files)
