"""Speeds measured here and now, in about two seconds, and the GPUs. torch is imported by the functions, not before."""

from __future__ import annotations

import time
from typing import Any

PRECISIONS = ("float32", "float32-onednn", "bfloat16")


def gpus() -> list[dict[str, Any]] | None:
    """The GPUs that torch can use: name, memory in bytes, compute capability, whether bfloat16 and the float8 of
    2209.05433 (AMD's before MI350 is another) are native. None where torch is missing."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        found.append(
            {
                "name": properties.name,
                "memory": properties.total_memory,
                "capability": f"{capability[0]}.{capability[1]}",
                "bfloat16": capability >= (8, 0),
                "float8": capability >= (8, 9) and torch.version.hip is None,
            }
        )
    return found


def matmul_peaks(seconds: float = 0.25) -> dict[str, dict[str, float | None]]:
    """GFLOP/s of square matrix products, {precision: {"1": one thread, "all": torch's threads}}, the best of what
    `seconds` each allow. None where this torch cannot do it. torch's settings are put back."""
    import torch

    threads, before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    peaks: dict[str, dict[str, float | None]] = {name: {} for name in PRECISIONS}
    try:
        for label, count in (("1", 1), ("all", threads)):
            torch.set_num_threads(count)
            for name in PRECISIONS:
                torch.set_float32_matmul_precision("medium" if name == "float32-onednn" else "highest")
                dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
                peaks[name][label] = peaks[name]["1"] if label == "all" and threads == 1 else _gflops(dtype, seconds)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(before)
    return peaks


def _gflops(dtype: Any, seconds: float) -> float | None:
    """The best rate of two sizes: a small one first, so that a precision without hardware costs little time."""
    import torch

    best = 0.0
    ends = time.perf_counter() + seconds
    for size, rounds in ((256, 3), (1024, 100)):
        try:
            square = torch.full((size, size), 0.5, dtype=dtype)
            product = square @ square
        except RuntimeError:
            return None
        for _ in range(rounds):
            begun = time.perf_counter()
            torch.mm(square, square, out=product)
            took = max(time.perf_counter() - begun, 1e-9)
            best = max(best, 2.0 * size**3 / took / 1e9)
            if time.perf_counter() > ends:
                return best
    return best


def read_bandwidth(size: int = 2**28, rounds: int = 4) -> float:
    """GB/s of reading `size` bytes (more than the caches hold) with all of torch's threads: the best of `rounds`."""
    import torch

    block = torch.ones(size // 4, dtype=torch.float32)

    def read() -> float:
        begun = time.perf_counter()
        block.max()
        return time.perf_counter() - begun

    return size / min(read() for _ in range(rounds)) / 1e9
