"""lmlab scale: fit laws, predict by them, plan; ladders; emergence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.cli.common import Json, Out, Overrides, RecipeArgument, group, show

app = group("scale", "Scaling laws: fit, predict, plan, ladders, emergent abilities.")


@app.command("fit")
def scale_fit(
    runs: Annotated[
        Path, typer.Argument(metavar="RUNS.csv", help="A table with a header, one run a row; or a .jsonl.")
    ],
    loss: Annotated[str, typer.Option(metavar="COLUMN", help="The loss.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The law file to write.")],
    law: Annotated[
        str,
        typer.Option(
            help="chinchilla, overtraining, kaplan, kaplan-steps, critical-batch, "
            "power-params, power-tokens, power-compute, gpt4, steps, envelope, isoflop."
        ),
    ] = "chinchilla",
    group: Annotated[str | None, typer.Option(metavar="COLUMN", help="One law for each value of this column.")] = None,
    params: Annotated[str, typer.Option(metavar="COLUMN", help="Parameters.")] = "params",
    tokens: Annotated[str, typer.Option(metavar="COLUMN", help="Training tokens.")] = "tokens",
    compute: Annotated[str, typer.Option(metavar="COLUMN", help="FLOPs; without such a column 6 N D.")] = "compute",
    steps: Annotated[str, typer.Option(metavar="COLUMN", help="Optimizer steps.")] = "steps",
    batch: Annotated[
        str, typer.Option(metavar="COLUMN", help="Critical batch in tokens, such as noise_scale.")
    ] = "batch",
    max_warmup: Annotated[
        float | None, typer.Option(help="Set runs aside whose warm-up is a larger share of their steps.")
    ] = None,
    discount_warmup: Annotated[
        bool, typer.Option("--discount-warmup", help="Count a warm-up's tokens by their rate: half of them.")
    ] = False,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens a sequence, for what is said of warm-up.")] = 2048,
    bootstraps: Annotated[int, typer.Option(min=20, help="Resamples of the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the residuals into this SVG.")] = None,
    as_json: Json = False,
) -> None:
    """Fit a law to runs: constants with intervals, the error on the largest runs left out, warnings."""
    from lmlab.scaling.command import describe_fit, fit_file

    if plot is not None:
        from lmlab.report.scaling import check

        check(law)
    columns = {"params": params, "tokens": tokens, "compute": compute, "steps": steps, "batch": batch}
    rows = {"max_warmup": max_warmup, "sequence_length": sequence_length, "discount_warmup": discount_warmup}
    found = fit_file(runs, law, loss, out, columns, group, bootstraps=bootstraps, seed=seed, **rows)
    if plot is not None:
        from lmlab.report.scaling import residual_plot
        from lmlab.run import write_atomic

        write_atomic(plot, residual_plot(found))
    show(found, as_json, describe_fit(found))


@app.command("predict")
def scale_predict(
    law: Annotated[Path, typer.Argument(metavar="LAW.json", help="What scale fit wrote.")],
    runs: Annotated[Path, typer.Option(metavar="MORE.csv", help="Runs with the columns that the law was fitted with.")],
    loss: Annotated[str, typer.Option(metavar="COLUMN", help="The measured loss.")],
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw measured against predicted into this SVG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict runs by a law file and compare with what was measured."""
    from lmlab.scaling.command import describe_predictions, predict_file

    if plot is not None:
        from lmlab.report.scaling import check

        check()
    found = predict_file(law, runs, loss)
    if plot is not None:
        from lmlab.report.scaling import prediction_plot
        from lmlab.run import write_atomic

        write_atomic(plot, prediction_plot(found))
    show(found, as_json, describe_predictions(found))


@app.command("plan")
def scale_plan(
    compute: Annotated[str | None, typer.Option(help="FLOPs, such as 1e21.")] = None,
    params: Annotated[str | None, typer.Option(help="Parameters, such as 7B.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Training tokens, such as 1T.")] = None,
    loss: Annotated[str | None, typer.Option(help="Nats a token.")] = None,
    law: Annotated[
        Path | None, typer.Option(metavar="LAW.json", help="A fitted law beside the published ones.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="v100, a100, h100, h200 or b200.")] = "h100",
    gpus: Annotated[int, typer.Option(help="How many.")] = 8,
    utilisation: Annotated[float, typer.Option(help="Share of the peak that training reaches.")] = 0.4,
    price: Annotated[float | None, typer.Option(help="Dollars an hour of one GPU.")] = None,
    as_json: Json = False,
) -> None:
    """The compute-optimal plan from one quantity, by each law side by side, with days and dollars."""
    from lmlab.scaling.command import describe_plan, plan_for

    given = {"compute": compute, "params": params, "tokens": tokens, "loss": loss}
    found = plan_for(given, law, gpu=gpu, gpus=gpus, utilisation=utilisation, price=price)
    show(found, as_json, describe_plan(found))


@app.command("ladder")
def scale_ladder(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            metavar="C1,C2,...", help="Training FLOPs of each rung, growing. Default: the recipe's ladder.budgets."
        ),
    ] = None,
    out: Out = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Repetitions, each a ladder and a prediction. Default: the recipe's seeds."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train small models of growing compute, predict the last before it is trained, train it, compare. Resumes."""
    from lmlab.scaling import ladder
    from lmlab.scaling.table import number

    wanted = [number(each, "--budgets") for each in budgets.split(",")] if budgets else []
    checked = ladder.load(recipe, overrides or [], wanted, seeds)
    place = out or Path("runs") / checked.recipe.name
    found = ladder.run(checked, place)
    show({"run": str(place), **found}, as_json, ladder.describe(found, place))


@app.command("emergence")
def scale_emergence(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE.csv|LADDER",
            help="A row a model, or a row a model and item or seed; or the directory of a ladder with a stage abilities, whose "
            "columns are known.",
        ),
    ],
    hard: Annotated[str | None, typer.Option(metavar="COLUMN", help="The hard metric, such as exact match.")] = None,
    soft: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="A soft one: token edit distance, log-probability, Brier. May be repeated."
        ),
    ] = None,
    scale: Annotated[str, typer.Option(metavar="COLUMN", help="Size or compute; 70m is read.")] = "compute",
    unit: Annotated[str | None, typer.Option(metavar="COLUMN", help="Item or seed: what is resampled.")] = None,
    family: Annotated[str | None, typer.Option(metavar="COLUMN", help="One verdict for each value.")] = None,
    task: Annotated[str | None, typer.Option(metavar="COLUMN", help="One verdict for each value.")] = None,
    few_shot: Annotated[str | None, typer.Option(metavar="COLUMN", help="The hard metric with examples.")] = None,
    instructed: Annotated[str | None, typer.Option(metavar="COLUMN", help="... after instruction tuning.")] = None,
    chain: Annotated[str | None, typer.Option(metavar="COLUMN", help="... by chain of thought.")] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page (HTML) with plots to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Whether a hard metric has a change-point where the soft ones are smooth, and what prompts gain by scale."""
    from lmlab.errors import Refused
    from lmlab.scaling.command import describe_emergence, emergence_of, emergence_of_ladder

    by = [name for name in (family, task) if name is not None]
    gains = {"few-shot": few_shot, "instruction": instructed, "chain-of-thought": chain}
    named = {k: v for k, v in gains.items() if v is not None}
    if table.is_dir():
        if hard or soft or unit or by or named:
            raise Refused(
                f"{table}: of a ladder the columns are known; leave --hard, --soft and the others out, or name a table"
            )
        by, found = ["task"], emergence_of_ladder(table, scale)
    elif hard is None or not soft:
        raise Refused(f"{table}: a table needs --hard COLUMN and --soft COLUMN, such as --hard exact --soft logp")
    else:
        found = emergence_of(table, scale, hard, soft, by, unit, named)
    if page is not None:
        from lmlab.report.emergence import emergence_page
        from lmlab.run import write_atomic

        write_atomic(page, emergence_page(found, table.resolve().name, by, scale))
    show(found, as_json, describe_emergence(found, by, scale))
