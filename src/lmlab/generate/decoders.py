"""The three decoders behind one interface, and which of them serves a model."""

from __future__ import annotations

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
