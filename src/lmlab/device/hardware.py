"""GPUs by their makers' data sheets, and what a plan needs to know of one."""

from __future__ import annotations

from dataclasses import dataclass

from lmlab.errors import Refused, nearest


@dataclass(frozen=True)
class Device:
    """`peak`: dense FLOP/s by precision, without sparsity. `memory`: bytes. `near` and `far`: bytes a second that one device
    sends (and at the same time receives) to another of its node, and to one of another node. `node`: devices a node."""

    name: str
    peak: dict[str, float]
    memory: float
    near: float
    far: float
    node: int = 8


HERE = "this machine's cores"

GIB, GB, TERA = 2.0**30, 1e9, 1e12


def _gpu(
    name: str,
    half: float,
    single: float,
    memory: float,
    near: float,
    far: float,
    node: int = 8,
    eight: float | None = None,
) -> Device:
    peak = {"bfloat16": half * TERA, "float16": half * TERA, "float32": single * TERA}
    if eight is not None:
        peak["float8"] = eight * TERA
    return Device(name, peak, memory * GIB, near * GB, far * GB, node)


GPUS = {
    "v100": _gpu("V100 SXM2 32 GB", 125, 15.7, 32, 150, 12.5),
    "a100": _gpu("A100 SXM4 80 GB", 312, 19.5, 80, 300, 25),
    "a100-40": _gpu("A100 SXM4 40 GB", 312, 19.5, 40, 300, 25),
    "h100": _gpu("H100 SXM5 80 GB", 989.4, 67, 80, 450, 50, eight=1978.9),
    "h200": _gpu("H200 SXM5 141 GB", 989.4, 67, 141, 450, 50, eight=1978.9),
    "b200": _gpu("B200 180 GB", 2250, 80, 180, 900, 50, eight=4500),
    "l40s": _gpu("L40S 48 GB", 362, 91.6, 48, 32, 12.5, eight=733),
    "rtx4090": _gpu("GeForce RTX 4090 24 GB", 165.2, 82.6, 24, 32, 3.1, node=4, eight=330.3),
    "mi300x": _gpu("Instinct MI300X 192 GB", 1307.4, 163.4, 192, 448, 50),
}
"""Peaks of matrix units with float32 sums, from the data sheets; float32 as the plain units do it (no TF32). V100 has no
bfloat16: its figure is float16's. MI300X has another float8 (fnuz), which lmlab does not make. `far` is one network card a GPU as
sold with them (100, 200, 400 Gbit/s), a guess for yours."""


def find(name: str) -> Device:
    """A GPU by its short name. Raises Refused with the nearest one."""
    known = name.lower().replace("_", "-")
    if known not in GPUS:
        raise Refused(f"--gpu {name}: not among the known ones{nearest(known, GPUS)} ({', '.join(GPUS)})")
    return GPUS[known]


def here(gpus: int | None = None) -> tuple[Device, int]:
    """This machine: its GPUs where torch finds some, else its cores as one device, with products measured now (a second)."""
    from lmlab.device.machine import memory
    from lmlab.device.speed import gpus as found_gpus
    from lmlab.device.speed import matmul_peaks

    cards = found_gpus() or []
    if cards:
        for short in sorted(GPUS, key=len, reverse=True):
            if short.split("-")[0].upper() in cards[0]["name"].upper().replace(" ", ""):
                known = GPUS[short]
                return Device(
                    known.name, known.peak, cards[0]["memory"], known.near, known.far, len(cards)
                ), gpus or len(cards)
        raise Refused(
            f"the GPU here ({cards[0]['name']}) is not among the known ones: name one with --gpu ({', '.join(GPUS)})"
        )
    rates = matmul_peaks()
    peak = {name: (each.get("all") or each.get("1") or 0.0) * GB for name, each in rates.items()}
    peak["float16"] = peak["float32"]
    return Device(HERE, peak, memory()["available"] or 0, 5 * GB, 5 * GB, node=1 << 30), gpus or 1
