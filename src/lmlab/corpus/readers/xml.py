"""XML of one record: a parser that keeps only what it is asked for and refuses what can make it swell."""

from __future__ import annotations

from collections.abc import Callable
from xml.parsers import expat

DEEPEST = 64
Found = Callable[[str, dict[str, str], str], None]
"""Called at an element's end with its name without a prefix, its attributes and, where it was asked for, its text."""


class Broken(Exception):
    """Not well-formed, too deep, or with a document type that declares entities."""


def scan(data: bytes, names: frozenset[str], found: Found) -> None:
    """Parse `data` and call `found` for each element of `names`, inner ones first. Nothing outside is ever fetched.

    Raises Broken; what was found before stays found.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    open_: list[tuple[str, dict[str, str], list[str] | None]] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(open_) >= DEEPEST:
            raise Broken(f"elements nested deeper than {DEEPEST}")
        plain = name.rsplit(":", 1)[-1]
        open_.append((plain, attributes, [] if plain in names else None))

    def end(_: str) -> None:
        plain, attributes, text = open_.pop()
        if text is not None:
            found(plain, attributes, "".join(text))

    def characters(text: str) -> None:
        if open_ and open_[-1][2] is not None:
            open_[-1][2].append(text)

    def entity(*_: object) -> None:
        raise Broken("the document declares entities")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = characters, entity
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise Broken(f"not XML: {error}") from None
    except (ValueError, LookupError) as error:  # an encoding that is not known
        raise Broken(f"not XML: {error}") from None
