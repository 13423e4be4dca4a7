"""lmlab claims: the survey's claims as experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lmlab.cli.common import Json, group, show

app = group("claims", "The survey's claims as controlled experiments, each with a verdict.")


@app.command("list")
def claims_list(as_json: Json = False) -> None:
    """Every claim with its section of the survey and the verdict of its small setting."""
    from lmlab.claims.claim import read_claim, shipped
    from lmlab.claims.run import kept_result

    rows: list[dict[str, str]] = []
    for name, path in shipped().items():
        claim, kept = read_claim(path), kept_result(name)
        verdict = "not run yet" if kept is None else kept["verdict"]
        about = {"sentence": claim.sentence, "control": claim.control or ""}
        rows.append({"name": name, "section": claim.section, "verdict": verdict, **about})
    widths = [max(len(row[key]) for row in rows) for key in ("name", "section", "verdict")]
    lines = [
        f"{r['name']:<{widths[0]}}  {r['section']:<{widths[1]}}  {r['verdict']:<{widths[2]}}  {r['sentence']}"
        for r in rows
    ]
    show(rows, as_json, "\n".join(lines))


@app.command("run")
def claims_run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A claim of `lmlab claims list`, or a claim's file.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="scale=medium or seeds=8, as the options.")
    ] = None,
    scale: Annotated[
        Literal["small", "medium", "large"], typer.Option(help="small: minutes on 2 cores; medium and large: a GPU.")
    ] = "small",
    out: Annotated[Path | None, typer.Option(help="The run directory. Default runs/claims/NAME.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds. Default the claim's own.")] = None,
    as_json: Json = False,
) -> None:
    """Run a claim's experiment and judge it. What is finished is skipped, an interrupted run resumes."""
    from lmlab.claims.claim import chosen, load
    from lmlab.claims.run import describe, run

    scale, seeds = chosen(settings or [], scale, seeds)
    name, claim = load(name)
    place = out or Path("runs") / "claims" / (name if scale == "small" else f"{name}-{scale}")
    found = run(name, claim, scale, seeds or claim.seeds, place)
    show({"run": str(place), **found}, as_json, describe(claim, found) if found else "")
