"""What the machine holds and what this process may use of it: affinity and cgroup limits count, not the hardware alone.

What cannot be found out is None.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

INSTRUCTIONS = {
    "avx2": ("avx2",),
    "fma": ("fma",),
    "avx512f": ("avx512f",),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16": ("avx512_bf16",),
    "amx_int8": ("amx_int8",),
    "amx_bf16": ("amx_bf16",),
    "neon": ("asimd", "neon"),
    "sve": ("sve",),
    "sve2": ("sve2",),
    "arm_bf16": ("bf16",),
    "i8mm": ("i8mm",),
}
"""Instruction sets that decide how fast matrix products are, and the kernel's names for each in /proc/cpuinfo."""


def cores(root: Path = Path("/")) -> dict[str, float | int | None]:
    """`machine` cores, those this process may run on (`affinity`), its cgroup's `quota` in cores (None: no limit) and
    `usable`, the least of them. `root` is where /proc and /sys stand."""
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    quota = _least(_cpu_limit(folder) for folder in _cgroups(root, "cpu"))
    usable = min(machine, affinity) if quota is None else min(machine, affinity, quota)
    return {"machine": machine, "affinity": affinity, "quota": quota, "usable": usable}


def memory(root: Path = Path("/")) -> dict[str, int | None]:
    """Bytes: `total` and `available` for this process, and the cgroup's `limit` (None: no limit)."""
    total, available = _meminfo(root / "proc/meminfo")
    limits = [pair for folder in _cgroups(root, "memory") if (pair := _memory_limit(folder)) is not None]
    # A limit above the machine's own memory is how some container engines write "none".
    limits = [(limit, used) for limit, used in limits if total is None or limit < total]
    if not limits:
        return {"total": total, "available": available, "limit": None}
    limit = min(limit for limit, _ in limits)
    room = min(max(0, limit - used) for limit, used in limits)
    return {"total": limit, "available": room if available is None else min(available, room), "limit": limit}


def _least(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None  # "max": no limit


def _cgroups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's cgroup and all above it, of version 2 or of version 1's `controller`.

    A container may see its own group at the top of the tree or at its full path: both are looked at.
    """
    found: list[Path] = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, names, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not names:
            top = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        place = top / path.lstrip("/")
        while place != top and top in place.parents:
            found.append(place)
            place = place.parent
        found.append(top)
    return [folder for folder in found if folder.is_dir()]


def _cpu_limit(folder: Path) -> float | None:
    """Cores that a cgroup may use: quota over period, of version 2 (cpu.max) or 1."""
    words = (_read(folder / "cpu.max") or "").split()
    quota = _number(words[0] if words else _read(folder / "cpu.cfs_quota_us"))
    period = _number(words[1] if len(words) > 1 else _read(folder / "cpu.cfs_period_us"))
    return quota / period if quota and period and quota > 0 else None


def _memory_limit(folder: Path) -> tuple[int, int] | None:
    """(limit, used) in bytes of a cgroup. Pages of files that could be dropped do not count as used."""
    limit = _number(_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes"))
    if limit is None:
        return None
    used = _number(_read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")) or 0
    droppable = 0
    for line in (_read(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            droppable = max(droppable, _number(value) or 0)
    return limit, max(0, used - droppable)


def _meminfo(path: Path) -> tuple[int | None, int | None]:
    fields = {}
    for line in (_read(path) or "").splitlines():
        name, _, value = line.partition(":")
        number = _number(value.strip().removesuffix(" kB"))
        if number is not None:
            fields[name] = number * 1024
    if "MemTotal" not in fields and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    return fields.get("MemTotal"), fields.get("MemAvailable")


def processor(root: Path = Path("/")) -> dict[str, Any]:
    """The processor's `name`, `architecture` and `instructions` {set: bool}; None where the machine does not say."""
    name, flags = None, None
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Processor", "uarch") and name is None:
            name = value.strip()
        elif key.strip() in ("flags", "Features") and flags is None:
            flags = set(value.split())
    known = None if flags is None else {each: any(f in flags for f in names) for each, names in INSTRUCTIONS.items()}
    return {"name": name or platform.processor() or None, "architecture": platform.machine(), "instructions": known}


def quiet_compiling() -> None:
    """Before torch compiles: leave out its line on a CUDA toolkit without a GPU, which says nothing of what is compiled for
    a CPU. A level that someone set stays."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)


def compiler() -> dict[str, Any]:
    """Whether torch.compile can work on this CPU: its C++ compiler, Python's headers, and one small library built with
    both, with OpenMP. `why` says what is missing where it does not work."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    path = shutil.which(name)
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    found: dict[str, Any] = {"path": path, "headers": str(headers) if headers.exists() else None}
    if path is None:
        others = [each for each in ("g++", "clang++", "c++") if shutil.which(each)]
        hint = f"; set CXX={others[0]}" if others else "; install one, such as the package g++"
        return {**found, "works": False, "why": f"no C++ compiler '{name}'{hint}"}
    if found["headers"] is None:
        return {
            **found,
            "works": False,
            "why": f"no Python.h in {headers.parent}; install Python's development package",
        }
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <Python.h>\n#include <omp.h>\nint probe() { return omp_get_max_threads(); }\n")
        command = [path, "-shared", "-fPIC", "-fopenmp", f"-I{headers.parent}", str(source), "-o", f"{folder}/probe.so"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return {**found, "works": False, "why": f"{path} could not be run: {error}"}
    if done.returncode:
        return {
            **found,
            "works": False,
            "why": f"{path} failed: {(done.stderr.strip().splitlines() or ['?'])[0][:200]}",
        }
    return {**found, "works": True, "why": None}
