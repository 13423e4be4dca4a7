"""`lmlab.load(reference)`: a model with its tokenizer, chat renderer and engine, for text in and text out."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lmlab.address import is_address, parse_address
from lmlab.errors import Refused
from lmlab.generate.classify import ClassifierModel
from lmlab.generate.engine import Engine, Piece, Sampling
from lmlab.generate.mapped import untouched
from lmlab.generate.remote import RemoteModel
from lmlab.generate.sampling import one_each, stops_of
from lmlab.generate.score import Scored
from lmlab.generate.weights import Precision
from lmlab.model.classifier import facts_of
from lmlab.model.store import load_model, resolve
from lmlab.model.transformer import Transformer
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import Tokenizer

Message = Mapping[str, str]


def load(
    reference: str | Path,
    *,
    precision: Precision = "float32",
    max_batch: int = 32,
    device: str = "cpu",
    tokenizer: str | Path | None = None,
    compile: bool = False,
) -> Model:
    """Open a MODEL: a run directory (its last trained language model), a stage's, a model's in lmlab's or Hugging
    Face's layout with or without tokenizer files, `hf:OWNER/NAME`, or `preset:NAME` (random weights). Raises Refused with
    what was looked for.

    In a precision other than float32 the weights are held in that one alone: `logits`, which the model's float32
    weights compute, is refused then.

    `api:NAME@URL` is a model behind an OpenAI-compatible address (a `remote.RemoteModel`): `generate`, `chat`,
    `chat_stream` and `score` are the same calls, what needs the weights is refused, and `max_batch` is how many requests
    are under way at once. `tokenizer`: a directory with its tokenizer, where it is at hand; see `RemoteModel.score`.

    `compile`: decode by a compiled step of fixed shapes, see `Engine`.

    The directory of a classifier (stage `finetune`) gives a `classify.ClassifierModel`, which answers `classify` alone.
    """
    if is_address(reference):
        if precision != "float32" or device != "cpu" or compile:
            raise Refused(f"{reference}: precision, device and compile are the server's choice; leave them out")
        own = None if tokenizer is None else Tokenizer.load(tokenizer)
        # One type for callers: what a remote model lacks, it refuses by name when it is asked for.
        return cast(Model, RemoteModel(parse_address(str(reference)), parallel=max_batch, tokenizer=own))
    if tokenizer is not None:
        raise Refused(f"{reference}: tokenizer is for api: models; a directory has its own")
    folder = resolve(reference)
    if facts_of(folder) is not None:
        if precision != "float32" or compile:
            raise Refused(f"{reference}: is a classifier, which is read in float32; leave precision and compile out")
        return cast(Model, ClassifierModel.open(folder, device))
    network = load_model(folder).to(device)
    _trim()
    found = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
    with untouched(network):
        model = Model(network, found, folder=folder, precision=precision, max_batch=max_batch, compile=compile)
    if precision != "float32":
        model.engine.release()
    _trim()
    return model


def _trim() -> None:
    """Give the system back what reading and laying out the weights took for a while: C's allocator keeps it else (110M
    parameters: 420 MiB held after loading in int8, 234 so; measured)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a C library without such a function
        ctypes.CDLL(None).malloc_trim(0)


class Model:
    """A loaded model. Calls that need text need the tokenizer; those on ids do without."""

    def __init__(
        self,
        network: Transformer,
        tokenizer: Tokenizer | None,
        *,
        folder: Path | None = None,
        precision: Precision = "float32",
        max_batch: int = 32,
        compile: bool = False,
    ) -> None:
        self.network, self.folder = network.eval(), folder
        self._tokenizer = tokenizer
        self._renderer: Renderer | None = None
        stops, start = (None, None) if tokenizer is not None else _special_ids(folder)
        self.engine = Engine(
            network,
            tokenizer,
            precision=precision,
            max_batch=max_batch,
            stop_ids=stops,
            start_id=start,
            decoder_start_id=_decoder_start(folder),
            compile=compile,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises Refused where the model's directory holds none."""
        if self._tokenizer is None:
            raise Refused(
                f"{self._name}: holds no tokenizer.json, so it takes ids only: engine.generate, engine.score, logits"
            )
        return self._tokenizer

    @property
    def renderer(self) -> Renderer:
        """From messages to ids. Raises Refused where there is no tokenizer or no chat template."""
        if self._renderer is None:
            self._renderer = Renderer(self.tokenizer)
        return self._renderer

    @property
    def _name(self) -> str:
        return "this model" if self.folder is None else str(self.folder)

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        **more: Any,
    ) -> Any:
        """Continue texts: a list gives a list, a string a string. `seed` is each prompt's, or a list with one each
        (equal prompts with equal seeds give equal answers). An empty prompt is the start of a document. `more` are the
        other settings of `Sampling`: min_p, repetition_penalty, regex, json_schema, ...
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        more |= {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        settings = one_each(len(texts), seed, stop, **more)
        ids = [found or [self.tokenizer.eos_id] for found in self.tokenizer.encode_batch(texts)]
        answers = [completion.text for completion in self.engine.generate(ids, settings)]
        return answers[0] if isinstance(prompts, str) else answers

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """Log-probability in nats of each continuation given its context, whether it is what greedy decoding would say,
        and its tokens. Context and continuation are tokenised apart; white space between them belongs to the
        continuation.
        """
        contexts = self.tokenizer.encode_batch([context for context, _ in pairs])
        continuations = self.tokenizer.encode_batch([continuation for _, continuation in pairs])
        return self.engine.score(list(zip(contexts, continuations)))

    @torch.inference_mode()
    def logits(
        self,
        input_ids: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | Sequence[Sequence[int]] | None = None,
        decoder_input_ids: Any = None,
    ) -> Tensor:
        """(batch, time) ids -> (batch, time, vocabulary), a CPU float32 tensor.

        Where `attention_mask` is 0 a token is padding: real tokens do not see it, and positions count real tokens
        only, so that padding on either side changes nothing. What stands at padding itself has no meaning. Of an
        encoder-decoder `input_ids` are the source, and the logits are those of `decoder_input_ids`.
        """
        config = self.network.config
        if self.engine.released:
            raise Refused(f"logits: {self._name} is held in {self.engine.precision} only; load it in float32")
        ids_BT = self._ids("input_ids", input_ids)
        padding = None
        if attention_mask is not None:
            mask_BT = torch.as_tensor(attention_mask, dtype=torch.long, device=ids_BT.device)
            if mask_BT.shape != ids_BT.shape:
                raise Refused(
                    f"logits: attention_mask has the shape {tuple(mask_BT.shape)}; expected that of input_ids, "
                    f"{tuple(ids_BT.shape)}"
                )
            padding = mask_BT == 0
        if not config.has_encoder:
            if decoder_input_ids is not None:
                raise Refused(
                    f"logits: decoder_input_ids belong to encoder-decoder models; {self._name} is a {config.architecture}"
                )
            return self.network(ids_BT, padding_BT=padding).logits().float().cpu()
        if decoder_input_ids is None:
            raise Refused(f"logits: {self._name} is an encoder-decoder: decoder_input_ids are needed beside input_ids")
        targets_BT = self._ids("decoder_input_ids", decoder_input_ids)
        if len(targets_BT) != len(ids_BT):
            raise Refused(f"logits: {len(ids_BT)} rows of input_ids and {len(targets_BT)} of decoder_input_ids")
        output = self.network(targets_BT, encoder_tokens_BS=ids_BT, encoder_padding_BS=padding)
        return output.logits().float().cpu()

    def _ids(self, name: str, ids: Any) -> Tensor:
        """Ids (batch, time) on the model's device. Raises Refused where they are not such."""
        ids_BT = torch.as_tensor(ids, dtype=torch.long, device=self.network.embedding.weight.device)
        context, vocabulary = self.network.config.context_length, self.network.config.vocab_size
        if ids_BT.dim() != 2 or ids_BT.numel() == 0:
            raise Refused(
                f"logits: {name} has the shape {tuple(ids_BT.shape)}; expected (batch, time), neither of them 0"
            )
        if int(ids_BT.min()) < 0 or int(ids_BT.max()) >= vocabulary:
            raise Refused(f"logits: {name} holds ids outside 0 to {vocabulary - 1}")
        if ids_BT.shape[1] > context:
            raise Refused(f"logits: {ids_BT.shape[1]} tokens are more than the model's context of {context}")
        return ids_BT

    def chat(
        self,
        messages: Sequence[Message],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
    ) -> str:
        """The assistant's next turn in a conversation ([{"role", "content"}, ...])."""
        settings = Sampling(max_new_tokens, temperature, top_k, top_p, seed, stop=stops_of(stop))
        return self.engine.generate([self._conversation(messages)], settings)[0].text

    def chat_stream(
        self,
        messages: Sequence[Message],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
    ) -> Iterator[Piece]:
        """The same token by token; closing the iterator stops the work."""
        settings = Sampling(max_new_tokens, temperature, top_k, top_p, seed, stop=stops_of(stop))
        return self.engine.stream(self._conversation(messages), settings)

    def _conversation(self, messages: Sequence[Message]) -> list[int]:
        return self.renderer.encode([dict(message) for message in messages], add_generation_prompt=True)


def _special_ids(folder: Path | None) -> tuple[tuple[int, ...], int | None]:
    """(ids that end an answer, the first of them) as generation_config.json or config.json names them."""
    for found in _named(folder, "eos_token_id"):
        ends = tuple(found) if isinstance(found, list) else (found,)
        if ends and all(isinstance(each, int) for each in ends):
            return ends, ends[0]
    return (), None


def _decoder_start(folder: Path | None) -> int | None:
    """The token that an encoder-decoder's answers begin after, as the same files name it."""
    return next((found for found in _named(folder, "decoder_start_token_id") if isinstance(found, int)), None)


def _named(folder: Path | None, key: str) -> Iterator[Any]:
    for name in ("generation_config.json", "config.json"):
        path = None if folder is None else folder / name
        if path is not None and path.is_file():
            yield json.loads(path.read_text(encoding="utf-8")).get(key)
