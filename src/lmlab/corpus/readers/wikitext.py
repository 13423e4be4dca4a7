"""Wikitext to plain text: templates, tables, references, files and categories go; links keep what they show.

One pass with a stack over the brackets, so that time is linear whatever the nesting. Templates that only dress their text
(`lang`, `nowrap`, `convert`) leave it; all others go. mwparserfromhell does the same job and leaves tables, file captions and
references in; docs/corpus/sources.md has both rates.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_TOKEN = re.compile(r"\{\{|\}\}|\{\||\|\}(?!\})|\[\[|\]\]")
_OPENS = {"{{": "}}", "{|": "|}", "[[": "]]"}
DEEPEST = 60
"""Brackets nested deeper than this are text. Real pages stay under 20 or so (a guess, not studied)."""
_REMOVED = ("ref", "gallery", "timeline", "score", "imagemap", "references", "templatestyles", "mapframe", "graph")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,2000}>")
_BREAK = re.compile(r"<br\s*/?>|</(?:p|div|li)\s*>", re.IGNORECASE)
_EXTERNAL = re.compile(
    r"\[(?:(?:https?|ftps?|news|irc):)?//[^\s\]]{1,2000}(?:[ \t]+([^\]\n]{0,2000}))?\]|\[mailto:[^\s\]]{1,200}\s?([^\]\n]{0,200})\]"
)
_HEADING = re.compile(r"^(={1,6})[ \t]*(.+?)[ \t]*\1[ \t]*$")
_LIST = re.compile(r"^[*#:;]+[ \t]*")
_MAGIC = re.compile(r"__[A-Z]{3,20}__")
_EMPTY = re.compile(r"\([ \t,;:]*\)")
_SPACES = re.compile(r"[ \t\u00a0]{2,}")
_INTERWIKI = re.compile(r"^[a-z]{2,3}(-[a-z]{2,10})?$")

FILES_AND_CATEGORIES = frozenset(["file", "image", "category", "media"])


def _last(parts: list[str]) -> str:
    return parts[-1]


def _first(parts: list[str]) -> str:
    return parts[1]


def _two(parts: list[str]) -> str:
    return " ".join(parts[1:3])


_KEPT: dict[str, Callable[[list[str]], str]] = {
    "lang": _last, "langx": _last, "transl": _last, "transliteration": _last, "nowrap": _first, "nobr": _first,
    "small": _first, "big": _first, "abbr": _first, "em": _first, "strong": _first, "convert": _two, "cvt": _two,
    "as of": lambda parts: "as of " + " ".join(parts[1:4]), "circa": lambda parts: "c. " + parts[1], "math": _first,
    "quote": _first, "blockquote": _first,
}  # fmt: skip


def plain(text: str, dropped: Iterable[str] = FILES_AND_CATEGORIES) -> str:
    """The text that a reader of the page sees in its paragraphs, lists and headings. `dropped`: prefixes of links (in
    lower case, without the colon) that show nothing in the text."""
    dropped = frozenset(dropped)
    text = _COMMENT.sub("", text)
    if "<" in text:
        text = _elements(text)
    text = _brackets(text, dropped)
    text = _EXTERNAL.sub(lambda found: found[1] or found[2] or "", text)
    if "<" in text:
        text = _TAG.sub("", _BREAK.sub("\n", text))
    text = text.replace("'''''", "").replace("'''", "").replace("''", "")
    text = html.unescape(_MAGIC.sub("", text))
    return _lines(text)


def _elements(text: str) -> str:
    """Without the elements whose content is no text; what stands in <nowiki> loses its meaning as markup."""
    lower = text.lower()
    if len(lower) != len(text):  # a few letters become two: then positions would not agree
        lower = text
    pieces: list[str] = []
    at = 0
    closed: dict[str, bool] = {}
    for found in re.finditer(
        r"<(" + "|".join(_REMOVED) + r"|nowiki|math|syntaxhighlight|source)\b([^<>]{0,1000})>", lower
    ):
        if found.start() < at:
            continue
        name = found[1]
        if found[2].endswith("/"):
            pieces.append(text[at : found.start()])
            at = found.end()
            continue
        end = lower.find(f"</{name}", found.end()) if closed.get(name, True) else -1
        if end < 0:  # never closed: only the tag goes (and is not looked for again, which would take quadratic time)
            closed[name] = False
            continue
        content = text[found.end() : end]
        pieces.append(text[at : found.start()])
        if name == "nowiki":
            pieces.append(re.sub(r"[\[\]{|}<>'=*#:;]", lambda c: f"&#{ord(c[0])};", content))
        elif name == "math":
            pieces.append(re.sub(r"[\[\]{|}<>']", lambda c: f"&#{ord(c[0])};", f"${content.strip()}$"))
        elif name in ("syntaxhighlight", "source"):
            pieces.append(re.sub(r"[\[\]{|}<>'=*#:;]", lambda c: f"&#{ord(c[0])};", content))
        at = lower.find(">", end) + 1 or len(text)
    pieces.append(text[at:])
    return "".join(pieces)


def _brackets(text: str, dropped: frozenset[str]) -> str:
    """Templates, tables and links resolved from the inside out."""
    out: list[str] = []
    stack: list[tuple[str, int]] = []
    at = 0
    for found in _TOKEN.finditer(text):
        token = found.group()
        out.append(text[at : found.start()])
        at = found.end()
        if token in _OPENS:
            if len(stack) < DEEPEST:
                stack.append((_OPENS[token], len(out)))
            continue
        # What was opened inside and never closed is text.
        while stack and stack[-1][0] != token and any(wanted == token for wanted, _ in stack):
            stack.pop()
        if not stack or stack[-1][0] != token:
            continue
        _, start = stack.pop()
        inside = "".join(out[start:])
        del out[start:]
        out.append(_link(inside, dropped) if token == "]]" else _template(inside) if token == "}}" else "")
    out.append(text[at:])
    return "".join(out)


def _template(inside: str) -> str:
    name, bar, _ = inside.partition("|")
    keep = _KEPT.get(name.strip().lower()) if bar and len(inside) < 5000 else None
    if keep is None:
        return ""
    parts = [part for part in inside.split("|") if "=" not in part]
    return keep(parts).strip() if len(parts) > 1 else ""


def _link(inside: str, dropped: frozenset[str]) -> str:
    target, bar, label = inside.partition("|")
    target = target.strip()
    prefix, colon, _ = target.partition(":")
    prefix = prefix.strip().lower()
    if colon and (prefix in dropped or (not bar and _INTERWIKI.match(prefix))):
        return ""
    return label.rsplit("|", 1)[-1] if bar else target.removeprefix(":")


def _lines(text: str) -> str:
    """Headings without their signs (and without those that have nothing under them), list items with a dash."""
    kept: list[str] = []
    headings: list[tuple[int, str]] = []
    for raw in text.split("\n"):
        line = (
            _SPACES.sub(" ", _EMPTY.sub("", raw)).rstrip()
            if "(" in raw or "  " in raw or "\u00a0" in raw
            else raw.rstrip()
        )
        if line.startswith("=") and (heading := _HEADING.match(line)):
            level = len(heading[1])
            while headings and headings[-1][0] >= level:
                headings.pop()
            headings.append((level, heading[2]))
            continue
        if line.startswith("----"):
            continue
        marker = _LIST.match(line)
        if marker:
            rest = line[marker.end() :]
            line = (f"- {rest}" if "*" in marker[0] or "#" in marker[0] else rest) if rest else ""
        if line.strip():
            for _, heading in headings:
                kept += ["", heading, ""] if heading else []
            headings = [(level, "") for level, _ in headings]
        if line.strip() or (kept and kept[-1]):
            kept.append(line.strip() if not line.startswith("- ") else line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
