"""How to train, whatever the stage: the settings of the one trainer."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lmlab.config import Config
from lmlab.trackers import LogTo
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.schedule import ScheduleConfig
from lmlab.train.stability import SpikeConfig


class TrainConfig(Config):
    """How to train; what to train and on what is the stage's."""

    apart: ClassVar[frozenset[str]] = frozenset({"keep_best", "keep_every", "log_to"})

    steps: int = Field(default=100, ge=0)
    """Optimizer steps."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    precision: Literal["float32", "float32-onednn", "bfloat16", "float16", "float8"] = "float32"
    """bfloat16, float16: matrix products in these, weights and sums in float32 (autocast); float16 scales the loss.
    float32-onednn: float32 products through oneDNN, the faster library on some processors; on one with amx_bf16 it rounds what
    it multiplies to bfloat16. float8: the matrices of blocks in 8 bits, the rest as bfloat16; only on GPUs that have it."""
    loss_scale: float = Field(default=65536.0, gt=0)
    """float16: the scale that is begun with; it is halved and doubled as gradients overflow or do not."""
    compile: bool = False
    """Compile the step with torch.compile (needs a C++ compiler; shapes must not change)."""
    spikes: SpikeConfig = SpikeConfig()
    embedding_gradient: float = Field(default=1.0, gt=0, le=1)
    """The gradient that reaches the embedding from its lookups is multiplied by this (GLM-130B: 0.1, 2210.02414)."""
    ema: float | None = Field(default=None, ge=0, lt=1)
    """Save the running mean of the weights with this decay as the model, instead of the last weights."""
    layer_norms_every: int | None = Field(default=None, ge=1)
    """Log the gradients' norm by layer every so many steps."""
    noise_scale_every: int | None = Field(default=None, ge=1)
    """Log the gradient noise scale every so many steps; it needs at least two micro-batches, and keeps two copies of the
    gradients while it is measured."""
    checkpoint_seconds: float = Field(default=60, gt=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Also every so many steps."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept, the newest. Spike policies that go back keep those that they may need."""
    keep_best: int = Field(default=1, ge=0)
    """Also the best so many: by the mean training loss of the last `spikes.window` quiet steps."""
    keep_every: int | None = Field(default=None, ge=1)
    """Also, for good, those of a multiple of so many steps."""
    log_to: LogTo = None
    """Where the numbers go beside metrics.jsonl: tensorboard, wandb (each an extra); null: tensorboard where installed."""
