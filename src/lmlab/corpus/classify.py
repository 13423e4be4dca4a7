"""A linear classifier of quality: hashed word n-grams and logistic regression, as GPT-3 had (2005.14165, appendix A).

Documents fall into two halves by a hash of their id, and a model is made of each half: four fifths of it train the
weights, the rest scale the score (Platt 1999), so that a score is a probability at equal shares of good and candidate
text. A document is scored by the half that it does not belong to: no document is judged by a model that was told its
label, and calibration can be measured on all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.corpus.compiled import kernel
from lmlab.corpus.kernels import mix64
from lmlab.corpus.split import position
from lmlab.corpus.tokens import Tokens
from lmlab.errors import Refused
from lmlab.measure import proportion
from lmlab.run import folder_atomic


@dataclass(frozen=True)
class Settings:
    """What the features and the training are made of; a saved model holds them."""

    bits: int = 20
    ngram: int = 2
    epochs: int = 5
    learning_rate: float = 0.3
    l2: float = 1e-5
    seed: int = 0


@kernel
def _features(bounds, hashes, bits, ngram):
    """Documents as rows of a sparse matrix: (row bounds, columns int32, values float32 of length 1 a row).

    A column is the top `bits` bits of an n-gram's hash, its value the square root of how often it occurs.
    """
    n_docs = len(bounds) - 1
    total, longest = 0, 1
    for d in range(n_docs):
        n = bounds[d + 1] - bounds[d]
        total += n * ngram
        longest = max(longest, n * ngram)
    rows = np.zeros(n_docs + 1, np.int64)
    columns, values = np.empty(total, np.int32), np.empty(total, np.float32)
    found = np.empty(longest, np.int32)
    at = 0
    shift = np.uint64(64 - bits)
    for d in range(n_docs):
        m = 0
        for t in range(bounds[d], bounds[d + 1]):
            h = np.uint64(0)
            for k in range(min(ngram, bounds[d + 1] - t)):
                h = mix64(h * np.uint64(31) + hashes[t + k])
                found[m] = np.int32(h >> shift)
                m += 1
        ordered = np.sort(found[:m])
        i = 0
        norm = 0.0
        begin = at
        while i < m:
            j = i
            while j < m and ordered[j] == ordered[i]:
                j += 1
            columns[at], values[at] = ordered[i], math.sqrt(j - i)
            norm += j - i
            at += 1
            i = j
        for i in range(begin, at):
            values[i] /= math.sqrt(norm)
        rows[d + 1] = at
    return rows, columns[:at], values[:at]


@kernel
def _train(rows, columns, values, labels, order, rate, l2, weights, squares):
    """One pass of AdaGrad (Duchi et al. 2011) over `order`, in place. The bias is the last weight. `labels` carry each
    document's class in their sign and its weight in their size."""
    bias = len(weights) - 1
    for d in order:
        z = weights[bias]
        for i in range(rows[d], rows[d + 1]):
            z += weights[columns[i]] * values[i]
        target = 1.0 if labels[d] > 0 else 0.0
        error = (1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, z)))) - target) * abs(labels[d])
        for i in range(rows[d], rows[d + 1]):
            c = columns[i]
            g = error * values[i] + l2 * weights[c]
            squares[c] += g * g
            weights[c] -= rate * g / math.sqrt(squares[c])
        squares[bias] += error * error
        weights[bias] -= rate * error / math.sqrt(squares[bias] + 1e-12)


@kernel
def _margins(rows, columns, values, weights, which):
    """w x + b of each document under the model `which` names: weights float64 [models, columns + 1]."""
    out = np.zeros(len(rows) - 1)
    bias = weights.shape[1] - 1
    for d in range(len(rows) - 1):
        z = weights[which[d], bias]
        for i in range(rows[d], rows[d + 1]):
            z += weights[which[d], columns[i]] * values[i]
        out[d] = z
    return out


def half(document: str) -> int:
    """0 or 1: the half that a document belongs to, by a hash of its id."""
    return int(position(document, 0x6A1F) >= 0.5)


def _scales(document: str) -> bool:
    """Does this document scale the score of its half's model, instead of training its weights?"""
    return position(document, 0x5CA1) < 0.2


@dataclass(frozen=True)
class Quality:
    """A trained classifier. weights: float32 [2 halves, 2^bits + 1]; scale: float64 [2, 2], slope and offset."""

    weights: np.ndarray
    scale: np.ndarray
    settings: Settings

    def score(self, documents: Sequence[str], found: Tokens) -> np.ndarray:
        """P(good | document) at equal shares, float64 [documents], from folded tokens and the documents' ids."""
        rows, columns, values = _features(found.bounds, found.hashes, self.settings.bits, self.settings.ngram)
        which = np.array([1 - half(each) for each in documents], np.int64)
        z = _margins(rows, columns, values, self.weights, which)
        return _sigmoid(self.scale[which, 0] * z + self.scale[which, 1])

    def save(self, folder: Path, report: dict[str, Any]) -> None:
        """Write `model.safetensors` and `classifier.json` (settings, and the report on its training)."""
        from safetensors.numpy import save_file

        with folder_atomic(folder) as temporary:
            save_file({"weights": self.weights, "scale": self.scale}, temporary / "model.safetensors")
            content = {"format": 1, "settings": asdict(self.settings), **report}
            (temporary / "classifier.json").write_text(
                json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8"
            )

    @classmethod
    def load(cls, folder: Path, where: str) -> Quality:
        """Raises Refused where there is no classifier."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            content = json.loads((folder / "classifier.json").read_text("utf-8"))
            tensors = load_file(folder / "model.safetensors")
            settings = Settings(**content["settings"])
            weights, scale = tensors["weights"], tensors["scale"]
            if weights.shape != (2, (1 << settings.bits) + 1) or scale.shape != (2, 2):
                raise ValueError(f"its weights are {weights.shape}, its scale is {scale.shape}")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise Refused(
                f"{where}: {folder}: is no saved classifier ({error}); expected the folder `classifier` of a corpus "
                "that trained one, with classifier.json and model.safetensors"
            ) from None
        return cls(weights, scale, settings)


def train(
    documents: Sequence[str], good: np.ndarray, found: Tokens, settings: Settings
) -> tuple[Quality, dict[str, Any]]:
    """Train on documents with labels (bool [documents]); returns the classifier and its report. Deterministic."""
    rows, columns, values = _features(found.bounds, found.hashes, settings.bits, settings.ngram)
    halves = np.array([half(each) for each in documents])
    scaling = np.array([_scales(each) for each in documents], bool)
    weights = np.zeros((2, (1 << settings.bits) + 1))
    scale = np.tile([1.0, 0.0], (2, 1))
    for which in (0, 1):
        mine = np.flatnonzero((halves == which) & ~scaling)
        share = good[mine].mean() if len(mine) else 0.5
        if not 0 < share < 1:
            raise Refused(
                f"classifier: {len(mine)} training documents in one half are all of one class: give more text"
            )
        labels = np.zeros(len(documents))
        labels[mine] = np.where(good[mine], 0.5 / share, -0.5 / (1 - share))
        squares = np.full(weights.shape[1], 1e-8)
        draw = np.random.Generator(np.random.Philox(key=settings.seed, counter=[which, 0, 0, 0]))
        for _ in range(settings.epochs):
            order = draw.permutation(mine)
            _train(rows, columns, values, labels, order, settings.learning_rate, settings.l2, weights[which], squares)
        rest = np.flatnonzero((halves == which) & scaling)
        margins = _margins(rows, columns, values, weights, np.full(len(documents), which))[rest]
        scale[which] = _platt(margins, good[rest])
    quality = Quality(weights.astype(np.float32), scale, settings)
    return quality, calibration(quality.score(documents, found), good)


def _platt(margins: np.ndarray, good: np.ndarray, steps: int = 100) -> tuple[float, float]:
    """Slope and offset of P(good) = sigmoid(a z + b) at equal shares: Newton's method, a step halved until it helps.

    Targets are Platt's, a little inside 0 and 1, so that a class that is told apart without an error stays finite.
    """
    n, m = int(good.sum()), int((~good).sum())
    if not n or not m:
        return 1.0, 0.0
    size = max(float(np.abs(margins).max()), 1e-9)
    X = np.stack([margins / size, np.ones(n + m)], axis=1)
    w = np.where(good, 0.5 / n, 0.5 / m)
    target = np.where(good, (n + 1) / (n + 2), 1 / (m + 2))

    def loss(at: np.ndarray) -> float:
        z = X @ at
        return float(w @ (np.logaddexp(0, z) - target * z))

    at = np.zeros(2)
    for _ in range(steps):
        p = _sigmoid(X @ at)
        hessian = (X * (w * p * (1 - p))[:, None]).T @ X + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, X.T @ (w * (p - target)))
        while loss(at - step) > loss(at) and np.abs(step).max() > 1e-9:
            step = step / 2
        at = at - step
        if np.abs(step).max() < 1e-9:
            break
    return max(float(at[0] / size), 1e-6), float(at[1])


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(z, -60, 60)))


def calibration(scores: np.ndarray, good: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """How scores of documents that a model was not trained on meet their labels: AUC, Brier score and a reliability
    table with Wilson's intervals. Candidates are weighed to be as many as good documents, as the scores are scaled for.
    """
    n_good, n_rest = int(good.sum()), int((~good).sum())
    ratio = n_good / max(1, n_rest)
    weights = np.where(good, 1.0, ratio)
    table = []
    places = np.minimum((scores * bins).astype(int), bins - 1)
    for k in range(bins):
        inside = places == k
        a, b = float(weights[inside & good].sum()), float(weights[inside & ~good].sum())
        # Kish's effective number: weighed documents say less than as many equal ones.
        effective = round((a + b) ** 2 / max((weights[inside] ** 2).sum(), 1e-12)) if inside.any() else 0
        share = proportion(a / (a + b) * effective, effective) if effective else proportion(0, 0)
        mean = float(np.average(scores[inside], weights=weights[inside])) if inside.any() else None
        table.append(
            {
                "from": k / bins,
                "to": (k + 1) / bins,
                "documents": int(inside.sum()),
                "mean_score": mean,
                "good": share.to_json(),
            }
        )
    brier = float(np.average((scores - good) ** 2, weights=weights))
    return {
        "good_documents": n_good,
        "candidate_documents": n_rest,
        "auc": auc(scores, good),
        "brier": brier,
        "reliability": table,
    }


def auc(scores: np.ndarray, good: np.ndarray) -> dict[str, Any]:
    """P(a good document scores above a candidate), ties half, with the interval of Hanley and McNeil (1982)."""
    n, m = int(good.sum()), int((~good).sum())
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    value = (ranks[good].sum() - n * (n + 1) / 2) / (n * m)
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    deviation = math.sqrt(
        max(0.0, (value * (1 - value) + (n - 1) * (q1 - value**2) + (m - 1) * (q2 - value**2)) / (n * m))
    )
    low, high = max(0.0, value - 1.96 * deviation), min(1.0, value + 1.96 * deviation)
    return {"value": float(value), "low": float(low), "high": float(high), "n": n + m}
