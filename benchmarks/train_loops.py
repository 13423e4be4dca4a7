"""The training loops that `train.py` sets side by side, and the process that each of them runs in.

All of a run take the same shape, rows and precision: weights and optimizer state in float32, matrix products in the
precision (autocast), AdamW in its fused form, the gradient's norm cut at 1. What differs is whose model, whose attention and
whose loss. `gpt2` shapes are GPT-2's parts (LayerNorm, GELU, learned positions, biases), `llama` shapes RMSNorm, SwiGLU and
rotary positions; both have a tied head, but for litgpt's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BARE = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""MiB resident once torch is imported, and nothing else."""

Step = Callable[[Tensor], float]
"""One optimizer step on token ids (rows, context + 1) -> the loss before it."""


@dataclass(frozen=True)
class Work:
    """What is trained, and how."""

    layers: int
    width: int
    heads: int
    context: int
    vocabulary: int
    rows: int
    precision: str
    threads: int = 1
    device: str = "cpu"
    compile: bool = True
    peer_attention: str = "eager"

    @property
    def tokens(self) -> int:
        return self.rows * self.context

    def config(self, parts: str) -> Any:
        """lmlab's config of the shape."""
        from lmlab.model.config import ModelConfig

        own: dict[str, Any] = {}
        if parts == "gpt2":
            own = {
                "norm": "layernorm",
                "norm_bias": True,
                "activation": "gelu-tanh",
                "position": "learned",
                "bias": True,
            }
        return ModelConfig(
            layers=self.layers,
            d_model=self.width,
            heads=self.heads,
            context_length=self.context,
            vocab_size=self.vocabulary,
            **own,
        )

    def flops_per_token(self, parts: str) -> float:
        """6 x matrix parameters + 12 x layers x width x context, the cut by causality not counted."""
        return self.config(parts).flops_per_token(self.context)


def lmlab(work: Work, parts: str, layout: Any = None) -> tuple[Step, nn.Module]:
    """The trainer's own pieces: `make_step`, `make_optimizers`, `clip`; of several ranks this one's, its rows cut out of all."""
    from lmlab.model.transformer import Transformer
    from lmlab.objective.batch import Batch
    from lmlab.objective.language_model import LanguageModel
    from lmlab.train.optimizer import OptimizerConfig, clip, make_optimizers
    from lmlab.train.parallel import Layout
    from lmlab.train.parallel.apply import parallelize
    from lmlab.train.step import make_step, matrix_library

    torch.manual_seed(0)
    layout = layout or Layout()
    network = Transformer(work.config(parts)).initialise(0).to(work.device).train()
    parallelize(network, layout, work.compile, work.precision)
    step = make_step(network, LanguageModel(), layout, work.precision, work.compile)
    optimizers = make_optimizers(network, OptimizerConfig(name="adamw", learning_rate=1e-4))
    trained = list(network.parameters())
    place, ranks = layout.share

    def one(ids: Tensor) -> float:
        ids = ids.tensor_split(ranks)[place]
        batch = Batch(ids[:, :-1], ids[:, 1:], torch.ones_like(ids[:, 1:], dtype=torch.bool))
        with matrix_library(work.precision):
            found = step([batch])
        layout.finish(network)
        clip(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        network.zero_grad(set_to_none=True)
        return found["loss"]

    return one, network


def lmlab_onednn(work: Work, parts: str) -> tuple[Step, nn.Module]:
    """lmlab with float32 products through oneDNN, the faster library on AMD's processors."""
    return lmlab(dataclasses.replace(work, precision="float32-onednn"), parts)


def _loop(work: Work, network: nn.Module, loss: Callable[[Tensor], Tensor]) -> tuple[Step, nn.Module]:
    """The plain loop of the peers around `loss(ids)`."""
    network.to(work.device).train()
    forward = torch.compile(loss, dynamic=False) if work.compile else loss
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    half = work.precision == "bfloat16"

    def one(ids: Tensor) -> float:
        with torch.autocast(work.device, torch.bfloat16, enabled=half):
            found = forward(ids)
        found.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(found.detach())

    return one, network


def transformers(work: Work, parts: str) -> tuple[Step, nn.Module]:
    """transformers' GPT2LMHeadModel or LlamaForCausalLM."""
    from transformers import AutoModelForCausalLM, PretrainedConfig

    from lmlab.model.hub import gpt2, llama
    from lmlab.model.hub.family import SpecialTokens

    torch.manual_seed(0)
    hub = {"gpt2": gpt2, "llama": llama}[parts].to_hub(work.config(parts), SpecialTokens(0, 1))
    kind = {"gpt2": "GPT2Config", "llama": "LlamaConfig"}[parts]
    import transformers as library

    config: PretrainedConfig = getattr(library, kind)(**hub)
    network = AutoModelForCausalLM.from_config(config, attn_implementation=work.peer_attention)
    return _loop(
        work,
        network,
        lambda ids: network(input_ids=ids[:, :-1], labels=ids[:, :-1], shift_labels=ids[:, 1:].contiguous()).loss,
    )


class _NanoBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), attention by torch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = (
            each.view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for each in self.qkv(self.norm1(x_BTD)).split(D, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, D)
        x_BTD = x_BTD + self.out(mixed)
        return x_BTD + self.down(F.gelu(self.up(self.norm2(x_BTD))))


class Nano(nn.Module):
    """A small plain GPT-2, as nanoGPT writes it: learned positions, tied head, F.cross_entropy over all logits."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.token = nn.Embedding(work.vocabulary, work.width)
        self.position = nn.Embedding(work.context, work.width)
        self.blocks = nn.ModuleList(_NanoBlock(work.width, work.heads) for _ in range(work.layers))
        self.norm = nn.LayerNorm(work.width)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def logits(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.token(tokens_BT) + self.position.weight[: tokens_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return F.linear(self.norm(x_BTD), self.token.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def nano(work: Work, parts: str) -> tuple[Step, nn.Module]:
    """A loop like nanoGPT's, written for this comparison."""
    torch.manual_seed(0)
    network = Nano(work)
    return _loop(work, network, network)


def litgpt(work: Work, parts: str) -> tuple[Step, nn.Module]:
    """litgpt's GPT in llama's shape (its head is not tied), with its own chunked cross-entropy."""
    from litgpt.config import Config  # ty: ignore  # not among the project's extras: it pins other versions
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    torch.manual_seed(0)
    config = Config(
        block_size=work.context,
        padded_vocab_size=work.vocabulary,
        vocab_size=work.vocabulary,
        n_layer=work.layers,
        n_head=work.heads,
        n_embd=work.width,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=work.config("llama").dims[2],
    )
    network = GPT(config)
    for parameter in network.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
    return _loop(work, network, lambda ids: chunked_cross_entropy(network(ids[:, :-1]), ids[:, 1:], chunk_size=0))


LOOPS: dict[str, tuple[Callable[[Work, str], tuple[Step, nn.Module]], str]] = {
    "lmlab llama": (lmlab, "llama"),
    "lmlab gpt2": (lmlab, "gpt2"),
    "lmlab gpt2 oneDNN": (lmlab_onednn, "gpt2"),
    "transformers gpt2": (transformers, "gpt2"),
    "transformers llama": (transformers, "llama"),
    "nanoGPT-like": (nano, "gpt2"),
    "litgpt": (litgpt, "llama"),
}
"""Name -> what makes the loop, and the parts that it is made of."""


def peak(device: str, threads: int) -> dict[str, float]:
    """FLOP/s of the best of some matrix products in each precision, through either library: of CPU time on one thread, else
    of wall time."""
    size, repeats = (8192, 10) if device == "cuda" else (1536, 3)
    found: dict[str, float] = {}
    for precision, dtype, libraries in (
        ("float32", torch.float32, ("highest", "medium") if device == "cpu" else ("highest",)),
        ("bfloat16", torch.bfloat16, ("highest",)),
    ):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for library in libraries:
            torch.set_float32_matmul_precision(library)
            for _ in range(repeats):
                taken, _ = timed(torch.matmul, device, threads, a, b)
                found[precision] = max(found.get(precision, 0.0), 2 * size**3 / taken)
    torch.set_float32_matmul_precision("highest")
    return found


def timed(work: Callable[..., Any], device: str, threads: int, *given: Tensor) -> tuple[float, Any]:
    """Seconds, and what came of it: CPU time of this process on one thread, which neighbours on the machine hardly change;
    wall time of several threads or a GPU."""
    clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    begun = clock()
    found = work(*given)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begun, found


def resident() -> float:
    """MiB that this process had resident at most since `forget_peak` (Linux), else since it began."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return float(status.split("VmHWM:")[1].split()[0]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """Begin to measure the peak anew (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def serve(name: str, work: Work, steps: Iterator[str]) -> Iterator[dict[str, Any]]:
    """One loop in this process: for each line that comes one step, and its seconds and loss; at the end the memory. The first
    two steps compile and warm up; the peak after them is what steps need."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch.set_num_threads(work.threads)
    if name == "peak":
        for _ in steps:
            yield peak(work.device, work.threads)
        return
    make, parts = LOOPS[name]
    one, network = make(work, parts)
    parameters = sum(p.numel() for p in network.parameters())
    generator = torch.Generator().manual_seed(0)
    for index, _ in enumerate(steps):
        ids = torch.randint(0, work.vocabulary, (work.rows, work.context + 1), generator=generator).to(work.device)
        taken, loss = timed(one, work.device, work.threads, ids)
        if not math.isfinite(loss):
            raise RuntimeError(f"{name}: loss {loss}")
        if index == 1:
            forget = torch.cuda.reset_peak_memory_stats if work.device == "cuda" else forget_peak
            first = resident()
            forget()
        yield {"seconds": taken, "loss": loss}
    if work.device == "cuda":
        most = torch.cuda.max_memory_allocated() / 2**20
        yield {"parameters": parameters, "whole": most, "steady": most, "bare": 0.0}
    else:
        yield {"parameters": parameters, "whole": max(first, resident()), "steady": resident(), "bare": BARE}
