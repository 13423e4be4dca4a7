"""Which models can be talked to: the trained stages of a run, or the one model that a reference names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmlab.address import is_address, parse_address
from lmlab.errors import Refused

if TYPE_CHECKING:
    from lmlab.generate.handle import Model


def load_models(reference: str | Path) -> dict[str, Model]:
    """{name: model} of a MODEL reference. A run directory gives every finished language model of it, in the recipe's
    order (the last is the one to talk to first); anything else gives that one model.

    Raises Refused where there is no such model.
    """
    from lmlab.generate.handle import load
    from lmlab.model.store import stages

    if is_address(reference):
        return {parse_address(str(reference)).name: load(reference)}
    path = Path(reference)
    found = stages(path) if path.is_dir() else {}
    if found:
        return {name: load(folder) for name, folder in found.items()}
    return {name_of(reference): load(reference)}


def name_of(reference: str | Path) -> str:
    """A short name: the stage's for `runs/demo/sft` and `runs/demo/sft/model`, the folder's or the hub's otherwise."""
    text = str(reference)
    if text.startswith(("hf:", "preset:")):
        return text.partition(":")[2]
    path = Path(text).resolve()
    return path.parent.name if path.name == "model" and path.parent.name else path.name or text


def continues_text(name: str, model: Model) -> bool:
    """Is it a model that knows no turns (it was only pretrained, or has no chat template), so that it is given plain
    text to continue?"""
    from lmlab.generate.remote import RemoteModel

    if isinstance(model, RemoteModel):
        return False
    if name.startswith("pretrain"):
        return True
    try:
        return model.tokenizer.chat_template is None
    except Refused:  # no tokenizer: each request will say so
        return False
