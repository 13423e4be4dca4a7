"""`lmlab model import` and `lmlab model export`: a MODEL into a directory, with its tokenizer's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lmlab.errors import Refused, nearest
from lmlab.model.classifier import facts_of
from lmlab.model.hub import SpecialTokens
from lmlab.model.store import load_with_extra, preset_name, read_hub, resolve, write_model
from lmlab.model.transformer import Transformer
from lmlab.run import folder_atomic

FORMATS = ("hf", "gguf")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)


def import_model(reference: str, out: Path) -> dict[str, Any]:
    """Any MODEL -> our directory: the family's config.json and weights (float32), lmlab.json, and the tokenizer's files
    where there are any. Raises Refused where OUT holds files, or with what the MODEL has that we have not."""
    return export_model(reference, out)


def export_model(reference: str, out: Path, form: str = "hf", precision: str | None = None) -> dict[str, Any]:
    """A MODEL -> a directory that the ecosystem opens, or, where it has no such architecture, lmlab's own format; or, with
    `form` gguf, one file: OUT where it ends in .gguf, else model.gguf in it (`precision`: of its matrices).

    Returns what was written: model, out, format, model_type, architecture, parameters, tokenizer, files.
    """
    if form not in FORMATS:
        raise Refused(f"format '{form}' is not known{nearest(form, FORMATS)}")
    if form == "hf" and precision is not None:
        raise Refused(f"precision {precision} belongs to format gguf; the files of format hf are float32")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out}: is there and not empty; expected a new directory")
    folder = resolve(reference)
    model, extra = load_with_extra(folder)
    hub = (None if preset_name(folder) is not None else read_hub(folder)) or {}
    special, stops = special_tokens(folder, hub)
    found = {"model": reference, "out": str(out), "format": form}
    count = {"parameters": model.config.parameters()["total"]}
    if form == "gguf":
        if extra:
            what = "reward model" if facts_of(folder) is None else "classifier"
            raise Refused(f"{reference}: is a {what}; GGUF is written for language models")
        return found | _gguf(model, special, folder, out, precision or "float16") | count
    with folder_atomic(out) as temporary:
        facts = facts_of(folder)
        kept = None if facts is None else {name: facts[name] for name in ("kind", "task", "labels")}
        kind = write_model(temporary, model, special, stops, extra or None, hub.get("model_type"), facts=kept)
        for name in (*TOKENIZER_FILES, "generation_config.json"):  # the source's own word on sampling, where it has one
            if (folder / name).is_file():
                shutil.copyfile(folder / name, temporary / name)
        written = sorted(path.name for path in temporary.iterdir())
        architecture = (read_hub(temporary) or {})["architectures"][0]
    said = {
        "model_type": kind,
        "architecture": architecture,
        "tokenizer": "tokenizer.json" in written,
        "files": written,
    }
    return found | said | count


def _gguf(model: Transformer, special: SpecialTokens, folder: Path, out: Path, precision: str) -> dict[str, Any]:
    from lmlab.model.hub.gguf import write_gguf

    tokenizer = folder if (folder / "tokenizer.json").is_file() else None
    path = out if out.suffix == ".gguf" else out / "model.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp.gguf")
    try:
        kind = write_gguf(temporary, model, special, tokenizer, precision)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return {"model_type": kind, "architecture": kind, "tokenizer": tokenizer is not None, "files": [path.name]}


def special_tokens(folder: Path, hub: dict[str, Any]) -> tuple[SpecialTokens, list[int]]:
    """The special ids of a directory and those that end an answer: generation_config.json's word before config.json's."""
    path = folder / "generation_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def ids(name: str) -> list[int]:
        for source in (said, hub):
            found = source.get(name)
            if found is not None:
                return list(found) if isinstance(found, list) else [found]
        return []

    def first(name: str) -> int | None:
        return next(iter(ids(name)), None)

    own = hub.get("eos_token_id")
    eos = own if isinstance(own, int) else first("eos_token_id")
    names = ("pad_token_id", "bos_token_id", "decoder_start_token_id")
    return SpecialTokens(eos, *(first(name) for name in names)), ids("eos_token_id")


def describe(found: dict[str, Any]) -> str:
    """What was written, for people."""
    own = "" if found["model_type"] != "lmlab" else " (opens in lmlab only)"
    tokenizer = "with its tokenizer" if found["tokenizer"] else "without a tokenizer: it had none"
    return (
        f"{found['out']}: {found['architecture']}{own}, {found['parameters']:,} parameters, {tokenizer}\n"
        f"  {', '.join(found['files'])}"
    )
