"""The one model. It reads top to bottom like a page; parallelism and precision are applied to it from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmlab.model.attention import Place
from lmlab.model.block import Block, Seen, Stack
from lmlab.model.config import ModelConfig
from lmlab.model.kernels import Kernel
from lmlab.model.moe import Routing
from lmlab.model.seeing import Sight, with_padding
from lmlab.model.wide import wide

__all__ = ["Block", "Output", "Transformer", "prefix_decoder", "without_storage"]


@dataclass
class Output:
    """Hidden states as the head takes them (after the final norm, scaled), and the head that turns them into logits.

    Logits are not computed until someone asks: a loss computes them in chunks, a sampler at the last position only.
    `auxiliary`: for a model with experts `balance` and `router_z` (means over layers) and `expert_load` (layers, E); `penalty`
    is their weighted sum, to be added to a training loss.
    """

    hidden_BTD: Tensor
    head_VD: Tensor
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    head_bias_V: Tensor | None = None
    logit_softcap: float | None = None
    penalty: Tensor | None = None
    vocabulary: Any = None
    """Where `head_VD` holds some rows of the vocabulary, which ones (`objective.cross_entropy.Vocabulary`)."""

    @property
    def head(self) -> dict[str, Any]:
        """Bias and softcap as keywords of `linear_cross_entropy` and `token_logprobs`."""
        found = {"bias_V": self.head_bias_V, "softcap": self.logit_softcap}
        return found if self.vocabulary is None else {**found, "vocabulary": self.vocabulary}

    def logits(self, hidden: Tensor | None = None) -> Tensor:
        """Logits in float32 of all positions, or of the given hidden states (..., D) -> (..., V)."""
        logits = wide(F.linear(self.hidden_BTD if hidden is None else hidden, self.head_VD, self.head_bias_V))
        cap = self.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


class Transformer(Stack):
    """Causal decoder, prefix decoder or encoder-decoder, made of the parts that the config names."""

    def __init__(self, config: ModelConfig) -> None:
        nn.Module.__init__(self)  # not Stack's yet: random weights are drawn in the order in which parts are named here
        self.kernel: Kernel = "auto"
        width, projected = config.hidden_width, config.embedding_dim is not None
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.project_in = nn.Linear(width, config.d_model, bias=False) if projected else None
        self.encoder = Stack(config, encoder=True) if config.has_encoder else None
        self._assemble(config, encoder=False)
        self.project_out = nn.Linear(config.d_model, width, bias=False) if projected else None
        self.head = None if config.tie_embeddings else nn.Linear(width, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        padding_BT: Tensor | None = None,
        prefix_B: Tensor | None = None,
        block_positions_BT: Tensor | None = None,
        encoder_tokens_BS: Tensor | None = None,
        encoder_padding_BS: Tensor | None = None,
        encoder_segments_BS: Tensor | None = None,
        encoder_positions_BS: Tensor | None = None,
        memory_BSD: Tensor | None = None,
    ) -> Output:
        """Hidden states of every position.

        `positions_BT`: place of each token in its document (default 0, 1, 2, ..., padding not counted). `segments_BT`:
        document of each token, 0 or more; tokens of one document do not see another. `padding_BT`: True at padding, which
        nothing sees and which takes no expert's place. `prefix_B`: of a prefix decoder, how many first positions of the
        document are read in both directions, (B,), or (B, T) where documents are packed. `block_positions_BT`: glm-2d's
        second position (default 0). Of an encoder-decoder: the source tokens with their padding, segments (a target's
        document sees the source of the same number) and positions, or `memory_BSD`, what `encode` gave.
        Decoding with a cache is the engine's (`generate/decoder.py`).
        Raises ValueError where the sequence is longer than the context or an input belongs to another architecture.
        """
        self._check(tokens_BT.shape[1], prefix_B, block_positions_BT, encoder_tokens_BS, memory_BSD)
        seen = self.seen(tokens_BT, positions_BT, segments_BT, padding_BT, prefix_B, self.kernel)
        routing = Routing(seen.real_N)
        memory, cross = memory_BSD, None
        if self.encoder is not None:
            if encoder_segments_BS is not None and segments_BT is None:
                raise ValueError("encoder_segments_BS says which source is whose: segments_BT is needed beside it")
            if memory is None:
                assert encoder_tokens_BS is not None
                source = (encoder_padding_BS, encoder_segments_BS, encoder_positions_BS)
                memory, routing = self._encode(encoder_tokens_BS, *source, routing)
                routing.real_N = seen.real_N
            cross = self.crossed(seen, memory, encoder_segments_BS, encoder_padding_BS)
        x_BTD = self.placed(self._embed(tokens_BT), seen.positions_BT, block_positions_BT)
        x_BTD = self.run(x_BTD, seen.place, routing, memory, cross)
        return self._output(x_BTD, routing)

    def encode(
        self,
        encoder_tokens_BS: Tensor,
        *,
        encoder_padding_BS: Tensor | None = None,
        encoder_segments_BS: Tensor | None = None,
        encoder_positions_BS: Tensor | None = None,
    ) -> Tensor:
        """The encoder's hidden states (B, S, D), to be given to `forward` as `memory_BSD`."""
        source = (encoder_padding_BS, encoder_segments_BS, encoder_positions_BS)
        return self._encode(encoder_tokens_BS, *source, Routing())[0]

    def _encode(
        self,
        tokens_BS: Tensor,
        padding: Tensor | None,
        segments: Tensor | None,
        positions: Tensor | None,
        found: Routing,
    ) -> tuple[Tensor, Routing]:
        if self.encoder is None:
            raise ValueError(f"a {self.config.architecture} has no encoder")
        S = tokens_BS.shape[1]
        if self.config.context_length < S:
            raise ValueError(f"{S} source tokens are more than the model's context of {self.config.context_length}")
        seen = self.encoder.seen(tokens_BS, positions, segments, padding, None, self.kernel)
        found.real_N = seen.real_N
        x_BSD = self.encoder.placed(self._embed(tokens_BS), seen.positions_BT, None)
        return self.encoder.run(x_BSD, seen.place, found), found

    def crossed(
        self, seen: Seen, memory_BSD: Tensor, encoder_segments_BS: Tensor | None, encoder_padding_BS: Tensor | None
    ) -> Place:
        """What the decoder sees of the encoder: all that is no padding, of its own document where these are packed."""
        (B, S), T, kernel = memory_BSD.shape[:2], seen.length, seen.place.kernel
        sight = Sight(False, T, S, memory_BSD.device)
        if encoder_padding_BS is not None or encoder_segments_BS is not None:
            _, keys, _ = with_padding(None, encoder_segments_BS, encoder_padding_BS)
            queries = seen.segments_BT if encoder_segments_BS is not None else None
            if queries is None:
                queries = torch.zeros(B, T, dtype=torch.long, device=memory_BSD.device)
            sight = Sight(False, T, S, memory_BSD.device, query_segments_BT=queries, key_segments_BS=keys)
        return Place(self.widened(sight), kernel)

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.config.embedding_scale is not None:
            x = x * self.config.embedding_scale
        return x if self.project_in is None else self.project_in(x)

    def _output(self, x_BTD: Tensor, routing: Routing) -> Output:
        config = self.config
        hidden = x_BTD if self.project_out is None else self.project_out(x_BTD)
        if config.head_scale != 1.0:
            hidden = hidden * config.head_scale
        auxiliary = routing.auxiliary()
        return Output(
            hidden,
            self.embedding.weight if self.head is None else self.head.weight,
            auxiliary,
            self.head_bias,
            config.logit_softcap,
            routing.penalty(config.moe) if auxiliary and config.moe is not None else None,
        )

    def _check(
        self,
        T: int,
        prefix: Tensor | None,
        block_positions: Tensor | None,
        encoder_tokens: Tensor | None,
        memory: Tensor | None,
    ) -> None:
        config = self.config
        if config.context_length < T:
            raise ValueError(f"{T} tokens are more than the model's context of {config.context_length}")
        if prefix is not None and config.architecture != "prefix-decoder":
            raise ValueError(f"prefix_B belongs to a prefix-decoder; this is a {config.architecture}")
        if prefix is not None and prefix.device.type == "cpu" and not torch.compiler.is_compiling():
            # On an accelerator looking at the numbers would wait for all that is under way.
            least, most = int(prefix.min()), int(prefix.max())
            if least < 0 or most > config.context_length:
                raise ValueError(
                    f"prefix_B is {least if least < 0 else most}; expected 0 to the model's context of "
                    f"{config.context_length}"
                )
        if block_positions is not None and config.position != "glm-2d":
            raise ValueError(f"block_positions_BT belongs to position glm-2d; this model has {config.position}")
        if config.has_encoder and (encoder_tokens is None) == (memory is None):
            raise ValueError("an encoder-decoder takes encoder_tokens_BS or memory_BSD, one of them")
        if not config.has_encoder and (encoder_tokens is not None or memory is not None):
            raise ValueError(
                f"encoder_tokens_BS and memory_BSD belong to an encoder-decoder; this is a {config.architecture}"
            )

    def initialise(self, seed: int) -> Transformer:
        """Random weights by the config's `initialisation`, a fixed function of the seed, whatever was drawn before."""
        from lmlab.model.initialise import initialise

        initialise(self, seed)
        return self


class _Unfilled(TorchFunctionMode):
    """Leaves parameters as they were made, and makes the fixed tables of positions on the processor. What is computed on
    the meta device computes nothing either, but loads torch's compiler: 800 modules, 70 MiB (torch 2.13, measured)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func in (torch.arange, torch.tensor):
            kwargs = kwargs | {"device": "cpu"}
        return func(*args, **kwargs)


def without_storage(config: ModelConfig) -> Transformer:
    """A Transformer whose parameters are on the meta device, shapes alone; its fixed tables are whole."""
    with torch.device("meta"), _Unfilled():
        return Transformer(config)


def with_weights(config: ModelConfig, state: Mapping[str, Tensor]) -> Transformer:
    """A Transformer whose parameters are the tensors of `state` themselves, not copies: at no time are there two of them."""
    made = without_storage(config)
    made.load_state_dict(state, assign=True)
    return made


def prefix_decoder(model: Transformer) -> Transformer:
    """A causal decoder's weights, shared, in a prefix decoder: with no prefix they compute the same (U-PaLM, 2210.11399).

    Raises ValueError for another architecture.
    """
    if model.config.architecture != "causal-decoder":
        raise ValueError(f"a prefix decoder is made of a causal-decoder; this is a {model.config.architecture}")
    data = model.config.model_dump() | {"architecture": "prefix-decoder"}
    made = with_weights(ModelConfig.model_validate(data), model.state_dict()).to(model.embedding.weight.device)
    for (_, parameter), (_, source) in zip(made.named_parameters(), model.named_parameters(), strict=True):
        parameter.requires_grad_(source.requires_grad)
    made.kernel = model.kernel
    return cast(Transformer, made.train(model.training))
