"""Tokens per CPU second of pretraining: lmlab beside a plain transformers loop of the same shape, alternating in one run.

    python benchmarks/train_cpu.py [--rounds 7] [--threads 1]

Shape: LlamaForCausalLM, 6 layers, d 384, 6 heads, context 256, vocabulary 4,096, batch 12, AdamW. Both start from the same
weights and see the same batches; the first losses are compared. Peak: the best matrix product of the same rounds.
Needs transformers (the [dev] extra). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from lmlab.device import processor
from lmlab.model.config import ModelConfig
from lmlab.model.hub import llama
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.transformer import Transformer
from lmlab.objective.batch import Batch
from lmlab.objective.language_model import LanguageModel
from lmlab.run import write_json
from lmlab.train.step import accumulate, make_forward, matrix_library

SHAPE = ModelConfig(layers=6, d_model=384, heads=6, vocab_size=4096, context_length=256)
ROWS = 12


def peer(weights: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    """transformers' Llama with our weights."""
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", llama.to_hub(SHAPE, SpecialTokens(0, 1)))
        from safetensors.torch import save_file

        save_file(llama.weights_to_hub(weights, SHAPE), Path(folder) / "model.safetensors", metadata={"format": "pt"})
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


def theirs(precision: str, weights: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], float]:
    model = peer(weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(ids: torch.Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step


def ours(precision: str, compiled: bool, weights: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], float]:
    model = Transformer(SHAPE)
    model.load_state_dict(weights)
    objective = LanguageModel()
    forward = make_forward(model.train(), objective, compiled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    mask = torch.ones(ROWS, SHAPE.context_length - 1, dtype=torch.bool)

    def step(ids: torch.Tensor) -> float:
        batch = Batch(ids[:, :-1], ids[:, 1:], mask)
        with matrix_library(precision):
            loss = accumulate(forward, objective, [batch], precision)["loss"]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def peak(dtype: torch.dtype) -> float:
    """GFLOP a CPU second of the best of three 1,536^3 products."""
    a, b = torch.randn(1536, 1536).to(dtype), torch.randn(1536, 1536).to(dtype)
    best = float("inf")
    for _ in range(3):
        begun = time.process_time()
        a @ b
        best = min(best, time.process_time() - begun)
    return 2 * 1536**3 / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weights = {name: tensor.clone() for name, tensor in Transformer(SHAPE).initialise(0).state_dict().items()}
    loops = {
        "transformers float32": theirs("float32", weights),
        "lmlab float32": ours("float32", False, weights),
        "lmlab float32 compiled": ours("float32", True, weights),
        "lmlab float32 oneDNN compiled": ours("float32-onednn", True, weights),
        "transformers bfloat16": theirs("bfloat16", weights),
        "lmlab bfloat16": ours("bfloat16", False, weights),
        "lmlab bfloat16 compiled": ours("bfloat16", True, weights),
    }
    batches = [torch.randint(0, SHAPE.vocab_size, (ROWS, SHAPE.context_length)) for _ in range(options.rounds + 2)]
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    losses: dict[str, list[float]] = {name: [] for name in loops}
    peaks: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for index, ids in enumerate(batches):
        for name, step in loops.items():
            begun = time.process_time()
            losses[name].append(step(ids))
            if index >= 2:  # the first two rounds warm up and compile
                seconds[name].append(time.process_time() - begun)
        for name, values in peaks.items():
            values.append(peak(getattr(torch, name)))
    tokens = ROWS * SHAPE.context_length
    flops = SHAPE.flops_per_token(SHAPE.context_length)
    best = {name: max(values) for name, values in peaks.items()}
    print(
        f"{processor()['name']}, torch {torch.__version__}, Python {platform.python_version()}, {options.threads} thread(s), "
    )
    print(
        f"{options.rounds} rounds; matrix peak float32 {best['float32']:.0f}, bfloat16 {best['bfloat16']:.0f} GFLOP/s\n"
    )
    print(
        "| loop | tokens per CPU second (median) | range | ratio to transformers, same precision | share of the peak | first loss |"
    )
    print("|---|---|---|---|---|---|")
    for name, values in seconds.items():
        kind = "bfloat16" if "bfloat16" in name else "float32"
        rate = tokens / statistics.median(values)
        ratio = rate * statistics.median(seconds[f"transformers {kind}"]) / tokens
        print(
            f"| {name} | {rate:,.0f} | {tokens / max(values):,.0f} to {tokens / min(values):,.0f} | {ratio:.2f} | "
            f"{rate * flops / best[kind] / 1e9:.0%} | {losses[name][0]:.4f} |"
        )


if __name__ == "__main__":
    main()
