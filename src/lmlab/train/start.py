"""Where pretraining starts: random weights of a shape, or any MODEL (`pretrain.from.model`), which is continued.

So a text model becomes a code model (Codex, 2107.03374), a causal decoder a prefix decoder (U-PaLM, 2210.11399), and a
`preset:NAME` a published shape trained from scratch. A model whose vocabulary lacks what an objective needs (sentinels, marks)
gets rows for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.model.grow import with_tokens
from lmlab.model.store import load_model, preset_name, read_config, resolve
from lmlab.model.transformer import Transformer, prefix_decoder
from lmlab.objective.build import lacking, missing, sentinels
from lmlab.progress import say
from lmlab.text.tokenizer import Tokenizer, extended
from lmlab.train.plan import Shape
from lmlab.train.pretrain_config import PretrainConfig


@dataclass(frozen=True)
class Start:
    """The tokenizer, and of a model that is continued its shape, as it will be, and its directory. `new`: ids that are new to
    its vocabulary."""

    tokenizer: Tokenizer
    shape: ModelConfig | None = None
    folder: Path | None = None
    new: tuple[int, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether there are weights to go on from."""
        return self.folder is not None and preset_name(self.folder) is None

    def adding(self, tokens: Sequence[str]) -> Start:
        """The same model with these tokens, which its tokenizer has not, in a vocabulary with room for them."""
        assert self.shape is not None
        tokenizer = extended(self.tokenizer, tokens)
        size = max(self.shape.vocab_size, tokenizer.vocab_size)
        shape = ModelConfig.model_validate(self.shape.model_dump() | {"vocab_size": size})
        return replace(self, tokenizer=tokenizer, shape=shape, new=tuple(map(tokenizer.token_id, tokens)))

    def model(self, shape: ModelConfig, seed: int) -> Transformer:
        """The network before the first step."""
        if self.folder is None or not self.trained:
            return Transformer(shape).initialise(seed)
        found = load_model(self.folder)
        if self.new:
            found = with_tokens(found, shape.vocab_size, self.new, seed)
        return prefix_decoder(found) if found.config.architecture != shape.architecture else found

    @property
    def decoder_start(self) -> int:
        """The token that a decoder beside an encoder begins with: the model's own, else padding, as T5 has it."""
        path = None if self.folder is None else self.folder / "generation_config.json"
        if path is not None and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8")).get("decoder_start_token_id")
            if isinstance(found, int):
                return found
        return self.tokenizer.pad_id


def starting_point(name: str, given: Shape, inputs: Mapping[str, Any]) -> Start:
    """What the inputs `model` and `tokenizer` give. Raises Refused where they do not belong together, or where the recipe
    asks for another shape than the model's."""
    own = None if "tokenizer" not in inputs else Tokenizer.load(inputs["tokenizer"])
    if "model" not in inputs:
        assert own is not None  # the recipe was refused otherwise
        return Start(own)
    folder = resolve(inputs["model"])
    shape = read_config(folder)
    saved = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
    if saved is not None and own is not None and saved.fingerprint != own.fingerprint:
        raise Refused(
            f"{name}: the model {folder} has a tokenizer of its own, and {inputs['tokenizer']} is another: their tokens do "
            f"not mean the same; take the model's with {name}.from.tokenizer={folder}, or leave the tokenizer out"
        )
    tokenizer = saved or own
    if tokenizer is None:
        raise Refused(
            f"{name}: the model {folder} holds no tokenizer: put a tokenizer stage before, or name one in from"
        )
    if tokenizer.vocab_size > shape.vocab_size:
        raise Refused(
            f"{name}: the tokenizer has {tokenizer.vocab_size} tokens and the model {shape.vocab_size}: set "
            f"tokenizer.vocab_size to at most {shape.vocab_size}"
        )
    return Start(tokenizer, _continued(name, folder, shape, given), folder)


def _continued(name: str, folder: Path, shape: ModelConfig, given: Shape) -> ModelConfig:
    """The model's shape, a prefix decoder where the recipe makes one of a causal decoder."""
    if given.context_length > shape.context_length:
        raise Refused(
            f"{name}.model.context_length: {given.context_length} is more than the context of {folder}, "
            f"{shape.context_length}"
        )
    asked = given.differs(frozenset({"architecture", "context_length"}))
    other = [f"{key} {value} (the model: {getattr(shape, key)})" for key, value in asked.items()
             if value != getattr(shape, key)]  # fmt: skip
    if other:
        raise Refused(
            f"{name}.model: {', '.join(other)}: a model that is continued keeps its shape; leave these out, or leave out "
            "from.model"
        )
    if given.architecture in ("causal-decoder", shape.architecture):  # the default says nothing
        return shape
    if (given.architecture, shape.architecture) == ("prefix-decoder", "causal-decoder"):
        return ModelConfig.model_validate(shape.model_dump() | {"architecture": "prefix-decoder"})
    raise Refused(
        f"{name}.model.architecture: {folder} is a {shape.architecture}, of which no {given.architecture} can be made; a "
        "causal-decoder can be continued as a prefix-decoder"
    )


def equipped(name: str, config: PretrainConfig, start: Start) -> Start:
    """The start with all tokens that the objective needs: a trained model gets what its vocabulary lacks. Refuses what a model
    that is continued, or a tokenizer for a new one, cannot carry."""
    shape, tokenizer = start.shape or config.model, start.tokenizer
    found = config.misfits(shape.architecture, shape.position)
    if found:
        raise Refused(f"{name}: {'; '.join(found)}")
    asked = (config.objective, shape.architecture, config.model.context_length)

    def has(token: str) -> bool:
        return tokenizer.find(token) is not None

    if start.trained and (tokens := lacking(*asked, has)):
        shown = tokens if len(tokens) < 6 else [*tokens[:2], "...", *tokens[-2:]]
        say(
            f"{name}: objective {config.objective.name} needs {len(tokens)} tokens that the model's tokenizer has not; they "
            f"are added to it, and rows for them to the model: {' '.join(shown)}"
        )
        return start.adding(tokens)
    if problem := missing(*asked, len(sentinels(tokenizer)), has):
        raise Refused(f"{name}: {problem}")
    return start
