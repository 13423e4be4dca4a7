"""lmlab tokenizer: train one, compare some."""

from __future__ import annotations

from typing import Annotated

import typer

from lmlab.cli.common import Fresh, Json, Out, Overrides, RecipeArgument, group, run_recipe, show

app = group("tokenizer", "Train and compare tokenizers.")


@app.command("train")
def tokenizer_train(
    recipe: RecipeArgument, overrides: Overrides = None, out: Out = None, fresh: Fresh = False, as_json: Json = False
) -> None:
    """Train the tokenizer of a recipe."""
    run_recipe(recipe, overrides, out, as_json, needs_of="tokenizer", fresh=fresh)


@app.command("compare")
def tokenizer_compare(
    tokenizers: Annotated[
        list[str],
        typer.Argument(metavar="TOKENIZER...", help="Directories, tokenizer.json files, runs, hf:OWNER/NAME."),
    ],
    text: Annotated[list[str], typer.Option(help="A run, a text file or a folder of them; may be given again.")],
    rounds: Annotated[int, typer.Option(help="Rounds that speed is the median of.", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """Compare tokenizers on the same text: bytes per token by source and language, use, losses, speed."""
    from lmlab.corpus.passages import passages
    from lmlab.text.compare import compare, describe
    from lmlab.text.tokenizer import Tokenizer, find_tokenizer

    opened = {reference: Tokenizer.load(find_tokenizer(reference)) for reference in tokenizers}
    rows = compare(opened, passages(text), rounds)
    show({"tokenizers": rows}, as_json, describe(rows))
