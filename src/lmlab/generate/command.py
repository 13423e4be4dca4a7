"""`lmlab generate`: one text continued, by whichever decoding method is asked for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmlab.errors import Refused
from lmlab.generate.engine import Beam, Completion, Contrastive, Sampling
from lmlab.generate.handle import load
from lmlab.generate.weights import Precision


def continue_text(
    reference: str,
    prompt: str,
    sampling: Sampling,
    *,
    beams: int = 1,
    length_penalty: float = 1.0,
    contrastive: float | None = None,
    draft: str | None = None,
    precision: Precision = "float32",
) -> dict[str, Any]:
    """What `lmlab generate --json` prints: `prompt`, `text`, `ids`, `logprobs`, `finish_reason`; with more than one beam
    `hypotheses`, best first; with a draft model `draft`, its acceptance.

    Raises Refused where two methods are asked for, or a method with settings that it does not know.
    """
    methods = {"--beams": beams > 1, "--contrastive": contrastive is not None, "--draft": draft is not None}
    asked = [name for name, there in methods.items() if there]
    if len(asked) > 1:
        raise Refused(f"generate: {' and '.join(asked)} exclude each other; expected one of them")
    plain = Sampling(sampling.max_new_tokens, seed=sampling.seed)
    if asked and asked[0] != "--draft" and sampling != plain:
        given = [k for k, v in asdict(sampling).items() if v != getattr(plain, k)]
        raise Refused(f"generate: {asked[0]} chooses by itself and does not take {', '.join(given)}")
    model = load(reference, precision=precision)
    ids = model.tokenizer.encode(prompt) or [model.tokenizer.eos_id]
    if beams > 1:
        beam = Beam(beams, sampling.max_new_tokens, length_penalty, n_best=beams)
        found = model.engine.beam_search([ids], beam)[0]
        ranked = [{"score": each.score, **_shown(each.completion)} for each in found]
        return {"prompt": prompt, **_shown(found[0].completion), "hypotheses": ranked}
    if contrastive is not None:
        settings = Contrastive(alpha=contrastive, max_new_tokens=sampling.max_new_tokens)
        return {"prompt": prompt, **_shown(model.engine.contrastive_search([ids], settings)[0])}
    if draft is not None:
        answers, tally = model.engine.speculate([ids], load(draft, precision=precision).engine, sampling)
        return {"prompt": prompt, **_shown(answers[0]), "draft": {**asdict(tally), "acceptance": tally.acceptance}}
    return {"prompt": prompt, **_shown(model.engine.generate([ids], sampling)[0])}


def schema_text(given: str | None) -> str | None:
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
