"""Code apart from its docstrings, and docstrings with the names and signatures that they describe."""

from __future__ import annotations

import ast
import inspect
import threading
import warnings
from collections.abc import Iterator

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_warnings = threading.Lock()


def _parse(source: str) -> ast.Module:
    """Parse without warnings on standard error. Raises SyntaxError, ValueError, RecursionError or MemoryError."""
    with _warnings, warnings.catch_warnings():  # the filters are the process's, hence the lock
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _unix(source: str) -> str:
    """Line ends as Python's parser counts them, and no byte-order mark."""
    return source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _docstring(node: ast.Module | Definition) -> ast.Expr | None:
    """The statement that is a docstring."""
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return first
    return None


def _scopes(tree: ast.Module) -> Iterator[ast.Module | Definition]:
    """All that can have a docstring. Only statements are walked: they are a tenth of the tree."""
    yield tree
    queue: list[ast.AST] = list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, Definition):
            yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, part, None)
            if isinstance(inner, list):  # a lambda's or conditional's body is an expression
                queue += inner


def code_without_docstrings(source: str) -> str:
    """Python source with the docstrings of its module, classes and functions cut out; it still parses.

    A docstring that is all there is in a body, or that shares a line with other code, becomes `pass`.
    """
    source = _unix(source)
    tree = _parse(source)
    rows = [line.encode("utf-8") for line in source.split("\n")]  # ast counts columns in UTF-8 bytes
    documented = [node for node in _scopes(tree) if _docstring(node)]
    for node in sorted(documented, key=lambda n: n.body[0].lineno, reverse=True):  # from the end: lines above stay put
        found = _docstring(node)
        if found is None or found.end_lineno is None or found.end_col_offset is None:
            continue
        first, last = found.lineno - 1, found.end_lineno - 1
        before, after = rows[first][: found.col_offset], rows[last][found.end_col_offset :]
        whole_lines = not before.strip() and not after.strip()
        if whole_lines and (len(node.body) > 1 or isinstance(node, ast.Module)):
            del rows[first : last + 1]
        else:
            rows[first : last + 1] = [before + b"pass" + after]
    return b"\n".join(rows).decode("utf-8")


def _members(body: list[ast.stmt]) -> Iterator[Definition]:
    """Definitions of a module or class in file order, those under if, try and with included."""
    for statement in body:
        if isinstance(statement, Definition):
            yield statement
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _members(getattr(statement, part, []))
            for handler in getattr(statement, "handlers", []):
                yield from _members(handler.body)


def _signature(node: Definition, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join([ast.unparse(base) for base in node.bases] + [ast.unparse(k) for k in node.keywords])
        return f"class {name}({bases})" if bases else f"class {name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{prefix} {name}({ast.unparse(node.args)}){returns}"


def _entries(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in _members(body):
        if node.name.startswith("_"):
            continue
        text = ast.get_docstring(node)
        if text and text.strip():
            yield f"{_signature(node, prefix + node.name)}\n{_indented(text)}"
        if isinstance(node, ast.ClassDef):
            yield from _entries(node.body, f"{prefix}{node.name}.")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line.strip() else "" for line in inspect.cleandoc(text).split("\n"))


def docstrings(source: str, module: str) -> str:
    """One text for a module: its docstring, then each public class's and function's qualified name, signature and
    docstring in file order. Empty where nothing is documented.
    """
    tree = _parse(_unix(source))
    parts = list(_entries(tree.body, ""))
    about = ast.get_docstring(tree)
    if about and about.strip():
        parts.insert(0, about.strip())
    return "\n\n".join([f"module {module}", *parts]) if parts else ""
