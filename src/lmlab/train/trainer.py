"""The one trainer. Every learning stage gives it batches and an objective; it minimises

    sum over terms of  weight x (the term's sum over the optimizer step) / (its count over the optimizer step)

so that accumulation, packing and layout cannot change what is learnt.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lmlab.errors import Failed, Stopped
from lmlab.progress import bar, say
from lmlab.run import Context, write_json
from lmlab.train import checkpoint
from lmlab.train.ahead import Ahead
from lmlab.train.average import Average, beside
from lmlab.train.collector import young_collections
from lmlab.train.keeping import Keep
from lmlab.train.loss_scale import LossScale
from lmlab.train.measures import NoiseScale, layer_norms
from lmlab.train.optimizer import clip, make_optimizers, set_rate
from lmlab.train.parallel.apply import parallelize
from lmlab.train.parallel.eight_bits import from_float8
from lmlab.train.parallel.layout import Layout
from lmlab.train.ramp import Batches
from lmlab.train.schedule import rate
from lmlab.train.stability import INTERVENTIONS, Detector, Journal
from lmlab.train.step import Objective, Source, make_step, matrix_library, pinned, seed_step
from lmlab.train.stop import Stop
from lmlab.train.train_config import TrainConfig


def fit(
    network: nn.Module,
    objective: Objective,
    source: Source,
    config: TrainConfig,
    context: Context,
    *,
    tokens: Callable[[Any], int] | None = None,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    folder: Path | None = None,
    batches: Batches | None = None,
    layout: Layout | None = None,
) -> dict[str, float]:
    """Train for `config.steps` steps, from the newest good checkpoint if there is one. Returns the last step's metrics.

    `layout` says which rank does what. Every rank calls with the same network, whole, which is made this rank's part of it
    (`checkpoint.gathered` gives the whole back), and with a source of its own share of every batch (`layout.share`).

    Dropout and whatever else draws from torch's generator is seeded by (seed, step), so a resumed run draws what an
    uninterrupted one would. `batches` tells how batches grow, for schedules that count tokens. Raises Failed when the loss
    is not a number and no policy deals with it, before the weights are touched; what made it is written to bad-batch files.
    Raises Stopped after SIGTERM to any rank, when all have finished the step and saved.
    """
    place = folder or context.out / "checkpoints"
    context.metrics.track(config.log_to, {} if context.config is None else context.config.model_dump(mode="json"))
    run = _Run(network, objective, source, config, context, tokens, place, batches, layout or Layout())
    try:
        return run.through(on_step)
    finally:
        run.close()


class _Run:
    """What a training run holds between its steps."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        source: Source,
        config: TrainConfig,
        context: Context,
        tokens: Callable[[Any], int] | None,
        folder: Path,
        batches: Batches | None,
        layout: Layout,
    ) -> None:
        self.layout = layout
        self.network = parallelize(network, layout, config.compile, config.precision)
        self.objective, self.source = objective, source
        self.config, self.context, self.tokens, self.folder, self.batches = config, context, tokens, folder, batches
        self.optimizers = make_optimizers(network, config.optimizer, layout.owns)
        self.accumulate = make_step(network, objective, layout, config.precision, config.compile)
        self.trained = [p for p in network.parameters() if p.requires_grad]
        self.measured = [p for n, p in network.named_parameters() if p.requires_grad and layout.counts(n)]
        self.average = Average(network, config.ema) if config.ema is not None else None
        self.detector, self.journal = Detector(config.spikes), Journal()
        self.loss_scale = LossScale(config.precision == "float16", config.loss_scale)
        self.noise = NoiseScale(self.trained, layout) if config.noise_scale_every else None
        self.metrics: dict[str, float] = {}
        self.saved = time.monotonic()
        self.hooks = _shrink_embedding_gradient(network, config.embedding_gradient)
        keep = Keep(config.keep, config.keep_best, config.keep_every)
        self.checkpoints = checkpoint.Checkpoints(folder, layout, keep)
        device = layout.world.device
        self.ahead = Ahead(source, lambda batches: pinned([layout.cut(batch) for batch in batches], device))

    def through(self, on_step: Callable[[int, Mapping[str, float]], None] | None) -> dict[str, float]:
        """All steps that are left."""
        context, config = self.context, self.config
        step = start = self.restore()
        with contextlib.suppress(Failed):  # a full disk
            context.tick(steps=config.steps)  # for whoever looks on
        if start == 0 and self._goes_back and config.steps:
            self.save(0)
        with (
            young_collections(),
            beside(self.network, self.average),
            matrix_library(config.precision),
            bar(context.name, config.steps, start) as advance,
            Stop() as stop,
        ):
            while step < config.steps:
                stopping = self.layout.any(stop.asked) and self.may_save(step)
                if step > start and (self.due(step) or stopping):
                    self.save(step, wait=stopping)
                if stopping:
                    raise self._stopped(step)
                seed_step(context.seed, step, self.layout)
                back = self.step(step)
                if back is not None:
                    advance(back - step, f"back to step {back}")
                    step = start = back
                    continue
                context.metrics.log(step, self.metrics)
                advance(1, f"loss {self.metrics.get('loss', math.nan):.3f}")
                if on_step is not None:
                    on_step(step, self.metrics)
                step += 1
            if config.steps > start:
                self.save(config.steps, wait=True)
            if self.layout.any(stop.asked):
                raise self._stopped(config.steps)
        if self.average is not None:
            self.average.put()
        self.network.eval()
        return self.metrics

    def _stopped(self, step: int) -> Stopped:
        return Stopped(
            f"{self.context.name}: stopped before step {step} and saved; the same command goes on from there"
        )

    def close(self) -> None:
        with contextlib.suppress(Exception):  # else it would hide what ended the run
            self.checkpoints.settle()
        self.ahead.close()
        for hook in self.hooks:
            hook.remove()
        from_float8(self.network)

    @property
    def _goes_back(self) -> bool:
        return self.config.spikes.policy in ("rewind", "lower")

    @property
    def _journal_file(self) -> Path:
        return self.folder.parent / INTERVENTIONS

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def restore(self) -> int:
        """Load the newest good checkpoint that no intervention went back behind; the step that follows it, 0 for none."""
        self.journal = Journal.read(self.folder.parent)
        more = {} if self.average is None else {"average": self.average.restore}
        wanted = self._outdated
        state = self.checkpoints.restore(self.network, self.optimizers, more, lambda s: not wanted(s))
        step = int(state["step"]) if state else 0
        for path in checkpoint.listed(self.folder) if self.layout.leads else ():
            if checkpoint.step_of(path) > step and self.journal.entries:
                checkpoint.remove(path)  # of a past that was taken back
        if state and hasattr(self.source, "restore"):
            self.source.restore(state.get("source"))  # type: ignore[attr-defined]
        self.metrics = dict(state.get("metrics", {})) if state else {}
        self.detector.restore(state.get("detector") if state else None)
        self.loss_scale.load(state.get("loss_scale") if state else None)
        self.context.metrics.rewind(step)
        return step

    def _outdated(self, state: Mapping[str, Any]) -> bool:
        return self.journal.outdated(int(state["step"]), int(state.get("interventions", 0)))

    def save(self, step: int, wait: bool = False) -> None:
        """Save beside training, or with `wait` before this returns. What cannot be saved beside training is said and the run
        goes on: it would lose more by stopping. Raises Failed with `wait`."""
        extra = self.source.state() if hasattr(self.source, "state") else None  # type: ignore[attr-defined]
        state = {
            "metrics": self.metrics,
            "source": extra,
            "detector": self.detector.state(),
            "loss_scale": self.loss_scale.state(),
            "interventions": len(self.journal.entries),
            "score": statistics.fmean(self.detector.losses) if self.detector.losses else None,
        }
        more = {} if self.average is None else {"average": self.average.state()}
        back = step - self.config.spikes.back if self._goes_back else None
        self.checkpoints.save(step, self.network, self.optimizers, state, more, back)
        if wait and (problem := self.checkpoints.settle()) is not None:
            raise Failed(f"{problem}; not saved: the checkpoints before it are untouched")
        with contextlib.suppress(Failed):  # a full disk: the seconds so far are not worth the run
            self.context.tick()
        self.saved = time.monotonic()

    def may_save(self, step: int) -> bool:
        """May a checkpoint be taken before this step?"""
        boundary = getattr(self.source, "boundary", None)
        return boundary is None or boundary(step)

    def due(self, step: int) -> bool:
        """May a checkpoint be taken before this step, and is it time?"""
        if not self.may_save(step):
            return False
        config = self.config
        every = config.checkpoint_steps or (max(1, config.spikes.back // 2) if self._goes_back else None)
        late = time.monotonic() - self.saved >= config.checkpoint_seconds
        return bool(every and step % every == 0) or bool(self.layout.agree(late))

    # --- one step ----------------------------------------------------------------------------------------------------

    def step(self, step: int) -> int | None:
        """Take one optimizer step; its numbers are in `metrics`. Returns the step to go back to, or None."""
        begun = time.monotonic()
        following = self.journal.data_step(step + 1) if step + 1 < self.config.steps else None
        batches = self.ahead(self.journal.data_step(step), following)
        self.network.train()
        measured = self.noise if self.noise and step % (self.config.noise_scale_every or 1) == 0 else None
        scale = self.loss_scale.scale
        after_each = measured.begin(scale) if measured else None
        metrics = self.accumulate(batches, after_each, scale)
        self.layout.finish(self.network)
        self.loss_scale.unscale(self.trained)
        if self.config.layer_norms_every and step % self.config.layer_norms_every == 0:
            metrics |= self.layout.along(layer_norms(self.network))
        metrics["grad_norm"] = clip(self.trained, self.config.clip, self.layout.norm, self.measured)
        metrics["loss"] = self.layout.agree(metrics["loss"])  # what is done about a spike follows from these two
        overflown = self.loss_scale.overflown(metrics["loss"], metrics["grad_norm"])
        if measured is not None and not overflown:
            metrics |= measured.end([sum(self.objective.count(batch).values()) for batch in batches])
        if self.loss_scale.on:
            metrics["loss_scale"] = scale
        reason = None if overflown else self._spike(step, metrics)
        if reason is not None:
            self._clear()
            back = self._intervene(step, reason, batches, _finite(metrics))
            if back is not None:
                return back
        metrics["lr"] = set_rate(self.optimizers, self._rate(step))
        if overflown or reason is not None:
            metrics["skipped"] = 1
        else:
            for optimizer in self.optimizers:
                optimizer.step()
            self.layout.spread(self.network)
            if self.average is not None:
                self.average.update()
        self._clear()
        if self.tokens is not None:
            metrics["tokens"] = self.layout.sums({"tokens": sum(self.tokens(batch) for batch in batches)})["tokens"]
            metrics["tokens_per_second"] = metrics["tokens"] / (time.monotonic() - begun)
        metrics["input_wait"] = round(self.ahead.waited, 6)
        metrics["seconds"] = round(self.context.seconds, 3)
        self.metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return None

    def _clear(self) -> None:
        self.network.zero_grad(set_to_none=True)

    def _rate(self, step: int) -> float:
        """Fraction of the peak: the schedule's, times the answer to the batch's size, times what interventions lowered."""
        schedule, batches = self.config.schedule, self.batches
        factor = self.journal.factor(step) * (batches.share(step) if batches else 1.0)
        if schedule.unit == "steps":
            return rate(schedule, step, self.config.steps) * factor
        if batches is None:
            raise Failed(f"{self.context.name}: this stage's schedule cannot count tokens: set schedule.unit to steps")
        done, following = batches.tokens_before(step), batches.tokens_before(step + 1)
        return rate(schedule, done, batches.tokens_before(self.config.steps), following - done) * factor

    # --- spikes ------------------------------------------------------------------------------------------------------

    def _spike(self, step: int, metrics: dict[str, float]) -> str | None:
        """Why something must be done about this step, or None. Every spike is marked in the log, acted on or not."""
        found = self.detector.reason(metrics["loss"], metrics["grad_norm"])
        if found is None:
            return None
        metrics["spike"] = 1
        if not _finite(metrics) or self.config.spikes.policy == "skip":
            return found
        enough = self.detector.in_a_row >= self.config.spikes.patience and not self.journal.answered(step)
        return found if self._goes_back and enough else None

    def _intervene(self, step: int, reason: str, batches: list[Any], finite: bool) -> int | None:
        """Do what the policy says about a spike at `step`. Returns the step to go back to, or None to leave this one out."""
        spikes, where = self.config.spikes, f"{self.context.name}: {reason} at step {step}"
        if not finite:
            own = f"-rank-{self.layout.world.rank}" if self.layout.world.rank else ""
            place = checkpoint.write_batches(self.context.out / f"bad-batch-{step:08d}{own}.safetensors", batches)
            where += f" (its batch is in {place})"
        if spikes.policy == "none":
            raise Failed(f"{where}; the weights are untouched")
        if spikes.policy == "lower" and self.journal.answered(step):  # a lower rate does not mend a number that is none
            say(f"{where}: left out, after the rate was lowered for it")
            return None
        if len(self.journal.entries) >= spikes.most:
            raise Failed(
                f"{where}, after {spikes.most} interventions (spikes.most): something else is wrong; they are listed in "
                f"{self._journal_file}"
            )
        target = self._checkpoint_before(step - spikes.back) if self._goes_back else step
        entry = self.journal.add(step, target, reason, spikes)
        if self.layout.leads:
            write_json(self._journal_file, self.journal.entries)
        self.layout.barrier()
        say(f"{where}: {entry['policy']}" + (f", back to step {target}" if self._goes_back else " this step"))
        return self.restore() if self._goes_back else None

    def _checkpoint_before(self, step: int) -> int:
        """The newest good checkpoint at or before a step, else the oldest there is: as rank 0 finds them."""
        self.checkpoints.settle()
        found = checkpoint.listed(self.folder) if self.layout.leads else []
        steps = [checkpoint.step_of(path) for path in found if checkpoint.good(path)]
        return int(self.layout.agree(max((each for each in steps if each <= step), default=min(steps, default=0))))


def _finite(metrics: Mapping[str, float]) -> bool:
    return math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])


def _shrink_embedding_gradient(network: nn.Module, factor: float) -> list[Any]:
    """x <- a x + (1 - a) x.detach() behind every embedding of tokens: the same values, a times the gradient. The hooks."""
    if factor == 1.0:
        return []
    tables = [module for name, module in network.named_modules() if name.split(".")[-1] == "embedding"]
    return [table.register_forward_hook(lambda _, __, x: factor * x + (1 - factor) * x.detach()) for table in tables]
