"""Verbs that run a recipe, start it elsewhere, and look at a run."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from lmlab.cli.common import Fresh, Json, Out, Overrides, RecipeArgument, app, run_recipe, show


@app.command()
def demo(overrides: Overrides = None, out: Out = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """The whole life on this machine in minutes: ends with a report and a model to chat with."""
    place, _ = run_recipe("demo", overrides, out, as_json, fresh=fresh)
    if not as_json:
        print(f"\nreport: {place / 'report.html'}\nchat:   lmlab chat {place}\npage:   lmlab serve {place}")


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    only: Annotated[str | None, typer.Option(help="Run this stage alone; what it needs must be finished.")] = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Run every stage of a recipe. Finished stages are skipped, an interrupted one resumes."""
    run_recipe(recipe, overrides, out, as_json, until=until, only=only, fresh=fresh)


def _stage_verb(name: str, summary: str) -> None:
    def verb(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        out: Out = None,
        fresh: Fresh = False,
        as_json: Json = False,
    ) -> None:
        run_recipe(recipe, overrides, out, as_json, needs_of=name, fresh=fresh)

    app.command(name, help=f"{summary} Runs that stage of a recipe and what it needs.")(verb)


for _name, _summary in (
    ("pretrain", "Pretrain a language model."),
    ("sft", "Fine-tune on instructions."),
    ("finetune", "Fine-tune for one task with a classification head (GPT-1)."),
    ("reward", "Train a reward model."),
    ("ppo", "Align by reinforcement learning (PPO)."),
):
    _stage_verb(_name, _summary)


@app.command()
def report(place: Annotated[Path, typer.Argument(metavar="RUN")], as_json: Json = False) -> None:
    """Write report.html and report.json out of what the stages of a run wrote."""
    from lmlab.report import write_report

    page, data = write_report(place)
    show(json.loads(data.read_text(encoding="utf-8")), as_json, f"{page}\n{data}")


@app.command()
def launch(
    kind: Annotated[str, typer.Argument(metavar="slurm|kubernetes")],
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs of a machine; 0 for CPUs.")] = 8,
    hours: Annotated[float, typer.Option(help="The longest that it may take.")] = 24.0,
    partition: Annotated[str | None, typer.Option(help="Slurm's partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm's account.")] = None,
    image: Annotated[str | None, typer.Option(help="Kubernetes: the image that holds lmlab.")] = None,
    volume: Annotated[str | None, typer.Option(help="Kubernetes: the claim of a shared volume.")] = None,
    file: Annotated[Path | None, typer.Option(help="Write the script here; else it is printed.")] = None,
) -> None:
    """Write the script that trains a recipe on a cluster."""
    from lmlab import launch as jobs
    from lmlab import recipe as recipes
    from lmlab.errors import Refused, nearest

    if kind not in jobs.WRITERS:
        raise Refused(f"launch: '{kind}' is no scheduler{nearest(kind, jobs.WRITERS)}")
    read = recipes.load(recipe, overrides or [])  # refused here rather than on the cluster
    words = (recipe, *(overrides or []), *(("--out", str(out)) if out else ()))
    job = jobs.Job(
        read.name, words, nodes, gpus, hours, partition=partition, account=account, container=image, volume=volume
    )
    text = jobs.write(kind, job, file)
    print(f"written: {file}" if file else text, end="\n" if file else "")


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="How many devices. Default: what this machine has.")] = None,
    gpu: Annotated[str | None, typer.Option(help="h100, a100, ...; left out: what is here, measured.")] = None,
    utilisation: Annotated[float, typer.Option(help="Share of the peak that products are assumed to reach.")] = 0.5,
    arm: Annotated[str | None, typer.Option(help="Of a recipe with arms: which. Default the first.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Also take a step of the layout as its ranks, without values.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What pretraining would need elsewhere: memory by part, a layout and why, speed, days. Nothing is trained."""
    from lmlab import recipe as recipes
    from lmlab.device import hardware
    from lmlab.train.planner.plan import describe, make

    read = recipes.load(recipe, overrides or [])
    device, count = (hardware.find(gpu), gpus or 1) if gpu else hardware.here(gpus)
    found = make(read, device, count, utilisation, arm, rehearsed=dry_run)
    show(found, as_json, describe(found))


@app.command()
def watch(
    place: Annotated[Path, typer.Argument(metavar="RUN")],
    port: Annotated[int, typer.Option(help="Port on this machine; 0 takes any free one.")] = 8001,
    once: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page as it is now, and end.")] = None,
    as_json: Json = False,
) -> None:
    """Follow a run in the browser: loss, rate, gradient norm, speed, spikes, samples."""
    from lmlab.report.live.server import page, snapshot
    from lmlab.report.live.server import watch as follow
    from lmlab.run import write_atomic

    if as_json:
        show(snapshot(place), True, "")
    elif once is not None:
        write_atomic(once, page(snapshot(place)))
        typer.echo(f"page: {once}")
    else:
        with contextlib.suppress(KeyboardInterrupt):
            follow(place, port, on_ready=lambda address: typer.echo(f"watching {place} at {address} (Ctrl-C ends)"))


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="A kind of stage, such as pretrain.")],
) -> None:
    """The JSON schema of a stage's settings, for editors."""
    from lmlab import recipe
    from lmlab.errors import Refused, nearest

    if kind not in recipe.KINDS:
        raise Refused(f"schema: '{kind}' is no kind of stage{nearest(kind, recipe.KINDS)}")
    show(recipe.kind(kind).config.model_json_schema(), True)
