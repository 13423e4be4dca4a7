"""New tokens a second of CPU time: lmlab's engine beside transformers' `generate`, the same weights in both.

    python benchmarks/generate_cpu.py [--rounds 5] [--precision float32|bfloat16]

Both run in one process on one thread, in turns, and what is measured is the process's own CPU time: a neighbour on the
machine then costs both alike. A figure is the median of its rounds (prefill included), the ratio the median of the rounds'
ratios. In float32 the greedy ids must be equal, or the benchmark fails. Prints a Markdown table. Needs the extra [dev].
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import transformers

from lmlab.generate.engine import Engine, Sampling
from lmlab.model.config import ModelConfig
from lmlab.model.store import save_model
from lmlab.model.transformer import Transformer

SHAPES = {
    "4 layers, d 192": ModelConfig(layers=4, d_model=192, heads=4, vocab_size=4096, context_length=256),
    "6 layers, d 384": ModelConfig(layers=6, d_model=384, heads=6, vocab_size=4096, context_length=256),
}
BATCHES = (1, 8, 32)
PROMPT, NEW = 64, 64


class NoTokenizer:
    """The ids that a model directory names; there is no text here."""

    eos_id, pad_id, end_of_turn_id = 0, 1, 5

    def save(self, folder: Path) -> None:
        """Nothing to write."""


def machine() -> str:
    """The processor, and the versions that the figures depend on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    isa = torch.backends.cpu.get_cpu_capability()
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, 1 thread used, {isa}; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


def pair(config: ModelConfig, precision: str) -> tuple[Engine, transformers.PreTrainedModel]:
    """lmlab's engine and transformers' model, with the same random weights."""
    model = Transformer(config).initialise(0).eval()
    with torch.no_grad():
        model.embedding.weight *= 20  # logits far enough apart that rounding cannot change the likeliest token
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), model, NoTokenizer())
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    peer.generation_config.eos_token_id = None  # neither may end early
    engine = Engine(model, precision="bfloat16" if precision == "bfloat16" else "float32", max_batch=max(BATCHES))
    return engine, peer.to(torch.bfloat16) if precision == "bfloat16" else peer


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def compare(engine: Engine, peer: transformers.PreTrainedModel, batch: int, rounds: int, same: bool) -> list[float]:
    """[lmlab's tokens a CPU second, transformers', the ratio]."""
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(6, engine.model.config.vocab_size, (batch, PROMPT), generator=generator)
    mask, rows, sampling = torch.ones_like(prompts), prompts.tolist(), Sampling(NEW, stop_ids=())

    def ours() -> list[list[int]]:
        return [answer.ids for answer in engine.generate(rows, sampling)]

    def theirs() -> list[list[int]]:
        with torch.inference_mode():
            return peer.generate(prompts, attention_mask=mask, max_new_tokens=NEW, do_sample=False)[:, PROMPT:].tolist()

    first, second = ours(), theirs()  # warm both up
    if any(len(ids) != NEW for ids in [*first, *second]) or (same and first != second):
        sys.exit(f"batch {batch}: the two do not say the same")
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    new = batch * NEW
    fast, slow = (statistics.median(new / each[which] for each in times) for which in (0, 1))
    return [fast, slow, statistics.median(b / a for a, b in times)]


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\n\nGreedy, prompt {PROMPT}, {NEW} new tokens a row, {options.precision}, vocabulary 4,096.\n")
    print("| shape | batch | lmlab, tokens / CPU s | transformers | ratio |\n|---|---|---|---|---|")
    for name, config in SHAPES.items():
        engine, peer = pair(config, options.precision)
        for batch in BATCHES:
            fast, slow, ratio = compare(engine, peer, batch, options.rounds, options.precision == "float32")
            print(f"| {name} | {batch} | {fast:,.0f} | {slow:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
