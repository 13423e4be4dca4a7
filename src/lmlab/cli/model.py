"""lmlab model: look at one, bring one in, take one out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.cli.common import Json, ModelArgument, group, show

app = group("model", "Look at a model, bring one in, take one out.")


@app.command("list")
def model_list(as_json: Json = False) -> None:
    """The published models that can be named as preset:NAME, with their parameters and papers."""
    from lmlab.model.show import describe_presets, list_presets

    rows = list_presets()
    show(rows, as_json, describe_presets(rows))


@app.command("show")
def model_show(
    model: Annotated[str, typer.Argument(metavar="NAME|MODEL", help="A preset's name, or any MODEL.")],
    as_json: Json = False,
    batch: Annotated[int, typer.Option(help="Sequences in the KV cache.")] = 1,
    length: Annotated[int | None, typer.Option(help="Tokens of a sequence. Default the model's context.")] = None,
    precision: Annotated[str, typer.Option(help="Of the KV cache: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """A model's shape, its parameters by part, the training FLOPs a token and the memory that it takes."""
    from lmlab.model.show import describe
    from lmlab.model.show import show as look

    found = look(model, batch, length, precision)
    show(found, as_json, describe(found))


@app.command("import")
def model_import(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new directory.")],
    as_json: Json = False,
) -> None:
    """Bring a model in: the family's files in float32, lmlab.json, and the tokenizer's files where there are any."""
    from lmlab.model.exchange import describe, import_model

    found = import_model(model, out)
    show(found, as_json, describe(found))


@app.command("export")
def model_export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new directory; with gguf also a new file, X.gguf.")],
    form: Annotated[
        str,
        typer.Option("--format", help="hf: the files that transformers opens. gguf: the file that llama.cpp opens."),
    ] = "hf",
    precision: Annotated[
        str | None, typer.Option(help="Of a gguf file's matrices: float32, float16 (the default) or q8_0.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take a model out in the ecosystem's formats; what has no home there is written in lmlab's own."""
    from lmlab.model.exchange import describe, export_model

    found = export_model(model, out, form, precision)
    show(found, as_json, describe(found))
