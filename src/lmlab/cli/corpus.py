"""lmlab corpus: build one, and look into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.cli.common import Fresh, Json, Out, Overrides, RecipeArgument, group, run_recipe, show

app = group("corpus", "Build a corpus and look into it.")


@app.command("build")
def corpus_build(
    recipe: RecipeArgument, overrides: Overrides = None, out: Out = None, fresh: Fresh = False, as_json: Json = False
) -> None:
    """Build the corpus of a recipe."""
    run_recipe(recipe, overrides, out, as_json, needs_of="corpus", fresh=fresh)


def _corpus(place: Path) -> Path:
    return place / "corpus" if (place / "corpus" / "documents").is_dir() else place


@app.command("curve")
def corpus_curve(
    bands: Annotated[int | None, typer.Option(min=1, help="Bands of a signature. Default 16.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Hashes in a band. Default 8.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Share of hashes that verifies a pair.")] = 0.7,
    permutations: Annotated[
        int | None, typer.Option(min=1, help="Hashes in all; without bands and rows, the best for the threshold.")
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the curve as an image, too.")] = None,
    as_json: Json = False,
) -> None:
    """How likely MinHash is to find a pair, by how alike the two are: the S-curve of bands and rows."""
    from lmlab.corpus.dedup.curve import asked, drawn, shown
    from lmlab.run import write_atomic

    found = asked(bands, rows, permutations, threshold)
    if svg:
        write_atomic(svg, drawn(found))
    show(found, as_json, shown(found))


@app.command("inspect")
def corpus_inspect(
    place: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or its corpus stage.")],
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page (HTML) of it to this file.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Texts shown a source, and a reason to drop.")] = 2,
    as_json: Json = False,
) -> None:
    """What is in a corpus: sizes, languages, what each step dropped and why, samples."""
    from lmlab.corpus.inspect import format_inspect, inspect

    found = inspect(_corpus(place), samples=samples)
    if page is not None:
        from lmlab.report.corpus import corpus_page
        from lmlab.run import write_atomic

        write_atomic(page, corpus_page(found))
    show(found, as_json, format_inspect(found))


@app.command("audit")
def corpus_audit(
    place: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or its corpus stage.")],
    by: Annotated[
        list[str] | None, typer.Option("--by", help="source, language, length, kind, or a field of meta. Repeatable.")
    ] = None,
    step: Annotated[list[str] | None, typer.Option("--step", help="Only this step. Repeatable.")] = None,
    ratio: Annotated[float, typer.Option("--ratio", help="Warn from so many times the rest's removal rate on.")] = 1.25,
    as_json: Json = False,
) -> None:
    """What each dropping step removes by slice: removal rates with intervals, and warnings."""
    from lmlab.corpus.audit import audit, format_audit

    found = audit(_corpus(place), by or (), step or (), ratio=ratio)
    show(found, as_json, format_audit(found))


@app.command("why")
def corpus_why(
    place: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or its corpus stage.")],
    document: Annotated[str, typer.Argument(metavar="ID", help="A document's id, as inspect shows it.")],
    as_json: Json = False,
) -> None:
    """Why a document was kept or dropped: its whole history."""
    from lmlab.corpus.inspect import format_why, why

    found = why(_corpus(place), document)
    show(found, as_json, format_why(found))


@app.command("links")
def corpus_links(
    places: Annotated[list[Path], typer.Argument(metavar="SUBMISSIONS...", help="Submissions: RS_*.zst, or folders.")],
    out: Annotated[Path, typer.Option(help="The list to write, an address a line.")],
    karma: Annotated[int, typer.Option(help="Least score of a submission (WebText: 3).")] = 3,
    window: Annotated[int, typer.Option(help="MiB that a compressed file may ask for (Reddit's: 2048).")] = 128,
    as_json: Json = False,
) -> None:
    """The addresses that Reddit-style submissions recommend: the pages for a source's web.urls."""
    from lmlab.corpus.readers.links import files_of, links
    from lmlab.corpus.readers.records import Limits

    files = [file for place in places for file in files_of(str(place), "links")]
    found = links(files, karma, out, Limits(window=window << 20))
    show(found, as_json, f"{found['distinct']:,} addresses in {out} ({found['broken']:,} broken records left out)")
