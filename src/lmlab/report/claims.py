"""What each stage claims or fails to show, computed from its numbers and their intervals.

A claim holds (true) or fails (false) only where the intervals lie apart; where they meet, or where a number is missing,
it is null and the evidence says which. Where the same items were asked twice, the interval of the paired change decides
instead, since pairing is sharper than two intervals: a stage may write that score as `change` (or `difference`) beside
`before` and `after`, and an evaluation's items.jsonl gives it for any two models or ways of asking.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lmlab.measure import Score
from lmlab.report.scores import above, at, plain, score, tell, tell_change
from lmlab.report.tasks import Items, Task, paired, paired_change, paired_ratio, pool, tasks_of
from lmlab.report.words import SPLITS, kept_of

Claim = dict[str, Any]
Stage = Mapping[str, Any]

ITEMS = "_items"
"""Where `judge` finds an evaluation's scores item by item; the report itself does not carry them."""
FORGETTING = 1.10
"""A later stage keeps the language if its bits per byte stay within this factor of the stage before it (our choice)."""
COLLAPSE = 0.5
"""PPO keeps its variety if at least this share of the entropy is left (our choice)."""
WASTE = 1.10
"""A tokenizer generalises if held-out text costs at most this factor of the training text's tokens (our choice)."""


def judge(stages: Mapping[str, Stage]) -> list[Claim]:
    """Every claim of every stage, in the stages' order: {stage, claim, holds: true | false | null, evidence}."""
    found: list[Claim] = []
    for name, stage in stages.items():
        for claim, holds, evidence in CLAIMS.get(str(stage.get("kind")), lambda stage: iter(()))(stage):
            found.append({"stage": name, "claim": claim, "holds": holds, "evidence": evidence})
    return found


Verdict = tuple[str, bool | None, str]


def _versus(
    claim: str, first: Score | None, second: Score | None, names: tuple[str, str], *, lower: bool = False,
    percent: bool = False, change: Score | None = None,
) -> Verdict:  # fmt: skip
    """`first` is better than `second`: higher, or lower where `lower` says so. `change` is first - second, paired."""
    evidence = f"{names[0]} {tell(first, percent)}, {names[1]} {tell(second, percent)}"
    if first is None or second is None:
        return claim, None, evidence
    if change is not None:
        holds = above(change, 0.0)
        holds = (not holds) if lower and holds is not None else holds
        evidence += f"; change, item by item: {tell_change(change, percent)}"
        doubt = "; its interval holds 0: undecided"
    else:
        holds = above(second, first) if lower else above(first, second)
        doubt = "; the intervals meet: undecided"
    return claim, holds, evidence + (doubt if holds is None else "")


def _change(claim: str, pair: Any, *, lower: bool = False, percent: bool = False) -> Verdict:
    """After is better than before."""
    change = score(at(pair, "change")) or score(at(pair, "difference"))
    names = ("after", "before")
    first, second = score(at(pair, "after")), score(at(pair, "before"))
    return _versus(claim, first, second, names, lower=lower, percent=percent, change=change)


def _over(claim: str, it: Score | None, bar: float, percent: bool) -> Verdict:
    holds = None if it is None else above(it, bar)
    doubt = "; the interval holds it: undecided" if it is not None and holds is None else ""
    return claim, holds, f"{tell(it, percent)} against {plain(bar, percent)}{doubt}"


def _within(
    claim: str,
    it: Score | None,
    base: Score | None,
    factor: float,
    names: tuple[str, str],
    *,
    ratio: Score | None = None,
) -> Verdict:
    """`it` is at most `factor` times `base`; `ratio` is it / base, paired."""
    evidence = f"{names[0]} {tell(it)}, {names[1]} {tell(base)}"
    if it is None or base is None:
        return claim, None, evidence
    if ratio is not None:
        below = above(ratio, factor)
        evidence += f"; ratio, document by document: {tell(ratio)}"
        return claim, None if below is None else not below, evidence + (": undecided" if below is None else "")
    limit = _times(factor, base)
    holds = True if it.high <= limit.low else False if it.low > limit.high else None
    return claim, holds, evidence + ("; too close to tell: undecided" if holds is None else "")


def _times(factor: float, it: Score) -> Score:
    return Score(factor * it.value, factor * it.low, factor * it.high, it.n)


def _corpus(stage: Stage) -> Iterator[Verdict]:
    sources = at(stage, "sources")
    if not isinstance(sources, Mapping):
        yield "Every source has text to train on and text held out", None, "no counts of documents"
        return
    counts = {str(name): [kept_of(at(splits, split)) for split in SPLITS] for name, splits in sources.items()}
    lacking = [name for name, both in counts.items() if not all(both)]
    total = [sum(both[i] or 0 for both in counts.values()) for i in range(len(SPLITS))]
    evidence = f"{total[0]:,.0f} documents to train on, {total[1]:,.0f} held out, from {len(counts)} sources"
    if lacking:
        evidence += f"; a split is empty or not counted in {', '.join(lacking)}"
    yield "Every source has text to train on and text held out", bool(counts) and not lacking, evidence


def _tokenizer(stage: Stage) -> Iterator[Verdict]:
    train, heldout = (score(at(stage, "bytes_per_token", split)) for split in SPLITS)
    claim = f"Text that it never saw costs at most {WASTE - 1:.0%} more tokens a byte than its training text"
    # More tokens a byte is fewer bytes a token, so the roles are exchanged.
    yield _within(claim, train, heldout, WASTE, ("bytes per token: training text", "held-out text"))


def _pretrain(stage: Stage) -> Iterator[Verdict]:
    bits = at(stage, "bits_per_byte")
    yield _change("Training lowers the bits per byte of held-out text", bits, lower=True)
    rivals = (
        ("xz", "It compresses held-out text better than xz -9e alone", "xz -9e"),
        ("ngram", "It compresses held-out text better than a 5-gram byte model of the same corpus", "5-gram"),
        ("xz_primed", "It compresses held-out text better than xz primed with the training text", "xz primed"),
    )
    for key, claim, name in rivals:
        if key != "xz_primed" or at(bits, key) is not None:
            both = score(at(bits, "after")), score(at(bits, key))
            yield _versus(claim, *both, ("model", name), lower=True, change=score(at(bits, "excess", key)))


def _sft(stage: Stage) -> Iterator[Verdict]:
    match = at(stage, "exact_match")
    yield _change("Exact match rises on the families it was tuned on", at(match, "seen"), percent=True)
    yield _change("Exact match rises on families it never saw", at(match, "unseen"), percent=True)
    families = at(match, "families")
    if isinstance(families, Mapping) and families:
        verdicts = {str(name): _change("", pair)[1] for name, pair in families.items()}
        up, down = ([n for n, holds in verdicts.items() if holds is wanted] for wanted in (True, False))
        evidence = f"{len(up)} of {len(verdicts)} rose"
        if down:
            evidence += f"; fell: {', '.join(down)}"
        if open_ := [name for name, holds in verdicts.items() if holds is None]:
            evidence += f"; undecided: {', '.join(open_)}"
        yield "Every family improves", False if down else True if len(up) == len(verdicts) else None, evidence


def _finetune(stage: Stage) -> Iterator[Verdict]:
    accuracy, change = at(stage, "accuracy"), score(at(stage, "accuracy_over_majority"))
    both = score(at(accuracy, "after")), score(at(accuracy, "majority"))
    claim = "It is right more often than always saying the commonest label"
    yield _versus(claim, *both, ("model", "commonest label"), percent=True, change=change)


def _reward(stage: Stage) -> Iterator[Verdict]:
    accuracy = score(at(stage, "pair_accuracy"))
    yield _over("It ranks held-out pairs better than a coin", accuracy, 0.5, True)
    yield _over("It ranks more than six in ten held-out pairs rightly", accuracy, 0.6, True)
    shorter = score(at(stage, "baselines", "shorter"))
    if shorter is not None:
        claim = "It ranks held-out pairs better than always preferring the shorter answer"
        yield _versus(claim, accuracy, shorter, ("reward model", "shorter"), percent=True)


def _ppo(stage: Stage) -> Iterator[Verdict]:
    reward = _change("PPO raises the reward that it was trained on", at(stage, "reward"))
    rule = _change("PPO raises the rule score, which it was never trained on", at(stage, "rule_score"))
    yield reward
    yield rule
    claim = "The reward model was not merely exploited: the rule score rose along with the reward"
    if reward[1] is True:
        found = {
            True: "the rule score too",
            False: "the rule score fell",
            None: "the rule score is undecided or missing",
        }
        yield claim, rule[1], f"the reward rose; {found[rule[1]]}"
    else:
        yield claim, None, "the reward did not clearly rise, so there is nothing to exploit"
    yield _kl(stage)
    entropy = at(stage, "entropy")
    before, after = score(at(entropy, "before")), score(at(entropy, "after"))
    if before is not None or after is not None:
        claim = f"It keeps at least {COLLAPSE:.0%} of its entropy"
        half = None if before is None else _times(COLLAPSE, before)
        yield _versus(claim, after, half, ("after", f"{COLLAPSE:.0%} of before"))


def _kl(stage: Stage) -> Verdict:
    """KL from the policy to the model it started from, in nats; a step whose KL is no number would have been fatal."""
    after, claim = at(stage, "kl", "after"), "KL to the fine-tuned model stays finite"
    found = score(after)
    if found is None and after is not None:
        return claim, False, "the KL is no number"
    if found is None:
        return claim, None, "not measured"
    series = at(stage, "curves", "kl")
    if broken := at(series, "not_finite"):
        return claim, False, f"no finite number at {broken:,} steps; {tell(found)} nats at the end"
    most = max(at(series, "high") or at(series, "value") or [found.value], default=found.value)
    return claim, True, f"{tell(found)} nats at the end, at most {plain(float(most))} while it trained"


def _evaluate(stage: Stage) -> Iterator[Verdict]:
    stages = at(stage, "stages")
    if not isinstance(stages, Mapping) or not stages:
        yield "Each stage's model answers more than the one before", None, "no scores"
        return
    scored = {str(name): scores for name, scores in stages.items() if isinstance(scores, Mapping)}
    tasks = tasks_of(scored)
    exact = [task for task in tasks if task.metric == "exact_match"]
    names = list(scored)
    items: Items = stage.get(ITEMS) or {}
    for earlier, later in itertools.pairwise(names):
        both = [t for t in exact if t.name in scored[earlier] and t.name in scored[later]]
        pair = pool(scored[later], both), pool(scored[earlier], both)
        change = paired_change(items, [(later, t) for t in both], [(earlier, t) for t in both])
        claim = f"{later} answers more than {earlier}, over all tasks"
        yield _versus(claim, *pair, (later, earlier), percent=True, change=change)
    for earlier, later in itertools.pairwise(names):
        bits = [score(at(scored[name], "bits_per_byte")) for name in (later, earlier)]
        if any(bits):
            claim = f"{later} keeps the language: its bits per byte stay within {FORGETTING - 1:.0%} of {earlier}'s"
            ratio = paired_ratio(items, (later, "bits_per_byte"), (earlier, "bits_per_byte"))
            yield _within(claim, bits[0], bits[1], FORGETTING, (later, earlier), ratio=ratio)
    if names and exact:
        last = names[-1]
        yield from _ways(last, scored[last], [t for t in exact if t.name in scored[last]], items)


def _ways(name: str, scores: Mapping[str, Any], exact: Sequence[Task], items: Items) -> Iterator[Verdict]:
    """Whether the ways of asking help the last model: steps, a vote, demonstrations."""
    votes = [task.decoding for task in exact if task.decoding != "greedy"]
    shots = sorted({task.shots for task in exact if task.shots is not None})
    ways: list[tuple[str, object, object, str, tuple[str, str]]] = []
    ways.append(("steps", True, False, "Writing the steps before the answer helps", ("with steps", "direct")))
    vote = max(votes, key=lambda v: (len(v), v), default="vote")
    ways.append(
        (
            "decoding",
            vote,
            "greedy",
            f"A {vote if votes else 'vote of'} samples helps over one greedy answer",
            (vote, "greedy"),
        )
    )
    for k in shots:
        if k > 0 and shots[0] == 0:
            shown = f"{k} demonstration{'' if k == 1 else 's'}"
            ways.append(("shots", k, 0, f"Showing {shown} helps", (shown, "none")))
    for field, first, second, claim, labels in ways:
        ours, others = paired(exact, field, first, second)
        pair = pool(scores, ours), pool(scores, others)
        change = paired_change(items, [(name, t) for t in ours], [(name, t) for t in others])
        text = f"{name}: {claim[0].lower()}{claim[1:]}"
        text, holds, evidence = _versus(text, *pair, labels, percent=True, change=change)
        yield text, holds, evidence + {True: "; it helps", False: "; it hurts", None: ""}[holds]


CLAIMS: dict[str, Callable[[Stage], Iterator[Verdict]]] = {
    "corpus": _corpus,
    "tokenizer": _tokenizer,
    "pretrain": _pretrain,
    "sft": _sft,
    "finetune": _finetune,
    "reward": _reward,
    "ppo": _ppo,
    "evaluate": _evaluate,
}
"""Claims by kind of stage. A kind that is not here claims nothing."""
