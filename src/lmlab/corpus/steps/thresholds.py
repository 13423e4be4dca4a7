"""What the rule sets share: signals as columns, thresholds on them, and the first rule that is broken as the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from lmlab.config import Config
from lmlab.corpus.arrow import buffers
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.steps.step import drop
from lmlab.corpus.tokens import Tokens, hashes_of, tokens


def first_broken(values: np.ndarray, names: Sequence[str], rules: Config) -> list[str | None]:
    """The first broken rule of each document, or None. Pure.

    values: float64 [documents, signals], NaN where a signal is not asked of a document. A field `min_NAME` or
    `max_NAME` of `rules` bounds the signal of that name; null switches it off. Rules are tried in the fields' order.
    """
    reasons: list[str | None] = [None] * len(values)
    for field in type(rules).model_fields:
        limit = getattr(rules, field)
        side, _, signal = field.partition("_")
        if side not in ("min", "max") or signal not in names or limit is None:
            continue
        column = values[:, names.index(signal)]
        for row in np.flatnonzero(column < limit if side == "min" else column > limit):
            reasons[row] = reasons[row] or f"{signal} {'<' if side == 'min' else '>'} {limit:g}"
    return reasons


@dataclass(frozen=True)
class Batch:
    """The documents that a rule set looks at: those of a table that are kept and are prose."""

    rows: np.ndarray  # int64: where they stand in the table
    table: pa.Table

    @classmethod
    def of(cls, table: pa.Table) -> Batch:
        wanted = pc.and_(table["keep"], pc.equal(table["kind"], "prose"))
        return cls(np.flatnonzero(wanted.to_numpy()), table.filter(wanted))

    @cached_property
    def bytes(self) -> tuple[np.ndarray, np.ndarray]:
        return buffers(self.table["text"])

    @cached_property
    def tokens(self) -> Tokens:
        return tokens(*self.bytes)

    @cached_property
    def languages(self) -> list[str | None]:
        """What the step `language` said; where it was not asked, English unless the script has no spaces."""
        told = self.table["language"].to_pylist() if "language" in self.table.column_names else [None] * len(self.rows)
        if None not in told:
            return told
        bounds, kinds = self.tokens.bounds, self.tokens.kinds
        scripted = np.concatenate([[0], np.cumsum(kinds >= 16)])[bounds]
        wide = 2 * np.diff(scripted) > np.diff(bounds)
        return [language or (None if without else "en") for language, without in zip(told, wide, strict=True)]

    def result(
        self,
        table: pa.Table,
        step: str,
        columns: dict[str, tuple[Sequence[str], np.ndarray]],
        reasons: list[str | None],
    ) -> pa.Table:
        """`table` with a struct of float32 for each of `columns` (names and values [documents, names]), null where the
        set did not look, and with the reasons as drops of `step`."""
        for name, (fields, values) in columns.items():
            whole = np.full((len(table), len(fields)), np.nan, np.float32)
            whole[self.rows] = values
            missing = np.ones(len(table), bool)
            missing[self.rows] = False
            arrays = [pa.array(whole[:, i], from_pandas=True) for i in range(len(fields))]
            struct = pa.StructArray.from_arrays(arrays, names=list(fields), mask=pa.array(missing))
            table = table.append_column(name, struct)
        given: list[str | None] = [None] * len(table)
        for row, reason in zip(self.rows, reasons, strict=True):
            given[row] = reason
        return drop(table, step, given)


class StopWords:
    """Lists of stop words by language, as the kernels take them."""

    def __init__(self, lists: dict[str, list[str]], *, fold: bool = False) -> None:
        self._place = {language: place for place, language in enumerate(lists)}
        hashes = [hashes_of(words, fold=fold) for words in lists.values()]
        self.flat = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
        self.bounds = np.cumsum([0, *map(len, hashes)])
        self.matrix = np.zeros((max(1, len(hashes)), max(map(len, hashes), default=0)), np.uint64)
        for row, some in zip(self.matrix, hashes, strict=False):
            row[: len(some)] = some

    def which(self, languages: Sequence[str | None]) -> np.ndarray:
        """int64 [documents]: the place of each language's list, or -1."""
        return np.array([self._place.get(language or "", -1) for language in languages], np.int64)
