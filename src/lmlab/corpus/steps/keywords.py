"""Keywords (survey, 4.1.2): four filters apart, for what a page holds that is no prose: remains of HTML, links,
templates and boilerplate, offensive words. Each is a share of the text with a bound; null switches it off.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from lmlab.config import Config
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.characters import Spaceless
from lmlab.corpus.steps.thresholds import Batch, first_broken
from lmlab.errors import Refused

SIGNALS = ("html", "links", "boilerplate", "offensive")

_HTML = (
    r"(?is)<!--.*?-->|<(?:script|style)\b.{0,1000}?</(?:script|style)>|</?[a-z][a-z0-9-]*(?:\s[^<>]{0,1000})?/?>"
    r"|<!doctype[^<>]*>|&(?:[a-z]{2,10}|#[0-9]{1,6}|#x[0-9a-f]{1,6});"
)
"""Comments, scripts, tags and entities. `a < b` and `List<int>` in prose: the first is no tag, the second counts."""

_LINK = r"(?i)(?:https?://|ftp://|www\.)[^\s<>\"]+|\[[^\[\]\n]*\]\([^()\s]+\)|\[url[=\]][^\[]*\[/url\]"
"""Addresses, and links of Markdown and of bulletin boards, with their text."""


class Keywords(Config):
    """Bounds of the four filters, all guesses to be set by what an audit shows; null: the filter is off."""

    max_html: float | None = Field(default=None, ge=0, le=1)
    """Share of the characters in tags, comments and entities of HTML, such as 0.05."""
    max_links: float | None = Field(default=None, ge=0, le=1)
    """Share of the characters in addresses and links, such as 0.2."""
    max_boilerplate: float | None = Field(default=None, ge=0, le=1)
    """Share of the lines with one of `boilerplate_phrases`, or with a place of a template that was never filled
    ({{name}}, {% if %}, [[Category:...]], ${name}), such as 0.3."""
    boilerplate_phrases: list[str] = Field(
        default_factory=lambda: [
            "all rights reserved", "terms of use", "terms of service", "privacy policy", "cookie policy",
            "we use cookies", "accept cookies", "sign up for our newsletter", "subscribe to our", "click here",
            "read more", "share this", "follow us on", "powered by", "skip to content", "skip to main content",
            "back to top", "lorem ipsum", "add to cart", "log in to", "please enable javascript", "page not found",
            "版权所有", "保留所有权利", "隐私政策", "使用条款", "点击这里", "点击此处", "阅读全文", "关注我们", "返回顶部",
        ]
    )  # fmt: skip
    max_offensive: float | None = Field(default=None, ge=0, le=1)
    """Share of the words that are on the list: 0 drops at one (C4), 0.01 at one in a hundred (ROOTS)."""
    offensive_words: str | None = None
    """A file of words or phrases, one a line, `#` for comments. None comes with lmlab: such lists carry opinions, and
    C4's was found to remove text about and by minorities (Dodge et al. 2021, 2104.08758); `lmlab corpus audit`."""

    @property
    def enabled(self) -> bool:
        return any(
            limit is not None for limit in (self.max_html, self.max_links, self.max_boilerplate, self.max_offensive)
        )


def read_list(path: str, where: str) -> list[str]:
    """The words of a file, one a line. Raises Refused where it cannot be read or is empty."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{where}: {path}: cannot be read: {error}") from None
    words = list(dict.fromkeys(line.strip().lower() for line in lines if line.strip() and not line.startswith("#")))
    if not words:
        raise Refused(f"{where}: {path}: holds no word; expected one a line")
    return words


def word_lists(keywords: Keywords, roots: Any) -> list[Path]:
    """The files of words that the settings name. Raises Refused for one that cannot be read."""
    named = {"keywords.offensive_words": keywords.offensive_words, "roots.flagged_words": roots.flagged_words}
    given = {where: path for where, path in named.items() if path}
    for where, path in given.items():
        read_list(path, where)
    if keywords.max_offensive is not None and not keywords.offensive_words:
        raise Refused("keywords.max_offensive: needs keywords.offensive_words, a file with a word a line")
    return [Path(path).expanduser() for path in given.values()]


class KeywordsStep:
    """Adds `keyword_signals` (a struct of float32) and drops by the first filter that hits."""

    name = "keywords"

    def __init__(self, config: Keywords, spaceless: Spaceless) -> None:
        if config.max_offensive is not None and not config.offensive_words:
            raise Refused("keywords.max_offensive: needs keywords.offensive_words, a file with a word a line")
        words = read_list(config.offensive_words, "keywords.offensive_words") if config.offensive_words else []
        self.config, self.worth = config, spaceless.worth()
        self.identity = ["keywords", 1, config.model_dump(), spaceless.model_dump(), words]
        phrases = "|".join(re.escape(phrase) for phrase in config.boilerplate_phrases)
        template = r"\{\{[^{}\n]*\}\}|\{%[^{}\n]*%\}|\$\{[^{}\n]*\}|\[\[(?:category|file|image|template):[^\[\]\n]*\]\]"
        self._boilerplate = rf"(?im)^.*(?:{phrases + '|' if phrases else ''}{template}).*$"
        # A word stands between characters that are no letters or digits; where words are not separated it is anywhere.
        bounded = [rf"(?<!\w){re.escape(w)}(?!\w)" for w in words if not _spaceless(w)]
        self._offensive = re.compile("|".join([*bounded, *(re.escape(w) for w in words if _spaceless(w))]) or r"(?!)")
        self._gate = "(?i)" + "|".join(re.escape(word) for word in words)

    def __call__(self, table: pa.Table) -> pa.Table:
        batch = Batch.of(table)
        text = batch.table["text"]
        size = np.maximum(pc.utf8_length(text).to_numpy().astype(float), 1)
        values = np.zeros((len(batch.rows), 4))
        values[:, 0], values[:, 1] = _share(text, _HTML, size), _share(text, _LINK, size)
        lines = pc.count_substring_regex(text, pattern=r"(?m)^.*\S.*$").to_numpy()
        values[:, 2] = pc.count_substring_regex(text, pattern=self._boilerplate).to_numpy() / np.maximum(lines, 1)
        if self.config.offensive_words:
            values[:, 3] = self._offensive_share(batch)
        reasons = first_broken(values, SIGNALS, self.config)
        return batch.result(table, self.name, {"keyword_signals": (SIGNALS, values)}, reasons)

    def _offensive_share(self, batch: Batch) -> np.ndarray:
        """RE2 finds the documents that may hold a word of the list; only those are looked at closely."""
        text = batch.table["text"]
        kinds, bounds = batch.tokens.kinds, batch.tokens.bounds
        words = np.concatenate([[0.0], np.cumsum(self.worth[kinds >> 4])])[bounds]
        found = np.zeros(len(text))
        for row in np.flatnonzero(pc.match_substring_regex(text, pattern=self._gate).to_numpy()):
            hits = self._offensive.findall(text[int(row)].as_py().lower())
            found[row] = len(hits) / max(1.0, words[row + 1] - words[row])
        return np.minimum(found, 1.0)


def _spaceless(word: str) -> bool:
    from lmlab.corpus.characters import LIMIT, SCRIPT, classes

    return any(ord(c) < LIMIT and classes()[ord(c)] >= SCRIPT for c in word)


def _share(text: pa.ChunkedArray, pattern: str, size: np.ndarray) -> np.ndarray:
    """Share of the characters that a pattern matches."""
    left = pc.utf8_length(pc.replace_substring_regex(text, pattern=pattern, replacement="")).to_numpy()
    return 1 - left / size
