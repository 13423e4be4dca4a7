"""How far a reward model agrees with the rules it learnt from, on prompts that it did not learn from.

The prompt is the independent unit of every interval: pairs of one prompt share answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lmlab import measure
from lmlab.align.feedback import Ranked
from lmlab.align.rules import KINDS

BINS = 10
"""Of confidence, in the calibration table."""

Scores = Sequence[Sequence[float]]
"""For each prompt the score of each answer."""


def summary(rows: Sequence[Ranked], scores: Scores, std: float = 1.0) -> dict[str, Any]:
    """Pair accuracy, by kind of difference and by family; calibration; rank agreement; and what one gets by always
    preferring the shorter answer. `std` undoes the normalisation of the scores' margins: sigmoid(margin) is a
    probability for raw scores, as they were trained.
    """
    families = sorted({row.family for row in rows})
    shorter = [[-float(len(answer.text)) for answer in row.answers] for row in rows]
    by_family = {name: [i for i, row in enumerate(rows) if row.family == name] for name in families}
    return {
        "pair_accuracy": accuracy(rows, scores).to_json(),
        "pair_accuracy_by_kind": {
            kind: accuracy(rows, scores, kind).to_json() for kind in KINDS if kinds(rows).get(kind)
        },
        "pair_accuracy_by_family": {
            name: accuracy([rows[i] for i in index], [scores[i] for i in index]).to_json()
            for name, index in by_family.items()
        },
        "baselines": {"shorter": accuracy(rows, shorter).to_json()},
        "calibration": calibration(rows, [[std * score for score in given] for given in scores]),
        "agreement": {
            "kendall_tau_b": measure.mean(
                [tau_b(s, [-float(a.rank) for a in row.answers]) for row, s in zip(rows, scores)]
            ).to_json(),
            "best_is_best": measure.proportion(
                sum(row.answers[int(np.argmax(s))].rank == 1 for row, s in zip(rows, scores)), len(rows)
            ).to_json(),
        },
    }


def accuracy(rows: Sequence[Ranked], scores: Scores, kind: str | None = None) -> measure.Score:
    """Share of pairs (of one kind of difference) whose better answer scores higher; a tie of scores counts one half.

    A ratio of sums over prompts, its interval by resampling prompts.
    """
    right, pairs = [], []
    for row, given in zip(rows, scores, strict=True):
        chosen = [pair for pair in row.pairs if kind is None or row.difference(pair) == kind]
        if chosen:
            margins = [given[better] - given[worse] for better, worse in chosen]
            right.append(sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins))
            pairs.append(len(chosen))
    return measure.ratio(right, pairs)


def kinds(rows: Sequence[Ranked]) -> dict[str, int]:
    """Pairs by the rule that tells them apart."""
    counted = Counter(row.difference(pair) for row in rows for pair in row.pairs)
    return {kind: counted[kind] for kind in KINDS}


def calibration(rows: Sequence[Ranked], scores: Scores) -> dict[str, Any]:
    """Does sigmoid(margin) say how often the reward model is right?

    Each pair is a prediction with confidence max(p, 1 - p); the error is the mean over pairs of |accuracy - confidence|
    of their bin (expected calibration error, 1706.04599). `log_loss` is the mean of -log sigmoid(margin).
    """
    margins = np.array([s[b] - s[w] for row, s in zip(rows, scores) for b, w in row.pairs], dtype=np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    right = np.where(margins == 0, 0.5, margins > 0)
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    table, error = [], 0.0
    for number in range(BINS):
        inside = place == number
        if n := int(inside.sum()):
            sure, share = float(confidence[inside].mean()), float(right[inside].mean())
            error += n * abs(sure - share) / len(margins)
            table.append({"confidence": sure, "accuracy": measure.proportion(share * n, n).to_json()})
    loss = [float(np.logaddexp(0, -(s[b] - s[w]))) for row, s in zip(rows, scores) for b, w in row.pairs]
    prompts = [len(row.pairs) for row in rows]
    ends = np.cumsum([0, *prompts])
    sums = [sum(loss[a:b]) for a, b in pairwise(ends)]
    return {
        "expected_error": error,
        "pairs": len(margins),
        "bins": table,
        "log_loss": measure.ratio(sums, prompts).to_json(),
    }


def tau_b(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two lists of numbers: concordant less discordant pairs, over the geometric mean of the pairs
    that are untied in either. 0 where one of them is all ties.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    upper = np.triu_indices(len(x), 1)
    dx, dy = np.sign(x[upper[0]] - x[upper[1]]), np.sign(y[upper[0]] - y[upper[1]])
    untied = np.abs(dx).sum() * np.abs(dy).sum()
    return float((dx * dy).sum() / np.sqrt(untied)) if untied else 0.0


def examples(rows: Sequence[Ranked], scores: Scores, count: int = 6) -> list[dict[str, Any]]:
    """A few prompts with every answer, its rule score and its reward."""
    return [
        {
            "prompt": row.prompt,
            "answer": row.answer,
            "answers": [
                {"text": a.text, "rule_score": a.marks.score, "rank": a.rank, "reward": s}
                for a, s in zip(row.answers, given)
            ],
        }
        for row, given in list(zip(rows, scores))[:count]
    ]  # fmt: skip
