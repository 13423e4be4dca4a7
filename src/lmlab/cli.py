"""The command line: one verb, one call. Heavy imports stay inside the verb, so that `--help` is quick.

Results go to standard output (with --json, nothing else does), progress to standard error. Exit status 0 done, 1 failed
while working, 2 refused before starting.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab import __version__
from lmlab.errors import Failed, LmlabError, Stopped
from lmlab.ranks import leave, rank

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="lmlab: the whole life of a language model on one stack. Start with: lmlab demo",
)
corpus_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build a corpus and look into it.")
tokenizer_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train and compare tokenizers.")
model_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at a model, bring one in, take one out."
)
app.add_typer(corpus_app, name="corpus")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(model_app, name="model")

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


def main() -> None:
    """Entry point: errors of ours are one message, not a traceback."""
    try:
        app()
    except SystemExit as end:
        leave(end.code)
    except Stopped as stop:
        if rank() == 0:
            print(stop, file=sys.stderr, flush=True)
        leave(stop.exit_status)
    except LmlabError as error:
        if rank() == 0 or isinstance(error, Failed):
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(20)  # rank 0 refuses the same and says so, unless a launcher that saw this one end has ended it
        leave(error.exit_status)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)


def _show(value: Any, as_json: bool, text: str | None = None) -> None:
    if rank() > 0:
        return
    if as_json or text is None:
        print(json.dumps(value, indent=1, ensure_ascii=False, default=str))
    else:
        print(text)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lmlab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _run(
    name: str, overrides: list[str] | None, out: Path | None, as_json: bool, **chosen: Any
) -> tuple[Path, dict[str, Any]]:
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
    _show({"run": str(place), **summary}, as_json, text)
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


@app.command()
def demo(overrides: Overrides = None, out: Out = None, fresh: Fresh = False, as_json: Json = False) -> None:
    """The whole life on this machine in minutes: ends with a report and a model to chat with."""
    place, _ = _run("demo", overrides, out, as_json, fresh=fresh)
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
    _run(recipe, overrides, out, as_json, until=until, only=only, fresh=fresh)


def _stage_verb(name: str, summary: str) -> None:
    def verb(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        out: Out = None,
        fresh: Fresh = False,
        as_json: Json = False,
    ) -> None:
        _run(recipe, overrides, out, as_json, needs_of=name, fresh=fresh)

    app.command(name, help=f"{summary} Runs that stage of a recipe and what it needs.")(verb)


for _name, _summary in (
    ("pretrain", "Pretrain a language model."),
    ("sft", "Fine-tune on instructions."),
    ("reward", "Train a reward model."),
    ("ppo", "Align by reinforcement learning (PPO)."),
):
    _stage_verb(_name, _summary)


@corpus_app.command("build")
def corpus_build(
    recipe: RecipeArgument, overrides: Overrides = None, out: Out = None, fresh: Fresh = False, as_json: Json = False
) -> None:
    """Build the corpus of a recipe."""
    _run(recipe, overrides, out, as_json, needs_of="corpus", fresh=fresh)


def _corpus(place: Path) -> Path:
    return place / "corpus" if (place / "corpus" / "documents").is_dir() else place


@corpus_app.command("curve")
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
    _show(found, as_json, shown(found))


@corpus_app.command("inspect")
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
    _show(found, as_json, format_inspect(found))


@corpus_app.command("audit")
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
    _show(found, as_json, format_audit(found))


@corpus_app.command("why")
def corpus_why(
    place: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or its corpus stage.")],
    document: Annotated[str, typer.Argument(metavar="ID", help="A document's id, as inspect shows it.")],
    as_json: Json = False,
) -> None:
    """Why a document was kept or dropped: its whole history."""
    from lmlab.corpus.inspect import format_why, why

    found = why(_corpus(place), document)
    _show(found, as_json, format_why(found))


@corpus_app.command("links")
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
    _show(found, as_json, f"{found['distinct']:,} addresses in {out} ({found['broken']:,} broken records left out)")


@tokenizer_app.command("train")
def tokenizer_train(
    recipe: RecipeArgument, overrides: Overrides = None, out: Out = None, fresh: Fresh = False, as_json: Json = False
) -> None:
    """Train the tokenizer of a recipe."""
    _run(recipe, overrides, out, as_json, needs_of="tokenizer", fresh=fresh)


@tokenizer_app.command("compare")
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
    _show({"tokenizers": rows}, as_json, describe(rows))


@model_app.command("list")
def model_list(as_json: Json = False) -> None:
    """The published models that can be named as preset:NAME, with their parameters and papers."""
    from lmlab.model.show import describe_presets, list_presets

    rows = list_presets()
    _show(rows, as_json, describe_presets(rows))


@model_app.command("show")
def model_show(
    model: Annotated[str, typer.Argument(metavar="NAME|MODEL", help="A preset's name, or any MODEL.")],
    as_json: Json = False,
    batch: Annotated[int, typer.Option(help="Sequences in the KV cache.")] = 1,
    length: Annotated[int | None, typer.Option(help="Tokens of a sequence. Default the model's context.")] = None,
    precision: Annotated[str, typer.Option(help="Of the KV cache: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """A model's shape, its parameters by part, the training FLOPs a token and the memory that it takes."""
    from lmlab.model.show import describe, show

    found = show(model, batch, length, precision)
    _show(found, as_json, describe(found))


@model_app.command("import")
def model_import(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new directory.")],
    as_json: Json = False,
) -> None:
    """Bring a model in: the family's files in float32, lmlab.json, and the tokenizer's files where there are any."""
    from lmlab.model.exchange import describe, import_model

    found = import_model(model, out)
    _show(found, as_json, describe(found))


@model_app.command("export")
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
    _show(found, as_json, describe(found))


@app.command("eval")
def evaluate(
    model: AnyModelArgument,
    tasks: Annotated[str, typer.Option(help="Tasks, with commas; 'list' names them.")] = "list",
    out: Annotated[Path | None, typer.Option(help="Where run.json and items.jsonl go.")] = None,
    items: Annotated[int, typer.Option(help="Items a task.")] = 64,
    as_json: Json = False,
) -> None:
    """Evaluate a model on tasks; every score with its 95% interval."""
    from lmlab.evaluate.command import describe, evaluate_reference

    found = evaluate_reference(model, tasks, out, items)
    _show(found, as_json, describe(found))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN")],
    second: Annotated[Path, typer.Argument(metavar="RUN")],
    as_json: Json = False,
) -> None:
    """Compare two evaluations item by item: paired difference, interval, p-value and the items that flipped."""
    from lmlab.evaluate.compare import compare_places, describe_comparison

    found = compare_places(first, second)
    _show(found, as_json, describe_comparison(found))


@app.command()
def generate(
    model: AnyModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens whose mass reaches p.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0 does not limit.")] = 0,
    min_p: Annotated[float, typer.Option(help="Only tokens at least this share as likely as the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was said is less likely again.")] = 1.0,
    frequency_penalty: Annotated[float, typer.Option(help="Off a logit for each time that the answer has it.")] = 0.0,
    presence_penalty: Annotated[float, typer.Option(help="Off the logit of each token that the answer has.")] = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")] = None,
    regex: Annotated[str | None, typer.Option(help="The answer matches this regular expression.")] = None,
    json_schema: Annotated[str | None, typer.Option(help="The answer is JSON of this schema (or of a file's).")] = None,
    truncate: Annotated[str | None, typer.Option(help="Cut a prompt that is too long: left or right.")] = None,
    top_logprobs: Annotated[int, typer.Option(help="With --json: so many of the likeliest tokens at each place.")] = 0,
    beams: Annotated[int, typer.Option(help="Beam search with so many beams.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="A beam scores log P / length^this.")] = 1.0,
    contrastive: Annotated[float | None, typer.Option(help="Contrastive search with this alpha.")] = None,
    draft: Annotated[str | None, typer.Option(help="A smaller MODEL of the same tokenizer that drafts.")] = None,
    precision: Annotated[str, typer.Option(help="float32, bfloat16, int8 or int4.")] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the decoding step: slow to start.")] = False,
    as_json: Json = False,
) -> None:
    """Continue a text: greedily, by sampling, beam search, contrastive search, or with a draft model."""
    from lmlab.generate.command import continue_text

    draw = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    penalties = {"repetition_penalty": repetition_penalty, "frequency_penalty": frequency_penalty}
    form = {"stop": tuple(stop or ()), "regex": regex, "json_schema": json_schema, "truncate": truncate}
    counts = {"max_new_tokens": max_new_tokens, "top_logprobs": top_logprobs, "presence_penalty": presence_penalty}
    search = {"beams": beams, "length_penalty": length_penalty, "contrastive": contrastive, "draft": draft}
    found = continue_text(model, prompt, {**draw, **penalties, **form, **counts}, search, precision, compile)
    _show(found, as_json, found["text"])


@app.command()
def report(place: Annotated[Path, typer.Argument(metavar="RUN")], as_json: Json = False) -> None:
    """Write report.html and report.json out of what the stages of a run wrote."""
    from lmlab.report import write_report

    page, data = write_report(place)
    _show(json.loads(data.read_text(encoding="utf-8")), as_json, f"{page}\n{data}")


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
        _show(snapshot(place), True, "")
    elif once is not None:
        write_atomic(once, page(snapshot(place)))
        typer.echo(f"page: {once}")
    else:
        with contextlib.suppress(KeyboardInterrupt):
            follow(place, port, on_ready=lambda address: typer.echo(f"watching {place} at {address} (Ctrl-C ends)"))


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has, measured, and what that means for recipes."""
    from lmlab.device import describe
    from lmlab.device import doctor as examine

    found = examine()
    _show(found, as_json, describe(found))


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="A kind of stage, such as pretrain.")],
) -> None:
    """The JSON schema of a stage's settings, for editors."""
    from lmlab import recipe
    from lmlab.errors import Refused, nearest

    if kind not in recipe.KINDS:
        raise Refused(f"schema: '{kind}' is no kind of stage{nearest(kind, recipe.KINDS)}")
    _show(recipe.kind(kind).config.model_json_schema(), True)


@app.command()
def chat(
    model: AnyModelArgument,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens an answer.")] = 128,
) -> None:
    """Talk to a model in the terminal."""
    from lmlab.serve import chat as talk
    from lmlab.serve import load_models

    talk(load_models(model), temperature=temperature, max_new_tokens=max_new_tokens)


@app.command()
def serve(
    model: ModelArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """An OpenAI-compatible API and a chat page at http://HOST:PORT."""
    from lmlab.serve import load_models
    from lmlab.serve import serve as listen

    listen(load_models(model), host=host, port=port)
