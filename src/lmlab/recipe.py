"""A recipe: a YAML file that maps a NAME to a stage, run in order into one run directory.

    NAME: {use: KIND, from: {ROLE: OTHER}, ...settings}

Where NAME is itself a kind, `use` may be left out. `from` says which earlier stage (or a path to a stage of another run,
or for a model any MODEL: a path, hf:OWNER/NAME, preset:NAME) fills a role; left out, it is the nearest stage before that
fits. `arms:` names variants, each a mapping of settings to change; `grid:` crosses settings and `seeds:` repeats, into
`ARM/seed-N/STAGE`. Arms share every stage of equal fingerprint. `description:` is for people, `ladder:` for
`lmlab scale ladder`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.address import is_address, parse_address
from lmlab.arms import RESERVED, arms_of, stages_of
from lmlab.config import Config, Document, dump, parse, read, validate
from lmlab.errors import Failed, Refused, nearest
from lmlab.grid import ArmsFailed, Grid, key_of
from lmlab.progress import say
from lmlab.ranks import Board, together
from lmlab.run import Input, RunDirectory, StageKind, finished, follow, write_atomic

__all__ = ["KINDS", "ArmsFailed", "Recipe", "Step", "check", "kind", "load", "loads", "parsed", "run", "shipped"]

KINDS = {
    "corpus": "lmlab.corpus.stage",
    "tokenizer": "lmlab.text.stage",
    "pretrain": "lmlab.train.pretrain",
    "sft": "lmlab.instruct.sft",
    "finetune": "lmlab.instruct.finetune.stage",
    "reward": "lmlab.align.reward",
    "ppo": "lmlab.align.ppo",
    "evaluate": "lmlab.evaluate.stage",
    "abilities": "lmlab.scaling.abilities",
    "report": "lmlab.report.stage",
}
"""Each kind of stage and the module that holds it as `STAGE`; imported only to run or to check it."""


def kind(name: str) -> StageKind:
    """The stage kind of a name."""
    return importlib.import_module(KINDS[name]).STAGE


@dataclass(frozen=True)
class Step:
    """One stage of a recipe, checked: its settings typed, and for each role the names or paths that fill it."""

    name: str
    kind: str
    spec: StageKind
    config: Config
    sources: dict[str, str | list[str]]


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: arms (one, called "", without `arms` or a grid), seeds, and the steps of each arm."""

    name: str
    arms: dict[str, list[Step]]
    seeds: tuple[int, ...]
    resolved: dict[str, Any]

    @property
    def single(self) -> bool:
        return len(self.arms) == 1 and len(self.seeds) == 1


def shipped() -> dict[str, Path]:
    """The recipes inside the package, by name."""
    folder = Path(__file__).parent / "recipes"
    return {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob("*.yaml"))}


def parsed(reference: str, overrides: Sequence[str] = ()) -> tuple[Document, str]:
    """A recipe read and not yet checked, and its name: a file's path or the name of a shipped one."""
    path = Path(reference)
    if not path.is_file():
        known = shipped()
        if reference not in known:
            raise Refused(f"recipe '{reference}': no such file, and no recipe of that name{nearest(reference, known)}")
        path = known[reference]
    found = read(path)
    found.override(overrides)
    return found, path.stem


def load(reference: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe: a file's path or the name of a shipped one. Raises Refused before any work."""
    return check(*parsed(reference, overrides))


def loads(text: str, name: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """As `load`, from YAML text."""
    document = parse(text, name)
    document.override(overrides)
    return check(document, name)


def check(document: Document, name: str) -> Recipe:
    """Type every setting of a parsed recipe; gather every problem into one Refused."""
    data = document.data
    seeds = data.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise Refused(
            f"{document.at(('seeds',))}: seeds: expected a list of whole numbers such as [0, 1, 2], found {seeds}"
        )
    problems: list[str] = []
    arms: dict[str, list[Step]] = {}
    resolved: dict[str, Any] = {key: data[key] for key in RESERVED if key in data}
    for arm, settings in arms_of(document):
        try:
            arms[arm] = _steps(settings)
        except Refused as error:
            problems += [line for line in str(error).split("\n") if line not in problems]
    if problems:
        raise Refused("\n".join(problems))
    return Recipe(name, arms, tuple(dict.fromkeys(seeds)), {**resolved, **_resolved(document, arms)})


def _resolved(document: Document, arms: Mapping[str, list[Step]]) -> dict[str, Any]:
    """The stages with every default written out, as they are before an arm changes them."""
    stages = stages_of(document)
    try:
        steps = arms[""] if "" in arms else _steps(Document(stages, {}, document.source))
    except Refused:  # complete only together with an arm's settings
        return stages
    return {s.name: {"use": s.kind, "from": s.sources, **s.config.model_dump(mode="json")} for s in steps}


def _steps(document: Document) -> list[Step]:
    steps: list[Step] = []
    problems: list[str] = []
    if not document.data:
        raise Refused(f"{document.source}: names no stage (known kinds: {', '.join(KINDS)})")
    for name, given in document.data.items():
        try:
            steps.append(_step(name, {} if given is None else given, steps, document))
        except Refused as error:
            problems += str(error).split("\n")
    if problems:
        raise Refused("\n".join(problems))
    return steps


def _step(name: str, given: Any, before: list[Step], document: Document) -> Step:
    if not isinstance(given, dict):
        raise Refused(f"{document.at((name,))}: {name}: expected settings, found {given!r}")
    used = given.get("use", name)
    if used not in KINDS:
        place = document.at((name, "use") if "use" in given else (name,))
        raise Refused(f"{place}: {name}: '{used}' is no kind of stage{nearest(str(used), KINDS)}")
    spec = kind(used)
    settings = {key: value for key, value in given.items() if key not in ("use", "from")}
    config = validate(spec.config, settings, document, (name,))
    sources = _sources(name, spec, given.get("from") or {}, before, document)
    made = {step.name: step.config for step in before}
    fillers = {role: made.get(each, each) for role, each in sources.items() if isinstance(each, str)}
    problem = spec.check(config, fillers)
    if problem is not None:
        raise Refused(f"{document.at((name,))}: {name}: {problem}")
    return Step(name, used, spec, config, sources)


def _sources(
    name: str, spec: StageKind, given: Any, before: list[Step], document: Document
) -> dict[str, str | list[str]]:
    """Fill each role: as `from` says, else with the nearest stage before that fits."""
    roles = {item.role for item in spec.inputs}
    if not isinstance(given, dict):
        raise Refused(f"{document.at((name, 'from'))}: {name}.from: expected role: stage, with roles {sorted(roles)}")
    for role in given:
        if role not in roles:
            raise Refused(f"{document.at((name, 'from', role))}: {name}.from: no role '{role}'{nearest(role, roles)}")
    filled: dict[str, str | list[str]] = {}
    for item in spec.inputs:
        fitting = [step.name for step in before if step.kind in item.kinds]
        if item.role in given:
            chosen = given[item.role]
            names = chosen if isinstance(chosen, list) else [chosen]
            for each in names:
                _check_source(name, item, str(each), before, document)
            filled[item.role] = [str(n) for n in names] if item.several else str(names[-1])
        elif fitting and not item.named:
            filled[item.role] = fitting if item.several else fitting[-1]
        elif item.required:
            raise Refused(
                f"{document.at((name,))}: {name}: needs a '{item.role}': a stage of kind {' or '.join(item.kinds)} "
                f"before it, or {name}.from.{item.role}=PATH"
            )
    return filled


def _check_source(name: str, item: Input, source: str, before: list[Step], document: Document) -> None:
    named = {step.name: step.kind for step in before}
    place = f"{document.at((name, 'from', item.role))}: {name}.from.{item.role}"
    if source in named:
        if named[source] not in item.kinds:
            raise Refused(f"{place}: '{source}' is a {named[source]}, expected {' or '.join(item.kinds)}")
    elif is_address(source):
        try:
            parse_address(source)
        except Refused as error:
            raise Refused(f"{place}: {error}") from None
        if not item.addresses:
            raise Refused(f"{place}: needs weights; a model behind an address gives text only")
    elif item.model and source.startswith("preset:"):
        _models().resolve(source)  # no preset of that name is refused here
    elif item.model and source.startswith("hf:"):
        if not re.fullmatch(r"hf:[^/\s]+/[^/\s]+", source):
            raise Refused(f"{place}: '{source}': expected hf:OWNER/NAME")
    elif not Path(source).exists():
        raise Refused(f"{place}: no stage before it and no path called '{source}'{nearest(source, named)}")


def _models() -> Any:
    """What knows a MODEL: a floor above, so imported only when one is named."""
    return importlib.import_module("lmlab.model.store")


def _needed(steps: list[Step], last: str) -> set[str]:
    """The names of `last` and of every stage that it builds on."""
    by_name = {step.name: step for step in steps}
    wanted, queue = set(), [last]
    while queue:
        name = queue.pop()
        if name in by_name and name not in wanted:
            wanted.add(name)
            for filler in by_name[name].sources.values():
                queue += filler if isinstance(filler, list) else [filler]
    return wanted


def run(
    recipe: Recipe,
    out: Path,
    *,
    until: str | None = None,
    only: str | None = None,
    needs_of: str | None = None,
    fresh: bool = False,
) -> Path:
    """Run a recipe into `out`. `until` stops after a stage; `only` runs one (its inputs must be finished);
    `needs_of` runs one and what it builds on. `fresh` makes the chosen stages again. Returns `out`.

    Where a stage of an arm fails, the other arms go on, and `Failed` says at the end which did not. `arms.json` has the
    arms in their order, the seeds, and what failed.

    In one of several processes rank 0 does this, and the others join it in the stages that are distributed. Where such a
    stage fails, nothing goes on: who stands where in it is not known.
    """
    names = [step.name for step in next(iter(recipe.arms.values()))]
    for chosen in (until, only, needs_of):
        if chosen is not None and chosen not in names:
            raise Refused(f"recipe '{recipe.name}' has no stage '{chosen}'{nearest(chosen, names)}")
    grid = Grid(out, list(recipe.arms), recipe.seeds)
    chosen_steps = {arm: _chosen(steps, until, only, needs_of) for arm, steps in recipe.arms.items()}
    again = {only or needs_of or step.name for steps in chosen_steps.values() for step in steps} if fresh else set()
    _lacking(recipe, grid, chosen_steps, again)  # asked on every rank, before any waits for another
    with together() as board:
        if board is not None and board.rank > 0:
            follow(board, kind)
        else:
            _run(recipe, grid, chosen_steps, again, board)
            if board is not None:
                board.tell({"over": True})
    return out


def _run(recipe: Recipe, grid: Grid, chosen: Mapping[str, list[Step]], again: set[str], board: Board | None) -> None:
    _fetch(recipe)
    with RunDirectory(grid.out):
        write_atomic(grid.out / "recipe.yaml", dump(recipe.resolved))
        grid.write()
    for arm, seed, place in grid.runs():
        if not grid.single:
            say(f"arm {arm or 'run'}, seed {seed}")
        with RunDirectory(place, board) as directory, grid.others_go_on(arm, seed):
            for step in chosen[arm]:
                _run_step(directory, step, seed, grid, fresh=step.name in again)
    grid.finish()


def _chosen(steps: list[Step], until: str | None, only: str | None, needs_of: str | None) -> list[Step]:
    """What is asked for of an arm, in its order."""
    names = [step.name for step in steps]
    wanted = {only} if only else _needed(steps, needs_of) if needs_of else set(names)
    last = names.index(until) + 1 if until in names else len(names)
    return [step for step in steps[:last] if step.name in wanted]


def _lacking(recipe: Recipe, grid: Grid, chosen: Mapping[str, list[Step]], again: set[str]) -> None:
    """Raises Refused where this machine lacks something for a stage that is to be made: it is not finished, or made again."""
    problems = [
        f"{recipe.name}: {step.name}: {problem}"
        for arm, _, place in grid.runs()
        for step in chosen[arm]
        if (step.name in again or not finished(place / step.name))
        and (problem := step.spec.here(step.config)) is not None
    ]
    if problems:
        raise Refused("\n".join(dict.fromkeys(problems)))


def _run_step(directory: RunDirectory, step: Step, seed: int, grid: Grid, *, fresh: bool) -> None:
    inputs: dict[str, Any] = {}
    models = {item.role for item in step.spec.inputs if item.model}
    for role, filler in step.sources.items():
        names = filler if isinstance(filler, list) else [filler]
        found = {each: _place(directory.path, each, role in models) for each in names}
        inputs[role] = found if isinstance(filler, list) else found[filler]
    key = key_of(step.kind, step.spec, step.config, seed, inputs)
    grid.share(directory.path / step.name, key)
    try:
        done = directory.execute(step.name, step.kind, step.spec, step.config, seed, inputs, fresh=fresh)
    except Failed as error:
        grid.hopeless[key] = str(error)
        raise
    if done == "skipped":
        say(f"{step.name}: finished before, skipped")
    grid.places.setdefault(key, directory.path / step.name)


def _place(root: Path, source: str, model: bool = False) -> Path | str:
    """The directory of a finished stage; else, of a role that takes a MODEL, the model's own, so that its weights are in
    the identity of what is built on it. An address stays as it is."""
    if is_address(source):
        return source
    place = root / source
    if (place / "provenance.json").exists():
        return place
    if model and source.startswith(("preset:", "hf:")):
        return _models().resolve(source)
    path = Path(source)
    if path.exists() and (path.is_absolute() or not place.exists()):
        stage = (path / "provenance.json").exists()
        return _models().resolve(path).resolve() if model and not stage else path.resolve()
    raise Refused(f"{place}: is not finished, and is needed here; run the recipe without --only, or that stage first")


def _fetch(recipe: Recipe) -> None:
    """Models that must come over the network come before any work."""
    named = {s for steps in recipe.arms.values() for step in steps for f in step.sources.values()
             for s in (f if isinstance(f, list) else [f]) if s.startswith("hf:")}  # fmt: skip
    for source in sorted(named):
        _models().resolve(source)
