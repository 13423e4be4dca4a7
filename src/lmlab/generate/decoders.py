"""The three decoders behind one interface, and which of them serves a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmlab.generate.compiled import CompiledDecoder
from lmlab.generate.decoder import Decoder, unsupported
from lmlab.generate.module_decoder import ModuleDecoder
from lmlab.generate.weights import Precision
from lmlab.model.transformer import Transformer

AnyDecoder = Decoder | ModuleDecoder


def decoder_for(model: Transformer, precision: Precision = "float32", compile: bool = False) -> AnyDecoder:
    """The fast decoder where it knows all parts of the model, else the general one; or the compiled one where that is
    asked for. Raises Refused for what it does not take."""
    if compile:
        return CompiledDecoder(model, precision)
    return Decoder(model, precision) if unsupported(model.config) is None else ModuleDecoder(model, precision)


def last_states(decoder: AnyDecoder, prompts: Sequence[Sequence[int]], **where: Any) -> Tensor:
    """Hidden states before the final norm of each prompt's last token, (B, D); `where` as `prefill` takes it. The fast
    decoder computes no more of its last layer than they need."""
    if isinstance(decoder, Decoder):
        return decoder.prefill(prompts, last=True, **where)
    hidden_ND = decoder.prefill(prompts, **where)
    return hidden_ND[torch.tensor([len(prompt) for prompt in prompts], device=hidden_ND.device).cumsum(0) - 1]
