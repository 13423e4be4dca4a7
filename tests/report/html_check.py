"""What a page must be: well formed, ids unique, anchors that lead somewhere, nothing fetched and nothing run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr", "col"}


class Page(HTMLParser):
    """Tags in balance; ids, links, tags and visible text gathered."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[tuple[str, str, str]] = []
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.styles: list[str] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._seen(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._seen(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}> at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        (self.styles if self.open and self.open[-1] == "style" else self.pieces).append(data)

    def _seen(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
                self.links.append((tag, name, value or ""))
            elif name.startswith("on"):
                self.handlers.append(name)
            elif name == "style":
                self.styles.append(value or "")

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def check(text: str) -> Page:
    """Assert all of the above of a page's text; return what was gathered."""
    assert text.startswith("<!DOCTYPE html>")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)), "an id stands twice"
    assert page.tags.isdisjoint({"script", "iframe", "object", "embed", "form", "base"})
    assert page.handlers == []
    for tag, name, value in page.links:
        assert value.startswith("#") or (tag, value) == ("link", "data:,"), (
            f"<{tag} {name}={value}> leads out of the page"
        )
        assert value == "data:," or value[1:] in page.ids, f"{value} leads nowhere"
    for style in page.styles:
        assert "@import" not in style
        assert all(each.startswith("#") for each in re.findall(r"url\((.*?)\)", style))
    return page
