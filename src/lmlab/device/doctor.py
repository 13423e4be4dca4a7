"""All findings in one dictionary, and what they mean for recipes."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab import __version__
from lmlab.device.machine import compiler, cores, memory, processor
from lmlab.device.speed import PRECISIONS, gpus, matmul_peaks, read_bandwidth

DEMO = {"layers": 4, "d_model": 192, "d_ff": 512, "vocab_size": 4096, "context_length": 256}
"""A model of the size that the demo trains on two cores; its real size is planned from the time at hand."""
DEMO_MEMORY = 4 * 2**30
"""Peak memory that the demo keeps below."""
DEMO_DISK = 2 * 2**30
"""Room for its corpus, checkpoints and models: a guess with much to spare, not a measured need."""
EFFICIENCY = 0.3
"""Share of the matrix-multiply peak that training a model of `DEMO`'s size reached, compiled, in bfloat16, on two cores
of one AMD machine (measured there; elsewhere it is a guess, and a larger model reaches more: 0.5 to 0.7)."""


def flops_per_token(layers: int, d_model: int, d_ff: int, vocab_size: int, context_length: int) -> float:
    """Training FLOPs a token of a gated decoder: 6 x matrix parameters + 12 L d T (2204.02311, appendix B)."""
    matrices = layers * (4 * d_model**2 + 3 * d_model * d_ff) + vocab_size * d_model
    return 6.0 * matrices + 12.0 * layers * d_model * context_length


def choose_precision(peaks: Mapping[str, Mapping[str, float | None]], gain: float = 1.2) -> str:
    """The precision to train in, by the products of one thread (a busy neighbour spoils those of all threads).

    Each step away from torch's own float32, to another library and to bfloat16, must be `gain` times as fast as the one
    before, since casts take some of what it wins (the factor is a guess).
    """
    chosen, rate = "float32", peaks["float32"].get("1") or 0.0
    for name in PRECISIONS[1:]:
        faster = peaks.get(name, {}).get("1") or 0.0
        if faster > gain * rate:
            chosen, rate = name, faster
    return chosen


def doctor(place: Path = Path(), *, measure: bool = True) -> dict[str, Any]:
    """All that can be found out, as plain JSON values. `place` is where runs would be written; without `measure`
    nothing is timed and torch is not imported. Sizes in bytes, speeds in GFLOP/s and GB/s, None is unknown."""
    here = place if place.exists() else Path()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    found: dict[str, Any] = {
        "lmlab": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": cores(),
        "memory": memory(),
        "cpu": processor(),
        "load": load,
        "disk": {"free": shutil.disk_usage(here).free},
        "compiler": compiler(),
        "torch": None,
        "gpus": None,
        "measured": None,
    }
    if measure:
        try:
            import torch

            found["torch"] = torch.__version__
            found["gpus"] = gpus()
            available = found["memory"]["available"] or 2**30
            found["measured"] = {
                "threads": torch.get_num_threads(),
                "matmul_gflops": matmul_peaks(),
                "read_gb_per_second": read_bandwidth(min(2**28, available // 8)),
            }
        except ImportError:
            pass  # said as unknown
    return {**found, "recipes": advice(found)}


def advice(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the findings mean: `precision` and `tokens_per_second` of a model of the demo's size (training), whether the
    demo `fits` (None: unknown) and what is `missing` for it, whether to `compile`, and `gpu_precision`."""
    measured = found["measured"]
    precision = choose_precision(measured["matmul_gflops"]) if measured else None
    peaks = measured["matmul_gflops"][precision].values() if measured and precision else ()
    peak = max((rate for rate in peaks if rate), default=None)
    needs = {"memory": (found["memory"]["available"], DEMO_MEMORY), "disk": (found["disk"]["free"], DEMO_DISK)}
    missing = [name for name, (has, wanted) in needs.items() if has is not None and has < wanted]
    unknown = any(has is None for has, _ in needs.values())
    cards = found["gpus"]
    return {
        "precision": precision,
        "compile": found["compiler"]["works"],
        "tokens_per_second": round(EFFICIENCY * peak * 1e9 / flops_per_token(**DEMO)) if peak else None,
        "fits": False if missing else None if unknown else True,
        "missing": missing,
        "gpu_precision": None if not cards else ("bfloat16" if all(c["bfloat16"] for c in cards) else "float32"),
    }


def describe(found: Mapping[str, Any]) -> str:
    """`doctor()`'s findings as lines for people."""
    return "\n".join([*_hardware(found), *_speed(found), "", "What this means for recipes", *_meaning(found)])


def _size(value: float | None) -> str:
    return "unknown" if value is None else f"{value / 2**30:,.1f} GiB"


def _hardware(found: Mapping[str, Any]) -> list[str]:
    core, ram, cpu, tool = found["cores"], found["memory"], found["cpu"], found["compiler"]
    quota = "" if core["quota"] is None else f", limited to {core['quota']:g} by this container"
    sets = None if cpu["instructions"] is None else [name for name, has in cpu["instructions"].items() if has]
    limit = "" if ram["limit"] is None else ", limited by this container"
    if found["gpus"] is None:
        cards = "unknown (torch was not asked)" if found["torch"] is None else "unknown"
    else:
        cards = ", ".join(f"{c['name']} ({_size(c['memory'])})" for c in found["gpus"]) or "none"
    works = f"{tool['path']} builds with Python's headers" if tool["works"] else tool["why"]
    return [
        f"lmlab {found['lmlab']}, Python {found['python']}, torch {found['torch'] or 'unknown'}, {found['system']}",
        f"cores         {core['usable']:g} usable of {core['machine']}{quota}",
        f"memory        {_size(ram['available'])} available of {_size(ram['total'])}{limit}",
        f"processor     {cpu['name'] or 'unknown'} ({cpu['architecture']})",
        f"instructions  {'unknown' if sets is None else ' '.join(sets) or 'none of those that matter'}",
        f"GPU           {cards}",
        f"free disk     {_size(found['disk']['free'])}",
        f"compiler      {works}",
    ]


def _speed(found: Mapping[str, Any]) -> list[str]:
    measured = found["measured"]
    if measured is None:
        return ["speed         unknown (not measured)"]
    lines = [
        f"products in {name}: {_rate(peaks['1'])} GFLOP/s on 1 thread, {_rate(peaks['all'])} on {measured['threads']}"
        for name, peaks in measured["matmul_gflops"].items()
    ]
    lines.append(f"memory is read at {_rate(measured['read_gb_per_second'])} GB/s")
    if found["load"] is not None and found["load"] > found["cores"]["usable"] / 2:
        lines.append(f"(other work was running, load {found['load']:.1f}: the speeds are lower than the machine's own)")
    return lines


def _rate(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def _meaning(found: Mapping[str, Any]) -> list[str]:
    says, instructions = found["recipes"], found["cpu"]["instructions"] or {}
    lines = []
    if says["precision"] is None:
        lines.append("- precision and speed of training: unknown, nothing was measured")
    else:
        lines.append(
            f"- training would likely use precision {says['precision']}, by the products above; pretraining "
            "measures again, on the model itself"
        )
        if says["precision"] == "float32-onednn" and instructions.get("amx_bf16"):
            lines.append("  (this processor has amx_bf16: oneDNN then rounds float32 products to bfloat16)")
        lines.append(
            f"- a model of the demo's size ({DEMO['layers']} layers, width {DEMO['d_model']}) would train at about "
            f"{says['tokens_per_second']:,} tokens a second: {EFFICIENCY:.0%} of the peak, as measured on one other "
            "machine; within a factor of two here"
        )
    if says["compile"] is False:
        lines.append(f"- torch.compile would not work, so training runs uncompiled: {found['compiler']['why']}")
    elif says["compile"]:
        lines.append("- torch.compile works: training is compiled where that pays")
    if says["fits"]:
        lines.append(f"- the demo fits: it keeps below {_size(DEMO_MEMORY)} of memory")
    elif says["fits"] is None:
        lines.append(f"- whether the demo fits is unknown: it keeps below {_size(DEMO_MEMORY)} of memory")
    else:
        lines.append(
            f"- the demo does not fit: not enough {' and '.join(says['missing'])} (memory: {_size(DEMO_MEMORY)})"
        )
    if found["gpus"]:
        eight = all(card.get("float8") for card in found["gpus"])
        lines.append(
            f"- the GPU's precision would be {says['gpu_precision']}{', and float8 where that is asked for' if eight else ''}; "
            "pretraining runs on it, the other stages of this version on the CPU"
        )
    else:
        lines.append(
            "- on a GPU node: bfloat16 products with float32 sums from compute capability 8.0 (A100) on, float32 "
            "below, float8 where it is asked for from 8.9 (L40S, H100) on; pretraining runs there, the other stages of this "
            "version on the CPU"
        )
    return lines
