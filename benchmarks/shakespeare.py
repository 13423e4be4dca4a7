"""Time to loss on the characters of tinyshakespeare: lmlab's recipe beside plain loops over transformers' Llama and a GPT-2.

    python benchmarks/shakespeare.py [--text FILE] [--seeds 0 1 2] [--loops lmlab "transformers llama" "nanoGPT-like"]
                                     [--every 100] [pretrain.optimizer.matrix_learning_rate=0.03 ...]

4 layers, d 128, context 64, 2,000 steps of 12 rows, as in nanoGPT's README; the first 90% of the text is trained on. The
loss is the mean over ALL of the last 10%, read in windows of 64 characters, in nats a character, in float32; its interval
comes from resampling the windows. Seconds are CPU seconds of this process on one thread, from before the first step
(compiling included) without the time of measuring; a loss is passed at the first measurement that finds it.

lmlab trains by the recipe `tinyshakespeare` through its trainer (`fit`), checkpoints and all, and is measured as it would be
saved, under `ema` by the mean of its weights; settings given on the command line override the recipe's, which is how its
ablations were made. The peers train by nanoGPT's own recipe (AdamW 1e-3, betas 0.9 and 0.99, cosine to 1e-4 after 100 steps of
warm-up, decay 0.1, clipping at 1). FILE defaults to tinyshakespeare/input.txt.gz in the folder that LMLAB_DATA names.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import gzip
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmlab import recipe
from lmlab.device import processor
from lmlab.measure import Score, mean
from lmlab.model.transformer import Transformer
from lmlab.objective.language_model import LanguageModel
from lmlab.progress import Metrics
from lmlab.run import Context, write_json
from lmlab.text.tokenizer import Tokenizer, train
from lmlab.train.average import averaged
from lmlab.train.data import PackedWindows
from lmlab.train.plan import shape_of_width
from lmlab.train.train_config import TrainConfig
from lmlab.train.trainer import fit
from train_loops import Nano, Work

WINDOW, ROWS, STEPS = 64, 12, 2000
MARKS = (2.0, 1.9, 1.8, 1.7, 1.6)

Nats = Callable[[Tensor, Tensor], Tensor]
"""(ids, targets), both (N, WINDOW) -> nats of each target, (N, WINDOW)."""


@dataclass
class Text:
    """Ids of the two parts."""

    train: np.ndarray
    heldout: np.ndarray
    tokenizer: Tokenizer

    def loss(self, nats: Nats) -> Score:
        """Nats a character of all held-out text, each window by itself."""
        windows = (len(self.heldout) - 1) // WINDOW
        ids = torch.from_numpy(self.heldout[: windows * WINDOW + 1])
        x, y = ids[:-1].view(windows, WINDOW), ids[1:].view(windows, WINDOW)
        with torch.inference_mode():
            found = [nats(a, b).double().mean(1) for a, b in zip(x.split(256), y.split(256))]
        return mean(torch.cat(found).numpy(), resamples=500)


def read(path: Path) -> Text:
    """The text, a token a byte (six special tokens have the first ids), cut as nanoGPT cuts it."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = raw.decode("utf-8")
    tokenizer = train([text], 262)
    ids = np.array(tokenizer.encode(text), dtype=np.int64)
    cut = int(0.9 * len(ids))
    return Text(ids[:cut], ids[cut:], tokenizer)


@dataclass
class Clock:
    """CPU seconds of training, and the losses measured on the way, whose own time does not count."""

    text: Text
    nats: Nats
    every: int
    spent: float = 0.0
    begun: float = field(default_factory=time.process_time)
    curve: list[tuple[int, float, Score]] = field(default_factory=list)

    def after(self, step: int) -> None:
        """To be called after each step, counted from 0."""
        if (step + 1) % self.every and step + 1 != STEPS:
            return
        seconds = time.process_time() - self.begun - self.spent
        self.curve.append((step + 1, seconds, self.text.loss(self.nats)))
        self.spent = time.process_time() - self.begun - seconds
        print(f"  {step + 1} {seconds:.1f} s {self.curve[-1][2].value:.4f}", file=sys.stderr, flush=True)

    def passed(self, mark: float) -> float | None:
        """Seconds until the loss was at most `mark`."""
        return next((seconds for _, seconds, loss in self.curve if loss.value <= mark), None)


def lmlab(text: Text, seed: int, every: int, overrides: Sequence[str]) -> Clock:
    """The recipe's pretraining settings, through the trainer."""
    (steps,) = recipe.load("tinyshakespeare", overrides).arms.values()
    config: Any = next(step.config for step in steps if step.name == "pretrain")
    shape = shape_of_width(config.model, config.model.d_model, text.tokenizer.vocab_size)
    network = Transformer(shape).initialise(seed)
    network.kernel = config.kernel
    shared = {name: getattr(config, name) for name in TrainConfig.model_fields if hasattr(config, name)}
    settings = TrainConfig(**shared)
    shard: Any = SimpleNamespace(tokens=text.train, starts=np.array([0, len(text.train)]))
    rows = config.batch_tokens // shape.context_length
    source = PackedWindows(shard, shape.context_length, rows, 1, seed, config.separate_documents)

    def nats(x: Tensor, y: Tensor) -> Tensor:
        with averaged(network):
            logits = network.eval()(x).logits()
        network.train()
        return logits.logsumexp(-1) - logits.gather(-1, y[..., None])[..., 0]

    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "state.json", {})
        context = Context("pretrain", "pretrain", config, {}, Path(folder), seed, Metrics(Path(folder)))
        clock = Clock(text, nats, every)
        fit(network, LanguageModel(), source, settings, context, on_step=lambda step, _: clock.after(step))
    return clock


def _plain(
    text: Text, seed: int, every: int, network: nn.Module, loss: Callable[[Tensor], Tensor], nats: Nats
) -> Clock:
    """nanoGPT's recipe around a network's mean loss of ids (rows, WINDOW + 1)."""
    matrices = [p for p in network.parameters() if p.dim() >= 2]
    others = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    draw = np.random.default_rng(seed)
    clock = Clock(text, nats, every)
    for step in range(STEPS):
        share = (step + 1) / 100 if step < 100 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 100) / (STEPS - 100)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * share
        places = draw.integers(0, len(text.train) - WINDOW - 1, ROWS)
        found = loss(torch.from_numpy(text.train[places[:, None] + np.arange(WINDOW + 1)]))
        found.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.after(step)
    return clock


def work(text: Text) -> Work:
    """The shape, as the loops of train.py take it."""
    return Work(4, 128, 4, WINDOW, text.tokenizer.vocab_size, ROWS, "float32")


def llama(text: Text, seed: int, every: int, overrides: Sequence[str]) -> Clock:
    """transformers' LlamaForCausalLM."""
    import transformers

    from lmlab.model.hub import llama as family
    from lmlab.model.hub.family import SpecialTokens

    torch.manual_seed(seed)
    hub = family.to_hub(work(text).config("llama"), SpecialTokens(0, 1))
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hub)).train()

    def nats(x: Tensor, y: Tensor) -> Tensor:
        logits = network(input_ids=x).logits
        return logits.logsumexp(-1) - logits.gather(-1, y[..., None])[..., 0]

    def loss(ids: Tensor) -> Tensor:
        return network(input_ids=ids[:, :-1], labels=ids[:, :-1], shift_labels=ids[:, 1:].contiguous()).loss

    return _plain(text, seed, every, network, loss, nats)


def nano(text: Text, seed: int, every: int, overrides: Sequence[str]) -> Clock:
    """A GPT-2 as nanoGPT writes it."""
    torch.manual_seed(seed)
    network = Nano(work(text))

    def nats(x: Tensor, y: Tensor) -> Tensor:
        logits = network.logits(x)
        return logits.logsumexp(-1) - logits.gather(-1, y[..., None])[..., 0]

    return _plain(text, seed, every, network, network, nats)


LOOPS: dict[str, Callable[[Text, int, int, Sequence[str]], Clock]] = {
    "lmlab": lmlab,
    "transformers llama": llama,
    "nanoGPT-like": nano,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings over the recipe's, for lmlab")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--every", type=int, default=100, help="steps between measurements")
    options = parser.parse_args()
    path = options.text or Path(os.environ.get("LMLAB_DATA", ".")) / "tinyshakespeare" / "input.txt.gz"
    if not path.exists():
        parser.error(
            f"{path} is not there: expected --text FILE, or LMLAB_DATA=FOLDER with tinyshakespeare/input.txt.gz"
        )
    torch.set_num_threads(1)
    text = read(path)
    print(
        f"{date.today()}, {processor()['name']}, torch {torch.__version__}, Python {platform.python_version()}, one thread; "
        f"{len(text.train):,} characters to train on, {len(text.heldout):,} held out; {' '.join(options.overrides)}\n"
    )
    print(
        "| loop | seed | held-out loss | CPU s | ms a step | "
        + " | ".join(f"to {mark}" for mark in MARKS)
        + " | load |"
    )
    print("|---|---|---|---|---|" + "---|" * (len(MARKS) + 1))
    for seed in options.seeds:
        for name in options.loops:
            clock = LOOPS[name](text, seed, options.every, options.overrides)
            _, seconds, loss = clock.curve[-1]
            marks = " | ".join("never" if (at := clock.passed(mark)) is None else f"{at:.0f}" for mark in MARKS)
            print(
                f"| {name} | {seed} | {loss.value:.4f} [{loss.low:.4f}, {loss.high:.4f}] (n={loss.n}) | {seconds:.1f} | "
                f"{1000 * seconds / STEPS:.0f} | {marks} | {os.getloadavg()[0]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
