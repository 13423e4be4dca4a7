"""What a step of lmlab's costs as the work grows: `train.py --grow sizes contexts processes`.

Beside each measured rate stands the expected one: the rate that the first row's FLOPs a second would give, as `flops_per_token`
counts them (keys beyond the query, which causal attention need not compute, counted in). Figures are medians of `--rounds`
steps after two (after one where a step takes over 20 seconds), one configuration after another; CPU seconds on one thread, wall
seconds for processes, whose CPU seconds stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train import Child
from train_loops import Work

SIZES = ((2, 128), (4, 256), (6, 384), (8, 512), (12, 768))
CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768)


def grow(options: argparse.Namespace) -> Iterator[str]:
    """The tables that were asked for."""
    for name in options.grow:
        for precision in options.precisions or ("float32",):
            yield from {"sizes": sizes, "contexts": contexts, "processes": processes}[name](options, precision)
            yield ""


def _settings(options: argparse.Namespace, precision: str, **shape: int) -> dict[str, Any]:
    common = {"precision": precision, "threads": 1, "device": options.device, "compile": not options.eager}
    return {"vocabulary": 4096, **shape, **common}


def _one(settings: dict[str, Any], rounds: int) -> tuple[list[float], dict[str, Any]]:
    """Seconds of steps of a configuration, and its memory."""
    child = Child("lmlab llama", settings)
    try:
        first = [child.step()["seconds"] for _ in range(2)]
        taken = [child.step()["seconds"] for _ in range(rounds if first[1] < 20 else 1)]
    except BaseException:
        child.process.kill()
        raise
    return taken, child.end()


def _table(what: str, configurations: list[tuple[str, dict[str, Any]]], rounds: int, precision: str) -> Iterator[str]:
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    yield f"{what}, {precision}, one thread, {rounds} steps each; load {load} at the beginning\n"
    yield "| | parameters | MFLOP a token | tokens a CPU second | range | expected | GFLOP/s | peak MiB |"
    yield "|---|---|---|---|---|---|---|---|"
    speed = None
    for name, settings in configurations:
        work = Work(**settings)
        taken, end = _one(settings, rounds)
        flops, rate = work.flops_per_token("llama"), work.tokens / statistics.median(taken)
        speed = speed or rate * flops
        yield (
            f"| {name} | {end['parameters'] / 1e6:,.1f}M | {flops / 1e6:,.0f} | {rate:,.0f} | "
            f"{work.tokens / max(taken):,.0f} to {work.tokens / min(taken):,.0f} | {speed / flops:,.0f} | "
            f"{rate * flops / 1e9:,.1f} | {end['whole']:,.0f} |"
        )


def sizes(options: argparse.Namespace, precision: str) -> Iterator[str]:
    """Depth and width together, 12 rows of 256."""
    made = [
        (f"{n} layers, d {d}", _settings(options, precision, layers=n, width=d, heads=d // 64, context=256, rows=12))
        for n, d in SIZES
    ]
    return _table("Size of the model, context 256", made, options.rounds, precision)


def contexts(options: argparse.Namespace, precision: str) -> Iterator[str]:
    """The same tokens a step in fewer, longer rows, until a row is longer than that."""
    made = []
    for T in CONTEXTS:
        shape = {"layers": 4, "width": 256, "heads": 4, "context": T, "rows": max(1, 4096 // T)}
        made.append((f"context {T:,}, {shape['rows']} row(s)", _settings(options, precision, **shape)))
    return _table("Length of the context, 4 layers, d 256", made, options.rounds, precision)


def processes(options: argparse.Namespace, precision: str) -> Iterator[str]:
    """The same batch of 12 rows of 256, 6 layers, d 384, on one process and divided between two (gloo), one thread each."""
    shape = {"layers": 6, "width": 384, "heads": 6, "context": 256, "rows": 12}
    settings = _settings(options, precision, **shape)
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    yield f"Processes, data-parallel, 6 layers, d 384, 12 rows of 256 in all, {precision}; {options.rounds} steps; load {load}\n"
    yield "| processes | tokens a second (wall) | range | expected | tokens a CPU second of each | loss after the last step |"
    yield "|---|---|---|---|---|---|"
    first = None
    for size in (1, 2):
        found = _ranks(settings, size, options.rounds)
        work = Work(**settings)
        walls = [max(each) for each in zip(*(rank["wall"] for rank in found))]
        cpus = statistics.median(sum(each) / size for each in zip(*(rank["cpu"] for rank in found)))
        rate = work.tokens / statistics.median(walls)
        first = first or rate
        yield (
            f"| {size} | {rate:,.0f} | {work.tokens / max(walls):,.0f} to {work.tokens / min(walls):,.0f} | {size * first:,.0f} | "
            f"{work.tokens / size / cpus:,.0f} | {found[0]['loss']:.6f} |"
        )


def _ranks(settings: dict[str, Any], size: int, rounds: int) -> list[dict[str, Any]]:
    """What each of some processes measured."""
    from torch import multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (size, settings, rounds, folder), nprocs=size)
        return [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]


def _rank(rank: int, size: int, settings: dict[str, Any], rounds: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    from lmlab.train.parallel import Layout, World
    from train_loops import lmlab

    torch.set_num_threads(1)
    work, layout = Work(**settings), None
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
        layout = Layout(world=World(rank, size))
    one, _ = lmlab(work, "llama", layout)
    generator, found = torch.Generator().manual_seed(0), {"wall": [], "cpu": []}
    loss = 0.0
    for index in range(rounds + 2):
        ids = torch.randint(0, work.vocabulary, (work.rows, work.context + 1), generator=generator)
        begun, spent = time.perf_counter(), time.process_time()
        loss = one(ids)
        if index >= 2:
            found["wall"].append(time.perf_counter() - begun)
            found["cpu"].append(time.process_time() - spent)
    Path(folder, f"{rank}.json").write_text(json.dumps({**found, "loss": loss}), encoding="utf-8")
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()
