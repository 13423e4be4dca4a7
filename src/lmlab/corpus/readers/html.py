"""HTML to text by resiliparse or trafilatura. What they throw at, a page may be made to make them throw: it is caught."""

from __future__ import annotations

from collections.abc import Callable

Extract = Callable[[str], str]


class Unreadable(Exception):
    """The library could not read the page."""


def _guarded(extract: Extract) -> Extract:
    def run(page: str) -> str:
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

        # As FineWeb: precision over recall, no comments; its own deduplication would depend on the pages before.
        return _guarded(
            lambda page: (
                trafilatura.extract(page, favor_precision=True, include_comments=False, deduplicate=False) or ""
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
