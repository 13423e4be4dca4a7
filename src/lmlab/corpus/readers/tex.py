r"""LaTeX sources made ready for training as LLaMA and RedPajama did: comments out, \input resolved, the authors' own macros
expanded, preamble and bibliography dropped. What is left is still LaTeX: formulas are what the source is read for.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass

_VERBATIM = re.compile(
    r"\\begin\{(verbatim\*?|lstlisting|minted|Verbatim)\}.*?\\end\{\1\}|\\url\{[^{}\n]*\}", re.DOTALL
)
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%.*")
_BLOCK = re.compile(r"\\begin\{comment\}.*?\\end\{comment\}|\\iffalse\b.*?\\fi\b", re.DOTALL)
_INPUT = re.compile(r"\\(?:input|include|subfile)\s*(?:\{([^{}\n]{1,200})\}|([^\s{}\\%]{1,200}))")
_DOCUMENT = re.compile(r"\\begin\s*\{document\}")
_CLASS = re.compile(r"^[^%\n]*\\document(?:class|style)\b", re.MULTILINE)
_END = re.compile(r"\\(?:bibliography\s*\{|begin\s*\{thebibliography\}|printbibliography\b|end\s*\{document\})")
DEEPEST = 8
"""Files that are put into one another, and passes over macros that use macros."""


def uncommented(text: str) -> str:
    """Without comments; per cent signs in verbatim text and in addresses stay."""
    pieces, at = [], 0
    for found in _verbatim(text):
        pieces += [_without(text[at : found.start()]), found.group()]
        at = found.end()
    pieces.append(_without(text[at:]))
    return "".join(pieces)


def _verbatim(text: str):
    """Verbatim passages; not looked for where no end is near, which would take quadratic time."""
    if text.count(r"\begin{") > 50_000:
        return iter(())
    return _VERBATIM.finditer(text)


def _without(text: str) -> str:
    lines = []
    for line in text.split("\n"):
        if "%" not in line:
            lines.append(line)
        elif (kept := _COMMENT.sub(r"\1", line)).strip() or kept == line:
            lines.append(kept)
        # A line that was a comment and nothing else goes with its end.
    text = "\n".join(lines)
    if r"\begin{comment}" in text or r"\iffalse" in text:
        text = _BLOCK.sub("", text) if text.count(r"\begin{comment}") + text.count(r"\iffalse") < 1000 else text
    return text


def main_file(files: Mapping[str, str]) -> str | None:
    """The file that the others are put into: of those with a document class (or a document, or any), the one that is put
    into no other, the longest."""
    included = {name for text in files.values() for name in _inputs(text, files)}
    for pattern in (_CLASS, _DOCUMENT, re.compile("")):
        found = [name for name, text in files.items() if pattern.search(text)]
        found = [name for name in found if name not in included] or found
        if found:
            return max(found, key=lambda name: (len(files[name]), name))
    return None


def _inputs(text: str, files: Mapping[str, str]) -> list[str]:
    return [name for found in _INPUT.finditer(text) if (name := _named(found, files)) is not None]


def _named(found: re.Match[str], files: Mapping[str, str]) -> str | None:
    name = posixpath.normpath((found[1] or found[2]).strip())
    return next((each for each in (name, f"{name}.tex") if each in files), None)


def assembled(name: str, files: Mapping[str, str], limit: int, depth: int = 0) -> str:
    r"""A file with its \input and \include resolved; at most about `limit` characters, and DEEPEST files deep."""
    pieces, at, text, size = [], 0, files[name], 0
    for found in _INPUT.finditer(text):
        inner = _named(found, files)
        pieces.append(text[at : found.start()])
        at = found.end()
        size += len(pieces[-1])
        if inner is None or inner == name or depth >= DEEPEST or size > limit:
            continue
        pieces.append(assembled(inner, files, limit - size, depth + 1))
        size += len(pieces[-1])
    return "".join([*pieces, text[at:]])[: limit + 1]


@dataclass(frozen=True)
class Macro:
    """What the authors defined: how many arguments, the optional first one's default, and the body."""

    arguments: int
    default: str | None
    body: str


_DEFINES = re.compile(
    r"\\(?:(?:re|provide)?newcommand|renewcommand|providecommand)\*?\s*(?:\{\s*\\([A-Za-z]+)\s*\}|\\([A-Za-z]+))\s*"
    r"(?:\[(\d)\])?\s*(?:\[([^\[\]{}]*)\])?\s*(?=\{)"
    r"|\\def\s*\\([A-Za-z]+)\s*((?:#\d)*)\s*(?=\{)"
    r"|\\DeclareMathOperator(\*?)\s*\{\s*\\([A-Za-z]+)\s*\}\s*(?=\{)"
)
# Bodies that do more than stand for text: conditions, definitions, internal commands.
_NOT_SIMPLE = re.compile(r"\\(?:if|else\b|fi\b|def\b|let\b|newcommand|renewcommand|csname|expandafter|ensuremath)|@|##")
_LONGEST_BODY = 1000


def balanced(text: str, start: int, longest: int) -> int:
    """The place after the brace that closes the one at `start`; -1 if none does within `longest` characters."""
    depth = 0
    end = min(len(text), start + longest)
    at = start
    while at < end:
        sign = text[at]
        if sign == "\\":
            at += 1
        elif sign == "{":
            depth += 1
        elif sign == "}":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return -1


def definitions(text: str) -> tuple[dict[str, Macro], str]:
    """(the simple macros, the text without their definitions). Others stay as they are, with their definitions."""
    macros: dict[str, Macro] = {}
    pieces, at = [], 0
    for found in _DEFINES.finditer(text):
        if found.start() < at:
            continue
        end = balanced(text, found.end(), _LONGEST_BODY)
        if end < 0:
            continue
        body = text[found.end() + 1 : end - 1]
        name = found[1] or found[2] or found[5] or found[8]
        if found[8]:
            body = rf"\operatorname{found[7]}{{{body}}}"
        if _NOT_SIMPLE.search(body):
            macros.pop(name, None)
            continue
        macros[name] = Macro(int(found[3] or 0) or (found[6] or "").count("#"), found[4], body)
        pieces.append(text[at : found.start()])
        at = end
    return macros, "".join([*pieces, text[at:]])


_COMMAND = re.compile(r"\\([A-Za-z]+)")


def expanded(text: str, macros: Mapping[str, Macro], limit: int) -> str:
    """The macros put in their places, those in their bodies too, up to DEEPEST deep and `limit` characters: a macro that
    doubles itself stops there."""
    for _ in range(DEEPEST):
        result = _pass(text, macros, limit)
        if result is None or result == text:
            break
        text = result
    return text


def _pass(text: str, macros: Mapping[str, Macro], limit: int) -> str | None:
    """One replacement of every macro; None if the text would become longer than the limit."""
    pieces: list[str] = []
    at = size = 0
    for found in _COMMAND.finditer(text):
        macro = macros.get(found[1])
        if macro is None or found.start() < at:
            continue
        end, given = _arguments(text, found.end(), macro)
        if end < 0:
            continue
        body = macro.body
        for number, value in enumerate(given, 1):
            body = body.replace(f"#{number}", value)
        between = text[at : found.start()]
        # \R x and \R{}x: the space ends the name and is not shown; a letter must not grow onto a command's name.
        follows = text[end : end + 1]
        if macro.arguments == 0 and follows.isalpha() and re.search(r"\\[A-Za-z]+$", body):
            body += " "
        pieces += [between, body]
        size += len(between) + len(body)
        if size > limit:
            return None
        at = end
    return "".join([*pieces, text[at:]])


def _arguments(text: str, at: int, macro: Macro) -> tuple[int, list[str]]:
    """(the place after a macro's arguments, the arguments); -1 if they are not all there in braces."""
    given: list[str] = []
    if macro.default is not None:
        close = text.find("]", at, at + 200) if text[at : at + 1] == "[" else -1
        given.append(text[at + 1 : close] if close >= 0 else macro.default)
        at = close + 1 if close >= 0 else at
    while len(given) < macro.arguments:
        while text[at : at + 1] in (" ", "\n", "\t"):
            at += 1
        if text[at : at + 1] != "{":
            return -1, []
        end = balanced(text, at, 10_000)
        if end < 0:
            return -1, []
        given.append(text[at + 1 : end - 1])
        at = end
    return at, given


def body(text: str) -> tuple[str, str]:
    """(preamble, what stands between the document's beginning and its bibliography or end; an appendix after the
    bibliography goes with it, as in RedPajama)."""
    start = _DOCUMENT.search(text)
    preamble, text = (text[: start.start()], text[start.end() :]) if start else ("", text)
    end = _END.search(text)
    return preamble, text[: end.start()] if end else text


def paper(files: Mapping[str, str], limit: int) -> str | None:
    """The text of a paper from its .tex files, at most `limit` characters; None if there is none."""
    clean = {name: uncommented(text.replace("\r\n", "\n").replace("\r", "\n")) for name, text in files.items()}
    name = main_file(clean)
    if name is None:
        return None
    preamble, text = body(assembled(name, clean, limit))
    macros, _ = definitions(preamble)
    inside, text = definitions(text)
    text = expanded(text, {**macros, **inside}, limit)
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() or None
