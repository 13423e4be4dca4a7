"""The settings of pretraining, and what of them does not go together."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lmlab.config import Config, under
from lmlab.corpus.mixture import MixtureConfig
from lmlab.errors import nearest
from lmlab.model.settings import Architecture
from lmlab.objective.build import problems
from lmlab.objective.settings import CausalLM, ObjectiveConfig
from lmlab.trackers import LogTo
from lmlab.train.live import LiveConfig
from lmlab.train.measures import NO_NOISE
from lmlab.train.optimizer import OptimizerConfig, OptimizerName
from lmlab.train.parallel import ParallelConfig
from lmlab.train.parallel.schedules import bubble_share
from lmlab.train.plan import Shape
from lmlab.train.published import PUBLISHED, settings_of
from lmlab.train.ramp import RampConfig
from lmlab.train.schedule import ScheduleConfig, ScheduleName
from lmlab.train.stability import SpikeConfig


class PretrainOptimizer(OptimizerConfig):
    """As `OptimizerConfig`, with pretraining's own defaults, which stay where only some of them are set."""

    name: OptimizerName = "muon"
    learning_rate: float = Field(default=1.6e-2, gt=0)
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    weight_decay: float | Literal["lr^2"] = 0.0


class PretrainSchedule(ScheduleConfig):
    """As `ScheduleConfig`, with pretraining's own defaults."""

    name: ScheduleName = "wsd"
    warmup: float = Field(default=10, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)
    decay_fraction: float = Field(default=0.6, gt=0, le=1)


class PretrainConfig(Config):
    """Settings of pretraining. With `minutes` the shape, steps and precision are sized to this machine."""

    apart: ClassVar[frozenset[str]] = frozenset({"parallel", "live", "log_to", "keep_best", "keep_every"})

    published: str | None = None
    """The optimisation settings of a published model, where the recipe is silent: gpt3-175b, palm-540b, llama-7b, glm-130b and
    others (docs/training.md)."""
    minutes: float | None = Field(default=4.0, gt=0)
    """The dial: minutes of training. What follows from it is printed and written to plan.json before the first step."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, instead of what the minutes allow."""
    model: Shape = Shape()
    objective: ObjectiveConfig = CausalLM()
    """What is predicted from what: a name, or a mapping of `name` and settings; docs/objectives.md says what goes with
    which architecture."""
    tokens_per_parameter: float = Field(default=2.0, gt=0)
    """How the dial trades width for steps. Compute-optimal training of large models takes about 20 (2203.15556); in a few
    minutes on a small corpus far fewer are best (measured, docs/lab-notes.md)."""
    batch_tokens: int = Field(default=2048, ge=1)
    """Tokens an optimizer step; with `batch_ramp` of the full size."""
    batch_ramp: RampConfig | None = None
    """How the batch grows to its full size."""
    micro_batches: int = Field(default=1, ge=1)
    separate_documents: bool = True
    """Documents that share a window do not see each other."""
    mixture: MixtureConfig | None = None
    """How much of what is seen comes from each source of the corpus; null: all documents, equally often."""
    optimizer: PretrainOptimizer = PretrainOptimizer()
    schedule: PretrainSchedule = PretrainSchedule()
    clip: float = Field(default=1.0, ge=0)
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of log^2 Z beside the loss, Z the softmax's normaliser (PaLM: 1e-4)."""
    spikes: SpikeConfig = SpikeConfig()
    embedding_gradient: float = Field(default=1.0, gt=0, le=1)
    """The gradient that reaches the embedding from its lookups is multiplied by this (GLM-130B: 0.1)."""
    ema: float | None = Field(default=None, ge=0, lt=1)
    """Save the running mean of the weights with this decay as the model."""
    layer_norms_every: int | None = Field(default=None, ge=1)
    noise_scale_every: int | None = Field(default=None, ge=1)
    """Log the gradients' norm by layer, and the gradient noise scale (at least 2 micro-batches), every so many steps."""
    precision: Literal["auto", "float32", "float32-onednn", "bfloat16", "float16", "float8"] = "auto"
    """auto: the fastest that a few measured steps find; never float16, which bfloat16 makes needless where there is both, nor
    float8, which rounds more (GPUs of compute capability 8.9 or later)."""
    loss_scale: float = Field(default=65536.0, gt=0)
    """float16: the scale of the loss that is begun with."""
    kernel: Literal["auto", "math", "sdpa"] = "auto"
    """How attention is computed in training. auto: the faster one here, measured; it may differ in rounding."""
    compile: bool | None = None
    """null: compile where a compiler is found and the run is long enough to earn it back."""
    checkpoint_seconds: float = Field(default=60, gt=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept, the newest; also the best so many, by training loss, and for good every so many steps."""
    keep_best: int = Field(default=1, ge=0)
    keep_every: int | None = Field(default=None, ge=1)
    parallel: ParallelConfig = ParallelConfig()
    """How several processes (torchrun) share the work."""
    live: LiveConfig = LiveConfig()
    """What `lmlab watch` shows of a run beside its curves."""
    log_to: LogTo = None
    """Where the numbers go beside metrics.jsonl: tensorboard, wandb (each an extra); null: tensorboard where installed."""
    before: bool = True
    """Measure the model before training too."""
    baselines: bool = True
    """Measure xz and the n-gram model on the same held-out bytes."""
    lengths: tuple[int, ...] = ()
    """Also measure the held-out text in windows of these multiples of the context, such as [1, 2, 4, 8]; each divides
    the largest (`bits_per_byte.by_length`, `lmlab/train/lengths.py`)."""
    copying: int = Field(default=0, ge=0)
    """Measure copying from context on so many rows of random tokens that come twice (causal decoders)."""
    prompts: tuple[str, ...] = ("def ", "import ", "Return ", "The ")
    """Beginnings that the report shows continued."""

    @field_validator("lengths")
    @classmethod
    def _nested(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if any(each < 1 or max(lengths) % each for each in lengths):
            raise ValueError(f"expected whole multiples of which each divides the largest, found {list(lengths)}")
        return lengths

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: Any) -> Any:
        """Fill in a published model's settings under those of the recipe."""
        name = given.get("published") if isinstance(given, dict) else None
        if name is None:
            return given
        if name not in PUBLISHED:
            raise ValueError(f"published: no settings of '{name}'{nearest(str(name), PUBLISHED)}")
        full, ramp = given.get("batch_tokens"), given.get("batch_ramp")
        scaled = isinstance(full, int) and not (isinstance(ramp, dict) and "stages" in ramp)
        return under(settings_of(name, full if scaled else None), given)

    @model_validator(mode="after")
    def _stages_reach_the_full_size(self) -> PretrainConfig:
        stages = () if self.batch_ramp is None else self.batch_ramp.stages
        if stages and stages[-1][1] != self.batch_tokens:
            raise ValueError(
                f"batch_ramp.stages end with {stages[-1][1]:,} tokens and batch_tokens, the full size, is "
                f"{self.batch_tokens:,}: expected the same"
            )
        return self

    @model_validator(mode="after")
    def _noise_can_be_told(self) -> PretrainConfig:
        if self.noise_scale_every and self.micro_batches < 2:
            raise ValueError(
                "noise_scale_every needs micro_batches of at least 2: the noise is told from their differences"
            )
        if self.noise_scale_every and max(self.parallel.tensor, self.parallel.pipeline, self.parallel.expert) > 1:
            raise ValueError(NO_NOISE)
        return self

    @model_validator(mode="after")
    def _pipeline_is_filled(self) -> PretrainConfig:
        if self.micro_batches < self.parallel.pipeline:
            raise ValueError(
                f"parallel.pipeline {self.parallel.pipeline} needs micro_batches of at least as many, better four times (the "
                f"stages wait for {bubble_share(self.parallel.pipeline, 4 * self.parallel.pipeline):.0%} of the time then); "
                f"found {self.micro_batches}"
            )
        return self

    @model_validator(mode="after")
    def _carried(self) -> PretrainConfig:
        """What the architecture cannot carry is refused when the recipe is read."""
        found = self.misfits(self.model.architecture, self.model.position)
        if found:
            raise ValueError("; ".join(found))
        return self

    def misfits(self, architecture: Architecture, position: str) -> list[str]:
        """What such a model cannot carry of these settings."""
        found = list(problems(self.objective, architecture, position, self.model.context_length))
        causal = architecture == "causal-decoder"
        if self.copying and not causal:
            found.append("copying is measured on causal decoders")
        if self.lengths and not (causal and isinstance(self.objective, CausalLM)):
            found.append("lengths reads plain text in longer windows: it belongs to a causal-decoder and causal-lm")
        return found
