"""What the runs of a recipe have in common: stages of equal fingerprint, made once; failures, after which the others go on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmlab.config import Config
from lmlab.errors import Failed, Stopped
from lmlab.progress import say
from lmlab.run import StageKind, TogetherFailed, finished, identity, write_json


class ArmsFailed(Failed):
    """Some runs of a grid failed; the others went on."""


@dataclass
class Grid:
    """Arms ("" for the recipe as it stands) and seeds below `out`; stages made, by what they are made of; such stages that
    failed, with the reason; and the runs that failed, `ARM/seed-N`."""

    out: Path
    arms: Sequence[str]
    seeds: Sequence[int]
    places: dict[str, Path] = field(default_factory=dict)
    hopeless: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        return len(self.arms) == 1 and len(self.seeds) == 1

    def write(self) -> None:
        """arms.json: the arms in their order, the seeds, what failed. Nothing for a lone run."""
        if not self.single:
            arms = [arm or "run" for arm in self.arms]
            write_json(self.out / "arms.json", {"arms": arms, "seeds": list(self.seeds), "failed": self.failed})

    def runs(self) -> Iterator[tuple[str, int, Path]]:
        """(arm, seed, directory) of each run, in order."""
        for arm in self.arms:
            for seed in self.seeds:
                yield arm, seed, self.out if self.single else self.out / (arm or "run") / f"seed-{seed}"

    @contextlib.contextmanager
    def others_go_on(self, arm: str, seed: int) -> Iterator[None]:
        """A run that fails is noted and left; a lone run raises, and so do what several processes did together and a stop."""
        place = f"{arm or 'run'}/seed-{seed}"
        try:
            yield
        except Failed as error:
            if self.single or isinstance(error, (TogetherFailed, Stopped)):
                raise
            self.failed[place] = str(error)
            say(f"{place}: failed: {error}")

    def finish(self) -> None:
        """Raises ArmsFailed where a run failed."""
        if self.failed:
            self.write()
            every = len(self.arms) * len(self.seeds)
            lines = [f"{place}: {reason}" for place, reason in self.failed.items()]
            found = f"{self.out}: {len(lines)} of {every} runs failed; the others are done"
            raise ArmsFailed("\n  ".join([found, *lines]))

    def share(self, out: Path, key: str) -> None:
        """Arms share a stage of equal fingerprint: a relative link to the one that was made first. Raises Failed where
        that one failed."""
        if key in self.hopeless:
            raise Failed(self.hopeless[key])
        twin = self.places.get(key)
        if twin is not None and twin.resolve() != out.resolve() and not out.exists() and finished(twin):
            out.parent.mkdir(parents=True, exist_ok=True)
            out.symlink_to(os.path.relpath(twin.resolve(), out.parent.resolve()))


def key_of(kind: str, spec: StageKind, config: Config, seed: int, inputs: Mapping[str, Any]) -> str:
    """What a stage is made of, as a text: equal for those that can be shared."""
    places = {r: sorted(map(identity, p.values())) if isinstance(p, dict) else identity(p) for r, p in inputs.items()}
    return f"{kind} {json.dumps(config.essence())} {seed if spec.seeded else '-'} {places}"
