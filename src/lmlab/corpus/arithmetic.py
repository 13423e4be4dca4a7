"""Generated text with arithmetic: problems, four ways of writing them, documents. The source `generated:arithmetic`.

    plain    47+25=72                          the answer alone
    steps    47+25:7+5=12;4+2+1=7;72           the columns from the right, as on paper, then the answer
    symbol   47#25=72                          what # does is the document's secret: one of four operations
    words    The sum of 47 and 25 is 72

A document has a few lines of one way, each with its line end: what ends a document is no target of training, so without one
nothing would say where an answer ends (and `corpus.normalise` takes the last one away).

**Pairs are held out, not lines**: one in eight unordered pairs of numbers from 10 on belongs to the test, by a hash of the two,
and stands as the operands of no line of any document, whatever the operation, the order and the way. (Pairs with a one-digit
number, the tables that columns are made of, are never held out.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from pydantic import Field, model_validator

from lmlab.config import Config

Choice = TypeVar("Choice")
Way = Literal["plain", "steps", "symbol", "words"]
WAYS: tuple[Way, ...] = ("plain", "steps", "symbol", "words")
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: abs(a - b),
    "larger": max,
    "smaller": min,
}
SYMBOLS = "#@&%"
TEST_SHARE = 8
"""One in so many pairs is held out."""
ATTEMPTS = 10_000
"""Draws of which one in eight at the least is of the wanted split."""


class Arithmetic(Config):
    """What `generated:arithmetic` makes: a pure function of these settings."""

    documents: int = Field(default=20_000, ge=8)
    """How many; one has about 40 bytes."""
    seed: int = Field(default=0, ge=0)
    ways: dict[Way, float] = Field(default_factory=lambda: dict.fromkeys(WAYS, 1.0))
    """Share of the documents by way of writing, relative to each other; 0 where none is given."""
    lines: dict[Way, int] = Field(default_factory=lambda: {"plain": 5, "steps": 1, "symbol": 5, "words": 2})
    """Lines of a document: problems that a model sees before the last one, so at most so many less one are its examples."""
    digits: tuple[float, ...] = (1.0, 4.0, 4.0)
    """Of plain and worked problems the share with operands of one digit, two, three and so on; the others have two."""

    @model_validator(mode="after")
    def _some(self) -> Arithmetic:
        for name, given in (("ways", list(self.ways.values())), ("digits", list(self.digits))):
            if min(given, default=0) < 0 or not sum(given) > 0:
                raise ValueError(f"{name}: expected shares of which none is negative and one is above 0, found {given}")
        lacking = [way for way, share in self.ways.items() if share and self.lines.get(way, 0) < 1]
        if lacking:
            raise ValueError(f"lines: expected at least one line a document, found none for {', '.join(lacking)}")
        return self


def pair_name(a: int, b: int) -> str:
    """Names an unordered pair: what its split is decided by, in generated text and in instructions alike."""
    return f"pair\n{min(a, b)} {max(a, b)}"


def held_out(a: int, b: int) -> bool:
    """Whether the pair belongs to the test, in either order."""
    return min(a, b) >= 10 and hashlib.sha256(pair_name(a, b).encode()).digest()[0] % TEST_SHARE == 0


def operands(rng: np.random.Generator, digits: int, test: bool = False) -> tuple[int, int]:
    """Two numbers of exactly so many digits (of one: 0 to 9), of the test's pairs or of the others."""
    if test and digits < 2:
        raise ValueError("pairs with a one-digit number are never held out")
    low, high = (0, 10) if digits == 1 else (10 ** (digits - 1), 10**digits)
    for _ in range(ATTEMPTS):
        a, b = (int(each) for each in rng.integers(low, high, 2))
        if held_out(a, b) == test:
            return a, b
    raise AssertionError("unreachable: one pair in eight is held out")


@dataclass(frozen=True)
class Column:
    """One column of written addition or subtraction: `x` and `y`, what comes `carried` from the column before, and the
    `value` made of them; `carries` where the next column gets a carry (of a subtraction: lends, and x has its ten)."""

    x: int
    y: int
    carried: bool
    value: int
    carries: bool


def addition(a: int, b: int) -> Iterator[Column]:
    """From the right; the last column's carry is part of its value."""
    carry, places = False, max(len(str(a)), len(str(b)))
    for place in range(places):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        carries = total >= 10 and place < places - 1
        yield Column(x, y, carry, total, carries)
        carry = carries


def subtraction(a: int, b: int) -> Iterator[Column]:
    """From the right; a >= b."""
    borrowed = False
    for place in range(len(str(a))):
        x, y = a // 10**place % 10, b // 10**place % 10
        lends = x - y - borrowed < 0
        x += 10 * lends
        yield Column(x, y, borrowed, x - y - borrowed, lends)
        borrowed = lends


@dataclass(frozen=True)
class Problem:
    """Two numbers and what is done with them. Of a plain or worked difference the larger number stands first."""

    a: int
    b: int
    operation: str

    @property
    def answer(self) -> str:
        return str(OPERATIONS[self.operation](self.a, self.b))

    def written(self, way: Way, symbol: str = SYMBOLS[0]) -> tuple[str, str]:
        """(what is given, what follows): a line without its end. Plain and worked problems are sums and differences."""
        if way == "words":
            return f"The {self.operation} of {self.a} and {self.b} is ", self.answer
        if way == "symbol":
            return f"{self.a}{symbol}{self.b}=", self.answer
        add = self.operation == "sum"
        a, b = (self.a, self.b) if add else (max(self.a, self.b), min(self.a, self.b))
        sign, columns = ("+", addition) if add else ("-", subtraction)
        if way == "plain":
            return f"{a}{sign}{b}=", self.answer
        steps = (f"{c.x}{sign}{c.y}{f'{sign}1' if c.carried else ''}={c.value};" for c in columns(a, b))
        return f"{a}{sign}{b}:", "".join(steps) + self.answer

    def line(self, way: Way, symbol: str = SYMBOLS[0]) -> str:
        return "".join(self.written(way, symbol))


def answer_of(way: Way, output: str) -> str:
    """The answer in what a model wrote after the given part: its first line, and of that, worked, what follows the last
    step."""
    line = output.split("\n", 1)[0]
    return (line.rpartition(";")[2] if way == "steps" else line).strip()


def generator(*words: object) -> np.random.Generator:
    """A random generator that is a pure function of the words."""
    key = hashlib.blake2b("\n".join(map(str, words)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))


def document(config: Arithmetic, number: int) -> str:
    """Document `number`: a few lines of one way, training pairs only; of a symbol one secret operation."""
    rng = generator("arithmetic", config.seed, number)
    way = _drawn(rng, list(config.ways), list(config.ways.values()))
    names = list(OPERATIONS) if way in ("symbol", "words") else ["sum", "difference"]
    secret, symbol = names[int(rng.integers(len(names)))], SYMBOLS[int(rng.integers(len(SYMBOLS)))]
    lines = []
    for _ in range(config.lines[way]):
        digits = 2
        if way in ("plain", "steps"):
            digits = _drawn(rng, range(1, len(config.digits) + 1), config.digits)
        operation = secret if way == "symbol" else names[int(rng.integers(len(names)))]
        lines.append(Problem(*operands(rng, digits), operation).line(way, symbol) + "\n")
    return "".join(lines)


def _drawn(rng: np.random.Generator, choices: Sequence[Choice], weights: Sequence[float]) -> Choice:
    ends = np.cumsum(weights)
    return choices[min(int(np.searchsorted(ends, rng.random() * ends[-1], side="right")), len(choices) - 1)]
