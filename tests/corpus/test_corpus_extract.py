"""Code without docstrings still parses and loses nothing else; docstrings keep their names and signatures."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import pytest

from lmlab.corpus.extract import code_without_docstrings, docstrings

SOURCE = '''"""Module text."""
import os


class Shape(Base, metaclass=Meta):
    """A shape.

    With détails."""

    def area(self, scale: float = 1.0) -> float:
        """Square metres."""
        return scale

    def only(self): "doc on the line"

    def _hidden(self):
        """Private."""


if os.name == "posix":
    async def wait(*, seconds):
        \'\'\'Wait.\'\'\'
        x = """not a docstring"""


def bare():
    return "no docstring"


def lonely():
    """All there is."""
'''


def test_docstrings_are_cut_out_and_the_rest_stays() -> None:
    code = code_without_docstrings(SOURCE)
    ast.parse(code)
    for gone in ("Module text", "A shape", "détails", "Square", "doc on the line", "Private", "Wait.", "All there is"):
        assert gone not in code
    assert 'x = """not a docstring"""' in code and 'return "no docstring"' in code
    assert "def only(self): pass" in code
    assert code.endswith("def lonely():\n    pass\n")


def test_docstrings_carry_qualified_names_and_signatures_in_file_order() -> None:
    assert docstrings(SOURCE, "shapes") == (
        "module shapes\n\nModule text.\n\nclass Shape(Base, metaclass=Meta)\n    A shape.\n\n    With détails.\n\n"
        "def Shape.area(self, scale: float=1.0) -> float\n    Square metres.\n\n"
        "def Shape.only(self)\n    doc on the line\n\nasync def wait(*, seconds)\n    Wait.\n\n"
        "def lonely()\n    All there is."
    )
    assert docstrings("x = 1\n", "m") == ""


def _without_docstrings(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                rest = node.body[1:]
                node.body = rest if rest or isinstance(node, ast.Module) else [ast.Pass()]
    return ast.dump(tree)


@pytest.mark.parametrize("name", ["json/decoder.py", "argparse.py", "dataclasses.py", "functools.py", "enum.py"])
def test_on_real_modules_the_syntax_tree_is_the_same_but_for_docstrings(name: str) -> None:
    source = (Path(sysconfig.get_path("stdlib")) / name).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(code_without_docstrings(source))) == _without_docstrings(ast.parse(source))


def test_odd_line_ends_and_form_feeds() -> None:
    assert code_without_docstrings('\ufeff"""doc"""\r\nx = 1\r\n') == "x = 1\n"
    assert code_without_docstrings('def f():\n    """doc"""\n\x0c\n    return 1\n') == "def f():\n\x0c\n    return 1\n"
    assert code_without_docstrings('def f():\n    """doc"""; return 1\n') == "def f():\n    pass; return 1\n"
