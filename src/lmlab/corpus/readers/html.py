"""HTML to text by resiliparse or trafilatura. What they throw at, a page may be made to make them throw: it is caught."""

from __future__ import annotations

import re
from collections.abc import Callable

MANY = 4000
"""Tags from which a page is looked at more closely before a library gets it: both take quadratic time on some pages that are
made for it (resiliparse 2.0.1: 4,000 nested <div> 0.3 s, growing by the square; trafilatura 2.3.1: 10,000 paragraphs 15 s)."""
DEEPEST = 1000
"""Elements nested deeper than this are refused (measured: 0.02 s at this depth)."""
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
# Elements without an end, and those that end where the next begins.
_UNCLOSED = frozenset("""
    area base br col embed hr img input link meta param source track wbr p li td th tr dt dd option optgroup tbody thead
    tfoot colgroup
""".split())  # fmt: skip  # noqa: SIM905 (a list of words reads better so)

Extract = Callable[[str], str]


class Unreadable(Exception):
    """The library could not read the page."""


def _many(page: str) -> bool:
    return page.count("<") > MANY


def depth(page: str) -> int:
    """How deep the elements of a page are nested at most, by its tags alone."""
    deepest = now = 0
    for found in _TAG.finditer(page):
        if found[2].lower() in _UNCLOSED:
            continue
        now = max(0, now - 1) if found[1] else now + 1
        deepest = max(deepest, now)
    return deepest


def _guarded(extract: Extract) -> Extract:
    def run(page: str) -> str:
        if _many(page) and depth(page) > DEEPEST:
            raise Unreadable(f"elements nested deeper than {DEEPEST}")
        try:
            return extract(page)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of Rust code is no Exception, and pages are anybody's
            raise Unreadable(f"{type(error).__name__}: {str(error)[:100]}") from None

    return run


def main_text(extractor: str) -> Extract:
    """A function from a page to its main text (navigation, footers and advertisements left out); it raises Unreadable."""
    if extractor == "trafilatura":
        import trafilatura

        # As FineWeb: precision over recall, no comments. Its own deduplication would depend on the pages before. Its
        # comparison with other extractors (`fast` is without) is what takes quadratic time.
        return _guarded(
            lambda page: (
                trafilatura.extract(
                    page, favor_precision=True, include_comments=False, deduplicate=False, fast=_many(page)
                )
                or ""
            )
        )
    from resiliparse.extract.html2text import extract_plain_text

    return _guarded(lambda page: extract_plain_text(page, preserve_formatting=True, main_content=True))


def plain_text() -> Extract:
    """A function from HTML that is all content (a post, a chapter) to text with its paragraphs, lists and code."""
    from resiliparse.extract.html2text import extract_plain_text

    return _guarded(lambda page: extract_plain_text(page, preserve_formatting=True, main_content=False))


def decoded(body: bytes, charset: str | None) -> str:
    """A page as text: by the charset that its server named, else by its own bytes, as browsers do."""
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    encoding = charset if charset and _known(charset) else detect_encoding(body, max_len=131072, from_html_meta=True)
    return bytes_to_str(body, encoding or "utf-8", errors="replace")


def _known(charset: str) -> bool:
    import codecs

    try:
        return codecs.lookup(charset)._is_text_encoding  # type: ignore[attr-defined]
    except (LookupError, ValueError, AttributeError):
        return False
