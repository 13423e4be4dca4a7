"""Small stages that the run layer's tests run: they count their work, and can be made to die in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from lmlab.config import Config
from lmlab.errors import Failed
from lmlab.run import Context, Input, StageKind, write_atomic, write_json


class Engine(Config):
    apart: ClassVar[frozenset[str]] = frozenset({"workers"})

    workers: int = 1
    batch: int = 8


class MakeConfig(Config):
    apart: ClassVar[frozenset[str]] = frozenset({"note"})

    number: int = 1
    note: str = ""
    engine: Engine = Engine()
    engines: dict[str, tuple[Engine, ...]] = {}
    die: str = ""
    fail: bool = False


def make(context: Context) -> dict[str, int]:
    log = context.out.parent / "log"
    with log.open("a") as file:
        file.write(f"{context.name}\n")
    plan = context.plan(lambda: {"attempt": log.read_text().count("\n")})
    if context.config.die and Path(context.config.die).exists():
        raise RuntimeError("died in the middle")
    if context.config.fail:
        raise Failed(f"{context.name}: the loss is nan at step 3")
    write_atomic(context.out / "made", str(context.config.number + context.seed))
    write_json(context.out / "results.json", plan)
    return {"number": context.config.number}


def add(context: Context) -> dict[str, int]:
    total = sum(int((place / "made").read_text()) for place in context.inputs["numbers"].values())
    write_atomic(context.out / "total", str(total))
    with (context.out.parent / "log").open("a") as file:
        file.write(f"{context.name}\n")
    return {"total": total}


MAKE = StageKind(config=MakeConfig, run=make)
ADD = StageKind(config=Config, run=add, inputs=(Input("numbers", ("make",), several=True),), seeded=False)
