"""GLM's blank infilling (2103.10360): spans are masked, and written one after another behind the text.

Part A is the text with a mask for each blank; part B the blanks in random order, each begun by a start token and ended by an
end token. First position: a token's place in part A, and for all of a blank the place of its mask. Second position: 0 in
part A; 1, 2, 3, ... in a blank, its start token counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmlab.objective.denoising import sentences
from lmlab.objective.example import Example, Ids, Room
from lmlab.objective.settings import BlankInfilling
from lmlab.objective.spans import place_spans, poisson_lengths


@dataclass(frozen=True)
class Marks:
    """The ids of [MASK], [sMASK], [gMASK], <|startofpiece|> and <|endofpiece|>."""

    token: int
    sentence: int
    document: int
    start: int
    end: int


@dataclass(frozen=True)
class BlankTask:
    """Spans, sentences or the end of a text blanked, as the shares of the config say."""

    config: BlankInfilling
    marks: Marks
    stops: np.ndarray

    plain = False

    def lengths(self, n: int) -> tuple[float, float]:
        c = self.config
        shares = np.array([c.token, c.sentence, c.document]) / (c.token + c.sentence + c.document)
        noise = max(1, round(n * c.rate))
        blanks = max(1.0, noise / c.mean_span)
        ending = n * (1 + c.shortest) / 2
        source = shares @ np.array([n - noise + blanks, n - noise + 1, n - ending + 1])
        return float(source), float(shares @ np.array([noise + blanks, noise + 1, ending + 1]))

    def room(self, n: int) -> Room:
        """Each blank takes a mask in the source and an end token in the target; blanks of one token are the worst."""
        c = self.config
        noise = max(1, round(n * c.rate))
        blanks = noise if c.token or c.sentence else 1
        target = max(2 * noise if c.token else 0, n + noise if c.sentence else 0, n + 1 if c.document else 0)
        return Room(n, target, n + 2 * blanks)

    def example(self, ids: Ids, rng: np.random.Generator) -> Example | None:
        if len(ids) < 2:
            return None
        c = self.config
        shares = np.array([c.token, c.sentence, c.document])
        kind = int(rng.choice(3, p=shares / shares.sum()))
        spans = (self._token, self._sentence, self._document)[kind](ids, rng)
        mark = (self.marks.token, self.marks.sentence, self.marks.document)[kind]
        return self.blanked(ids, spans, mark, rng)

    def _token(self, ids: Ids, rng: np.random.Generator) -> list[tuple[int, int]]:
        # The first token stays, so that a text is never all blanks (and a document keeps its beginning).
        n = len(ids) - 1
        lengths = poisson_lengths(min(max(1, round(len(ids) * self.config.rate)), n), self.config.mean_span, rng, 1)
        return [(start + 1, end + 1) for start, end in place_spans(n, lengths, rng)]

    def _sentence(self, ids: Ids, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Whole sentences, drawn until they are `rate` of the text; a text of one sentence loses its end."""
        parts = sentences(ids[1:], self.stops)
        starts = 1 + np.cumsum([0, *(len(each) for each in parts)])
        if len(parts) < 2:
            return self._document(ids, rng)
        wanted, spans = max(1, round(len(ids) * self.config.rate)), []
        for which in rng.permutation(len(parts))[:-1]:
            spans.append((int(starts[which]), int(starts[which + 1])))
            if sum(end - start for start, end in spans) >= wanted:
                break
        # Two sentences in a row are one blank: two masks side by side would need 2 tokens more.
        return _merged(sorted(spans))

    def _document(self, ids: Ids, rng: np.random.Generator) -> list[tuple[int, int]]:
        longest = len(ids) - 1
        shortest = min(longest, max(1, round(self.config.shortest * len(ids))))
        return [(len(ids) - int(rng.integers(shortest, longest + 1)), len(ids))]

    def blanked(self, ids: Ids, spans: list[tuple[int, int]], mark: int, rng: np.random.Generator) -> Example:
        """The example whose blanks are these spans, in random order."""
        source: list[Ids] = []
        places: list[int] = []
        done = 0
        for number, (start, end) in enumerate(spans):
            places.append(start - sum(b - a - 1 for a, b in spans[:number]))
            source += (ids[done:start], np.array([mark]))
            done = end
        inputs, target, first, second = [], [], [], []
        for number in rng.permutation(len(spans)).tolist():
            span = ids[slice(*spans[number])]
            inputs += (np.array([self.marks.start]), span)
            target += (span, np.array([self.marks.end]))
            first.append(np.full(len(span) + 1, places[number]))
            second.append(np.arange(1, len(span) + 2))
        join = np.concatenate
        return Example(
            join((*source, ids[done:])),
            join(target),
            inputs=join(inputs),
            positions=join(first),
            block_positions=join(second),
        )

    def continuation(self, before: Ids, after: Ids) -> Example:
        """A text that ends in one blank: [gMASK] where whole endings are trained, else [MASK]."""
        c = self.config
        mark = self.marks.document if c.document else self.marks.token if c.token else self.marks.sentence
        inputs = np.concatenate(([self.marks.start], after))[: max(1, len(after))]
        return Example(
            np.concatenate((before, [mark])),
            after,
            inputs=inputs,
            positions=np.full(len(inputs), len(before)),
            block_positions=np.arange(1, len(inputs) + 1),
        )


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for start, end in spans:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out
