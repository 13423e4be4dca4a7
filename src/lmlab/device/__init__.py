"""What this machine has, and what that means for recipes: `lmlab doctor`. Imports no torch until something is
measured."""

from lmlab.device.doctor import advice, choose_precision, describe, doctor
from lmlab.device.machine import compiler, cores, memory, processor, quiet_compiling
from lmlab.device.speed import gpus, matmul_peaks, read_bandwidth

__all__ = [
    "advice",
    "choose_precision",
    "compiler",
    "cores",
    "describe",
    "doctor",
    "gpus",
    "matmul_peaks",
    "memory",
    "processor",
    "quiet_compiling",
    "read_bandwidth",
]
