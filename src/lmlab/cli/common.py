"""What verbs share: the program that they belong to, their usual arguments, and how results are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.ranks import rank

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="lmlab: the whole life of a language model on one stack. Start with: lmlab demo",
)


def group(name: str, summary: str) -> typer.Typer:
    """A verb that has verbs of its own."""
    made = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=summary)
    app.add_typer(made, name=name)
    return made


RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's file, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as pretrain.minutes=2.")
]
Out = Annotated[Path | None, typer.Option(help="The run directory. Default runs/NAME-OF-THE-RECIPE.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Make finished stages again.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run, a stage, a model directory, hf:OWNER/NAME or preset:NAME.")
]
AnyModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, a stage, a model directory, hf:OWNER/NAME, preset:NAME, or api:NAME@URL (a model behind an "
        "OpenAI-compatible address; its key comes from LMLAB_API_KEY).",
    ),
]


def show(value: Any, as_json: bool, text: str | None = None) -> None:
    """A result on standard output: as JSON, or as its text for people. Of several processes rank 0 speaks."""
    if rank() > 0:
        return
    if as_json or text is None:
        print(json.dumps(value, indent=1, ensure_ascii=False, default=str))
    else:
        print(text)


def run_recipe(
    name: str, overrides: list[str] | None, out: Path | None, as_json: bool, **chosen: Any
) -> tuple[Path, dict[str, Any]]:
    """Run a recipe, `chosen` as `recipe.run` takes it, and show what its stages found. Returns the run directory and that."""
    from lmlab import recipe

    read = recipe.load(name, overrides or [])
    place, failure = out or Path("runs") / read.name, None
    try:
        recipe.run(read, place, **chosen)
    except recipe.ArmsFailed as error:  # what the others found is shown before it is raised
        failure = error
    if read.single:
        path = place / "run.json"
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"arms": list(read.arms)}
        text = _table(place, summary)
    else:
        summary, text = _arms(place)
    show({"run": str(place), **summary}, as_json, text)
    if failure is not None:
        raise failure
    return place, summary


def _arms(place: Path) -> tuple[dict[str, Any], str]:
    from lmlab.report.summary import describe, summarise

    found = {**json.loads((place / "arms.json").read_text(encoding="utf-8")), **summarise(place)}
    lines = [f"run: {place}", describe(found), f"report: lmlab report {place}"]
    return found, "\n".join(line for line in lines if line)


def _table(place: Path, summary: dict[str, Any]) -> str:
    lines = [f"run: {place}"]
    for name, stage in summary.get("stages", {}).items():
        numbers = ", ".join(f"{key} {_number(value)}" for key, value in stage["headline"].items())
        shown = numbers if len(numbers) <= 150 else numbers[:147].rsplit(", ", 1)[0] + ", ..."
        lines.append(f"  {name:<12} {stage['status']:<8} {stage['seconds']:>8.1f} s   {shown}")
    return "\n".join(lines)


def _number(value: Any) -> str:
    """A headline number for people: a score as its value and interval, before and after with an arrow."""
    if isinstance(value, dict):
        if "value" in value:
            ends = "" if value.get("low") is None else f" [{value['low']:.3g}, {value['high']:.3g}]"
            return f"{value['value']:.3g}{ends}"
        if "before" in value and "after" in value:
            return f"{_number(value['before'])} -> {_number(value['after'])}"
        return "{" + ", ".join(f"{key} {_number(each)}" for key, each in value.items()) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
