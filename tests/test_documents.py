"""The documents say what the commands do: every command in them parses, every link leads somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmlab import recipe
from lmlab.cli import app
from lmlab.config import parse, validate
from lmlab.launch import WRITERS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```[^\n`]*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(\.venv/bin/)?lmlab |make ", line)]


def test_the_readmes_two_commands_are_the_ones_that_work():
    for page in PAGES[:2]:
        blocks = re.findall(r"^```[^\n`]*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        assert blocks[0].strip() == "make demo" and blocks[1].strip() == "make test"
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:.*\n\t.*lmlab demo", makefile, flags=re.M) and re.search(r"^test:", makefile, flags=re.M)
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), flags=re.M)
    planned = subprocess.run(
        ["make", "-n", "demo", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "lmlab demo" in planned and "pytest" in planned


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page) if "lmlab " in line}))
def test_every_command_in_the_documents_parses(line):
    words = shlex.split(line)[1:]
    verbs = [word for word in words[:2] if word.isalpha()]
    runner = CliRunner()
    result = runner.invoke(app, [*verbs[:1], "--help"])
    assert result.exit_code == 0, line
    if len(verbs) > 1 and verbs[0] in ("corpus", "tokenizer", "model", "scale", "claims"):
        result = runner.invoke(app, [*verbs, "--help"])
        assert result.exit_code == 0, line
    if verbs[0] == "launch":
        assert verbs[1] in WRITERS, line
    for option in (word for word in words if word.startswith("--")):
        assert option in result.output, f"{line}: {option}"
    overrides = [w for w in words if re.match(r"[a-z_]+[.\w\[\]]*=", w) and "/path/to" not in w]
    if verbs[0] in ("run", "demo") and "demo" in words:
        recipe.load("demo", overrides)


def recipes(page: Path) -> list[str]:
    """The pieces of recipes on a page; the recipe reference shows the form of one."""
    text = page.read_text(encoding="utf-8")
    return [] if page.name == "recipe-reference.md" else re.findall(r"^```yaml\n(.*?)^```", text, flags=re.M | re.S)


EVERY_PAGE = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("text", [text for page in EVERY_PAGE for text in recipes(page)])
def test_every_piece_of_a_recipe_in_the_documents_is_one(text):
    """Its settings are settings of the stages that it names; whether files are there and stages follow is not asked."""
    document = parse(text, "the document")
    settings = {name: each for name, each in document.data.items() if name not in (*recipe.RESERVED, "objective")}
    if "objective" in document.data:
        settings["pretrain"] = {"objective": document.data["objective"]}
    for name, given in settings.items():
        kind = given.pop("use", name)
        given.pop("from", None)
        validate(recipe.kind(kind).config, given, document, (name,))
    assert settings


def test_every_local_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_recipe_reference_is_fresh():
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "recipe-reference.md").read_text(encoding="utf-8") == module.text(), "run: make docs"


def test_the_two_readmes_have_the_same_commands():
    assert commands(PAGES[0]) == commands(PAGES[1])
