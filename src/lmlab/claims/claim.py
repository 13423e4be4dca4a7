"""A claim: a sentence of the survey and the experiment that small models can put to it, one YAML file in survey/."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from lmlab.claims.measures import MEASURES
from lmlab.claims.verdict import Claimed
from lmlab.config import Config, Document, parse_path, read, under, validate
from lmlab.errors import Refused, nearest
from lmlab.run import digest

HERE = Path(__file__).parent
Scale = Literal["small", "medium", "large"]
SCALES: tuple[Scale, ...] = ("small", "medium", "large")


class Comparison(Config):
    """Two arms, a measure, and what is claimed of the second beside the first."""

    measure: str
    first: str
    second: str
    claimed: Claimed = "better"
    stage: str = "pretrain"
    """The stage whose results hold the number."""
    path: str = ""
    """Where in its results.json; left out, the measure's own place."""
    shift: int = Field(default=0, ge=0)
    """The second arm's runs are those of the seeds so many further on (the control that compares a recipe with itself)."""

    @model_validator(mode="after")
    def _known(self) -> Comparison:
        if self.measure not in MEASURES:
            raise ValueError(f"measure '{self.measure}': there is none of that name{nearest(self.measure, MEASURES)}")
        return self


class Made(Config):
    """A text that the claim makes (texts.py); a source of the recipe names it as `text:NAME`."""

    kind: Literal["copies", "noise"]
    documents: int = Field(ge=1)


class Claim(Config):
    """A claim's file. `recipe` is laid over base.yaml; `medium` and `large` change settings of it for a GPU, and in `arms`
    and `texts` those."""

    sentence: str
    section: str
    """Of the survey (arXiv 2303.18223)."""
    design: str
    """What is done, and why this puts the sentence to the test."""
    earlier: list[str] = Field(default_factory=list)
    """Designs that were run before this one, with what they gave: they are kept and shown."""
    remark: str = ""
    """What is to be known beside the verdict, written after the run."""
    switch: list[str] = Field(min_length=1)
    """The setting in which the arms differ; several only `because` they are one choice."""
    because: str = ""
    equal: Literal["flops", "tokens"] | None = None
    """Each arm after the first trains for as many steps as bring it to the first one's FLOPs, or tokens read."""
    arms: dict[str, dict[str, Any]] = Field(min_length=2)
    compare: list[Comparison] = Field(min_length=1)
    seeds: int = Field(default=5, ge=3)
    control: Literal["positive", "negative"] | None = None
    """A difference known to be there, or known not to be: what the other claims' verdicts rest on."""
    texts: dict[str, Made] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    medium: dict[str, Any] = Field(default_factory=dict)
    large: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Claim:
        for each in self.compare:
            for arm in (each.first, each.second):
                if arm not in self.arms:
                    raise ValueError(f"compare: there is no arm '{arm}'{nearest(arm, self.arms)}")
        changed = {path for settings in self.arms.values() for path in settings}
        for path in sorted(changed - set(self.switch)):
            raise ValueError(f"arms differ in {path}, which is no part of the switch ({', '.join(self.switch)})")
        if len(self.switch) > 1 and not self.because:
            raise ValueError("the switch has several settings; say because of what they are one choice")
        return self

    def of(self, scale: Scale) -> dict[str, Any]:
        """What the claim says for a scale."""
        return {} if scale == "small" else self.medium if scale == "medium" else self.large

    def made(self, scale: Scale) -> dict[str, Made]:
        """The texts of a scale."""
        return {
            **self.texts,
            **{name: Made.model_validate(made) for name, made in self.of(scale).get("texts", {}).items()},
        }

    def identity(self, scale: Scale) -> str:
        """What the experiment is at a scale, words and the number of seeds apart: results are results of this."""
        apart = {"sentence", "section", "design", "because", "earlier", "remark", "seeds", "medium", "large"}
        own = [self.model_dump(mode="json", exclude=apart), self.of(scale)]
        return digest([*own, _plain("base"), _plain("scales")[scale]])


def shipped() -> dict[str, Path]:
    """The claims inside the package, by name: the survey's in its order, the controls last."""
    found = {path.stem: path for path in (HERE / "survey").glob("*.yaml")}
    places = {name: (claim.control is not None, claim.section, name) for name, claim in _all(found).items()}
    return {name: found[name] for name in sorted(found, key=places.__getitem__)}


def _all(found: Mapping[str, Path]) -> dict[str, Claim]:
    return {name: read_claim(path) for name, path in found.items()}


def read_claim(path: Path) -> Claim:
    """Raises Refused with file, line and what is expected."""
    document = read(path)
    return validate(Claim, document.data, document)


def load(reference: str) -> tuple[str, Claim]:
    """The name and the claim of a shipped one or of a file. Raises Refused."""
    path = Path(reference)
    if not (path.is_file() and path.suffix == ".yaml"):
        known = {each.stem: each for each in (HERE / "survey").glob("*.yaml")}
        if reference not in known:
            raise Refused(f"claim '{reference}': no such file, and no claim of that name{nearest(reference, known)}")
        path = known[reference]
    return path.stem, read_claim(path)


def chosen(settings: Sequence[str], scale: Scale, seeds: int | None) -> tuple[Scale, int | None]:
    """`scale` and `seeds` with KEY=VALUE settings over them, as recipes take theirs. Raises Refused."""
    for each in settings:
        key, found, value = each.partition("=")
        if not found or key not in ("scale", "seeds"):
            raise Refused(f"claims: '{each}': expected scale=SCALE or seeds=COUNT; a claim's recipe stands in its file")
        if key == "scale":
            if value not in SCALES:
                raise Refused(f"claims: scale={value}: there is no such scale{nearest(value, SCALES)}")
            scale = next(known for known in SCALES if known == value)
        elif not value.isdecimal():
            raise Refused(f"claims: seeds={value}: expected a whole number of at least 3")
        else:
            seeds = int(value)
    return scale, seeds


def recipe_of(claim: Claim, scale: Scale, seeds: int, texts: Path) -> Document:
    """The claim's recipe at a scale, before its steps are made equal: base.yaml, the claim's own settings over it, the
    scale's, then what the claim says for that scale. A stage set to null is left out. `texts`: the folder of the texts
    that the claim makes."""
    stages = under(_plain("base"), copy.deepcopy(claim.recipe))
    document = Document(_ordered(stages), {}, "claim")
    own = claim.of(scale)
    for path, value in {**_plain("scales")[scale], **own}.items():
        if parse_path(path)[0] in document.data:
            document.set(path, copy.deepcopy(value), (path,))
    _place(document.data, texts)
    document.data["arms"] = copy.deepcopy(under(claim.arms, own.get("arms", {})))
    shift = max(each.shift for each in claim.compare)
    document.data["seeds"] = list(range(seeds + shift))
    return document


def _plain(name: str) -> dict[str, Any]:
    return read(HERE / f"{name}.yaml").data


def _ordered(stages: dict[str, Any]) -> dict[str, Any]:
    """Without those set to null, each kind after what it needs."""
    from lmlab.recipe import KINDS

    kinds = list(KINDS)
    kept = {name: settings for name, settings in stages.items() if settings is not None}
    return dict(sorted(kept.items(), key=lambda entry: kinds.index(entry[1].get("use", entry[0]))))


def _place(tree: Any, texts: Path) -> None:
    """`text:NAME` becomes the file that NAME is written to."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if isinstance(value, str) and value.startswith("text:"):
            tree[key] = str(texts / f"{value[5:]}.jsonl")
        else:
            _place(value, texts)
