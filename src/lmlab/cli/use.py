"""Verbs that use a model: evaluate, compare, generate, talk, serve; and what this machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.cli.common import AnyModelArgument, Json, ModelArgument, app, show


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
    show(found, as_json, describe(found))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN")],
    second: Annotated[Path, typer.Argument(metavar="RUN")],
    as_json: Json = False,
) -> None:
    """Compare two evaluations item by item: paired difference, interval, p-value and the items that flipped."""
    from lmlab.evaluate.compare import compare_places, describe_comparison

    found = compare_places(first, second)
    show(found, as_json, describe_comparison(found))


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
    show(found, as_json, found["text"])


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


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has, measured, and what that means for recipes."""
    from lmlab.device import describe
    from lmlab.device import doctor as examine

    found = examine()
    show(found, as_json, describe(found))
