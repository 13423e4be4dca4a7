"""The stage `abilities`: a model of generated arithmetic asked for what it may have learnt, by hard and by soft metrics.

    TASK                        asked                                                       columns beside the metrics
    addition-D, subtraction-D   47+25= , two and three digits                               few, chain
    symbol                      47#25= , without an example: what # does cannot be known
    symbol, shown               the same behind k lines of the same secret operation        (few of `symbol`)
    instruction                 What is the sum of 47 and 25? in chat format, the model as pretrained      tuned
    instruction, tuned          the same of the fine-tuned model                            (tuned of `instruction`)

All pairs are held out of everything that was trained on. Of each item: `exact` (1 where the answer is right), `edits` (token edit
distance of the answer, Levenshtein 1966), `logp` (nats of the right answer), `brier` (Brier 1950: the squared distance of the
probabilities of four answers, scaled to add up to 1, from 1 for the right one and 0 for the others; 0 is best, 2 worst).
Gains compare exact matches: `few` with k examples before it (in-context learning), `chain` with the steps written out, `tuned`
after instruction tuning on other operations than the one asked for: the three of Wei et al. 2022 (2206.07682, sections 3, 4).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from lmlab.config import Config
from lmlab.corpus.arithmetic import OPERATIONS, SYMBOLS, Problem, Way, answer_of, generator, operands
from lmlab.errors import Refused
from lmlab.generate.engine import Sampling
from lmlab.generate.handle import Model, load
from lmlab.instruct.families import Item
from lmlab.instruct.families.pairs import WORDINGS
from lmlab.instruct.formatting import messages
from lmlab.measure import mean, proportion
from lmlab.progress import bar
from lmlab.run import Context, Input, StageKind, write_atomic, write_json
from lmlab.scaling.table import to_csv

METRICS = ("exact", "edits", "logp", "brier")
GAINS = ("few", "chain", "tuned")
CHOICES = 4
ITEMS_FILE, TABLE = "items.csv", "abilities.csv"
"""What the stage leaves, and what a ladder makes of its rungs' ones."""


class AbilitiesConfig(Config):
    """Settings of the stage `abilities`."""

    items: int = Field(default=200, ge=8)
    """Held-out items a task."""
    digits: tuple[Annotated[int, Field(ge=2)], ...] = (2, 3)
    """Of plain and worked problems, a task each for sums and for differences. (Pairs with one digit are never held out.)"""
    shots: int = Field(default=4, ge=1)
    """Examples: lines of training pairs before the item, of the same operation and length."""
    instruction: str = "sum"
    """The operation that instructions ask for. It should be one that fine-tuning did not train on."""
    seed: int = Field(default=0, ge=0)
    """Of items and examples; not the run's seed: every model answers the same."""
    max_batch: int = Field(default=64, ge=1)
    """Answers under way at once."""


@dataclass(frozen=True)
class Asked:
    """One item as a model gets it: the ids before the answer, the right answer, the other three choices, and how to read the
    output."""

    context: list[int]
    answer: str
    others: tuple[str, ...]
    way: Way


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The least number of insertions, deletions and replacements that turn `a` into `b` (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def brier(logprobs: Sequence[float]) -> float:
    """Of the log-probabilities of the choices, the right one first: sum over choices of (p - is it right)^2, 0 to 2."""
    p = np.exp(np.asarray(logprobs, dtype=np.float64) - max(logprobs))
    p /= p.sum()
    return float((p[0] - 1) ** 2 + (p[1:] ** 2).sum())


ENOUGH = 5000
"""Of some 500 pairs of two digits one that is left is not found in so many draws once in e^10 times."""


def problems(config: AbilitiesConfig, kind: str, digits: int, names: Sequence[str]) -> list[Problem]:
    """Distinct held-out problems, `names` of operations taking turns."""
    rng, found, seen = generator("abilities", kind, digits, config.seed), [], set()
    known = 0  # draws in a row that brought nothing new
    while len(found) < config.items and known < ENOUGH:
        a, b = operands(rng, digits, test=True)
        known += 1
        if (min(a, b), max(a, b)) not in seen:
            known = 0
            seen.add((min(a, b), max(a, b)))
            found.append(Problem(a, b, names[len(found) % len(names)]))
    if len(found) == config.items:
        return found
    raise Refused(
        f"abilities.items: {config.items}: there are only about {len(found)} held-out pairs of {digits} digits"
    )


def other_answers(problem: Problem, way: Way, rng: np.random.Generator) -> tuple[str, ...]:
    """Three wrong answers: where an operation has to be found out, those of the other operations first; then the right one
    with a digit changed by one, so that they are as long where that can be."""
    right = int(problem.answer)
    found: list[int] = []
    if way in ("symbol", "words"):
        found = [each(problem.a, problem.b) for each in OPERATIONS.values()]
    near = [right + sign * 10**place for place in range(len(problem.answer)) for sign in (1, -1)]
    near = [near[int(i)] for i in rng.permutation(len(near))] + [right + 2, right + 3, right + 4]
    found = [each for each in dict.fromkeys([*found, *near]) if each >= 0 and each != right]
    return tuple(str(each) for each in found[: CHOICES - 1])


def ask(model: Model, config: AbilitiesConfig, todo: Sequence[Problem], way: Way, shots: int = 0) -> list[Asked]:
    """Problems as lines, each behind `shots` lines of training pairs, a function of the item alone."""
    asked = []
    for problem in todo:
        rng = generator("examples", way, problem.a, problem.b, problem.operation, config.seed)
        symbol = SYMBOLS[int(rng.integers(len(SYMBOLS)))]
        digits = len(str(problem.a))
        shown = [Problem(*operands(rng, digits), problem.operation).line(way, symbol) + "\n" for _ in range(shots)]
        text = "".join(shown) + problem.written(way, symbol)[0]
        ids = [model.tokenizer.eos_id, *model.tokenizer.encode(text)]
        asked.append(Asked(ids, problem.answer, other_answers(problem, way, rng), way))
    return asked


def instruct(model: Model, config: AbilitiesConfig, todo: Sequence[Problem]) -> list[Asked]:
    """Problems as instructions in chat format, the wordings taking turns."""
    asked = []
    for place, problem in enumerate(todo):
        question = WORDINGS[place % len(WORDINGS)].format(problem.operation, problem.a, problem.b)
        item = Item(problem.operation, question, problem.answer)
        ids = list(model.renderer.encode(messages(item), add_generation_prompt=True))
        rng = generator("choices", problem.a, problem.b, config.seed)
        asked.append(Asked(ids, problem.answer, other_answers(problem, "words", rng), "plain"))
    return asked


def answers(model: Model, asked: Sequence[Asked]) -> list[str]:
    """Greedy answers, one a question: the rest of a line, as long as a worked problem may be."""
    longest = 16 * max(len(each.answer) for each in asked) if asked[0].way == "steps" else 12
    room = model.network.config.context_length - max(len(each.context) for each in asked)
    if room < len(asked[0].answer):
        raise Refused(f"abilities: a question of {-room} tokens more than the context; set abilities.shots lower")
    done = model.engine.generate(
        [each.context for each in asked], Sampling(max_new_tokens=min(longest, room), stop=("\n",))
    )
    return [answer_of(each.way, completion.text) for each, completion in zip(asked, done)]


def measure(model: Model, asked: Sequence[Asked]) -> dict[str, list[float]]:
    """The four metrics of each item."""
    said, encode = answers(model, asked), model.tokenizer.encode
    pairs = [(each.context, encode(choice)) for each in asked for choice in (each.answer, *each.others)]
    scored = [each.logprob for each in model.engine.score(pairs)]
    rows = [scored[at : at + CHOICES] for at in range(0, len(scored), CHOICES)]
    return {
        "exact": [float(one == each.answer) for one, each in zip(said, asked)],
        "edits": [float(edit_distance(encode(one), encode(each.answer))) for one, each in zip(said, asked)],
        "logp": [row[0] for row in rows],
        "brier": [brier(row) for row in rows],
    }


def exact(model: Model, asked: Sequence[Asked]) -> list[float]:
    return [float(one == each.answer) for one, each in zip(answers(model, asked), asked)]


def tasks(config: AbilitiesConfig, base: Model, tuned: Model | None) -> dict[str, dict[str, list[float]]]:
    """{TASK: {column: a value an item}}."""
    found: dict[str, dict[str, list[float]]] = {}
    plain = [(name, digits) for digits in config.digits for name in ("sum", "difference")]
    with bar("abilities", len(plain) + 3) as advance:
        for name, digits in plain:
            todo = problems(config, name, digits, [name])
            task = f"{'addition' if name == 'sum' else 'subtraction'}-{digits}"
            found[task] = measure(base, ask(base, config, todo, "plain"))
            found[task]["few"] = exact(base, ask(base, config, todo, "plain", config.shots))
            found[task]["chain"] = exact(base, ask(base, config, todo, "steps"))
            advance(1, task)
        todo = problems(config, "symbol", 2, list(OPERATIONS))
        shown = measure(base, ask(base, config, todo, "symbol", config.shots))
        found["symbol"] = measure(base, ask(base, config, todo, "symbol")) | {"few": shown["exact"]}
        found["symbol, shown"] = shown
        advance(1, "symbol")
        if tuned is not None:
            todo = problems(config, "instruction", 2, [config.instruction])
            after = measure(tuned, instruct(tuned, config, todo))
            found["instruction"] = measure(base, instruct(base, config, todo)) | {"tuned": after["exact"]}
            found["instruction, tuned"] = after
            advance(1, "instruction")
    return found


def run(context: Context) -> Mapping[str, Any]:
    """Ask; leave items.csv (a row an item) and results.json (means with their intervals by task)."""
    config: AbilitiesConfig = context.config
    models: list[Model | None] = [
        load(context.inputs[role], max_batch=config.max_batch) if role in context.inputs else None
        for role in ("model", "tuned")
    ]
    assert models[0] is not None
    found = tasks(config, models[0], models[1])
    write_atomic(context.out / ITEMS_FILE, to_csv(item_rows(found)))
    summary = {
        task: {name: _score(name, values) for name, values in columns.items()} for task, columns in found.items()
    }
    write_json(context.out / "results.json", {"abilities": summary})
    return {task: columns["exact"]["value"] for task, columns in summary.items()}


def item_rows(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, str]]:
    """A row a task and item, with all metrics and gains; a gain that a task has not is left blank."""
    rows = []
    for task, columns in found.items():
        for place in range(len(columns["exact"])):
            values = {name: f"{columns[name][place]:.6g}" if name in columns else "" for name in (*METRICS, *GAINS)}
            rows.append({"task": task, "item": f"{task} {place}", **values})
    return rows


def _score(name: str, values: Sequence[float]) -> dict[str, Any]:
    hard = name == "exact" or name in GAINS
    return (proportion(sum(values), len(values)) if hard else mean(values)).to_json()


def read_items(stage: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that a finished stage left, behind what identifies its run."""
    with (stage / ITEMS_FILE).open(encoding="utf-8", newline="") as file:
        return [{**head, **row} for row in csv.DictReader(file)]


def _check(config: AbilitiesConfig, fillers: Mapping[str, Any]) -> str | None:
    """Whether the operation of the instructions is one, and fine-tuning leaves it out."""
    if config.instruction not in OPERATIONS:
        return f"instruction: '{config.instruction}' is no operation; expected {', '.join(OPERATIONS)}"
    trained = getattr(fillers.get("tuned"), "trained", ())
    if config.instruction in trained:
        return f"instruction: '{config.instruction}' is trained on by the fine-tuning; name it in its heldout_families"
    return None


STAGE = StageKind(
    config=AbilitiesConfig,
    run=run,
    inputs=(
        Input("model", ("pretrain",), model=True),
        Input("tuned", ("sft",), required=False, model=True),
    ),
    seeded=False,
    check=_check,
)
"""Not seeded: every model of every run answers the same items."""
