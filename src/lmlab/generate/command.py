"""`lmlab generate`: one text continued, by whichever decoding method is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

from lmlab.address import is_address, parse_address
from lmlab.errors import Refused
from lmlab.generate.engine import Beam, Completion, Contrastive, Sampling
from lmlab.generate.handle import load
from lmlab.generate.remote import RemoteModel
from lmlab.generate.weights import Precision


def continue_text(
    reference: str,
    prompt: str,
    settings: Mapping[str, Any],
    search: Mapping[str, Any],
    precision: str = "float32",
    compile: bool = False,
) -> dict[str, Any]:
    """What `lmlab generate --json` prints: `prompt`, `text`, `ids`, `logprobs`, `finish_reason`; with more than one beam
    `hypotheses`, best first; with a draft model `draft`, its acceptance; of a model behind an address `usage`.

    `settings` are those of `Sampling`, a JSON schema as text or as a file; `search` has `beams`, `length_penalty`,
    `contrastive` (alpha) and `draft` (a MODEL). Raises Refused where two methods are asked for, or a method with
    settings that it does not know.
    """
    if precision not in get_args(Precision):
        raise Refused(f"--precision {precision}: expected {', '.join(get_args(Precision))}")
    bits = cast(Precision, precision)
    chosen: dict[str, Any] = {**settings, "json_schema": _schema_text(settings.get("json_schema"))}
    sampling = Sampling(**chosen)
    beams, contrastive, draft = search["beams"], search["contrastive"], search["draft"]
    methods = {"--beams": beams > 1, "--contrastive": contrastive is not None, "--draft": draft is not None}
    asked = [name for name, there in methods.items() if there]
    if len(asked) > 1:
        raise Refused(f"generate: {' and '.join(asked)} exclude each other; expected one of them")
    plain = Sampling(sampling.max_new_tokens, seed=sampling.seed)
    if asked and asked[0] != "--draft" and sampling != plain:
        given = [k for k, v in asdict(sampling).items() if v != getattr(plain, k)]
        raise Refused(f"generate: {asked[0]} chooses by itself and does not take {', '.join(given)}")
    if is_address(reference):
        asked += [name for name, given in (("--precision", precision != "float32"), ("--compile", compile)) if given]
        return _continue_remotely(reference, prompt, sampling, asked)
    model = load(reference, precision=bits, compile=compile)
    ids = model.tokenizer.encode(prompt) or [model.tokenizer.eos_id]
    if beams > 1:
        beam = Beam(beams, sampling.max_new_tokens, search["length_penalty"], n_best=beams)
        found = model.engine.beam_search([ids], beam)[0]
        ranked = [{"score": each.score, **_shown(each.completion)} for each in found]
        return {"prompt": prompt, **_shown(found[0].completion), "hypotheses": ranked}
    if contrastive is not None:
        way = Contrastive(alpha=contrastive, max_new_tokens=sampling.max_new_tokens)
        return {"prompt": prompt, **_shown(model.engine.contrastive_search([ids], way)[0])}
    if draft is not None:
        answers, tally = model.engine.speculate([ids], load(draft, precision=bits).engine, sampling)
        return {"prompt": prompt, **_shown(answers[0]), "draft": {**asdict(tally), "acceptance": tally.acceptance}}
    return {"prompt": prompt, **_shown(model.engine.generate([ids], sampling)[0])}


def _continue_remotely(reference: str, prompt: str, sampling: Sampling, asked: Sequence[str]) -> dict[str, Any]:
    """The same of a model behind an address: no ids and no log-probabilities, but `usage`, the server's counts."""
    if asked:
        raise Refused(f"generate: {', '.join(asked)}: needs the weights, and {reference} is behind an address")
    model = RemoteModel(parse_address(reference))
    reply = model.complete([prompt], [sampling])[0]
    return {
        "prompt": prompt,
        "text": reply.text,
        "ids": None,
        "logprobs": None,
        "finish_reason": reply.finish_reason,
        "usage": asdict(model.usage),
    }


def _schema_text(given: str | None) -> str | None:
    """A JSON schema as it stands, or the file that holds it. Raises Refused where there is no such file."""
    if given is None or given.lstrip().startswith(("{", "true", "false")):
        return given
    try:
        return json.dumps(json.loads(Path(given).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise Refused(f"--json-schema {given}: expected a JSON schema or a file that holds one: {error}") from None


def _shown(answer: Completion) -> dict[str, Any]:
    shown = {"text": answer.text, "ids": answer.ids, "logprobs": answer.logprobs, "finish_reason": answer.finish_reason}
    return shown if answer.top_logprobs is None else {**shown, "top_logprobs": answer.top_logprobs}
