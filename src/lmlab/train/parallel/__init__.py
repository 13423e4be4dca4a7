"""Training on several ranks: processes (world.py), which rank does what (layout.py), and the network made so (apply.py)."""

from lmlab.train.parallel.layout import Layout, ParallelConfig, misfits
from lmlab.train.parallel.world import World, join

__all__ = ["Layout", "ParallelConfig", "World", "join", "misfits"]
