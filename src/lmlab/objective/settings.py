"""The settings `pretrain.objective`: what a model is trained to predict. docs/objectives.md has the formulas and papers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lmlab.config import Config


def _named(value: Any) -> Any:
    """The name alone is the thing with its defaults."""
    return {"name": value} if isinstance(value, str) else value


class CausalLM(Config):
    """Every token is predicted from those before it (survey, eq. 4)."""

    name: Literal["causal-lm"] = "causal-lm"


class PrefixLM(Config):
    """A text is cut in two; what follows is predicted from what stands before (1910.10683, 3.2.3)."""

    name: Literal["prefix-lm"] = "prefix-lm"
    target: float | None = Field(default=None, gt=0, lt=1)
    """Share of the tokens that are predicted (UL2: 0.25); null draws the place of the cut, each as likely as another."""
    mode: str | None = None
    """A special token put before the source, which says what is asked (UL2: [S])."""


class SpanCorruption(Config):
    """Spans of a text are each replaced by a sentinel, and predicted (1910.10683, 3.1.4)."""

    name: Literal["span-corruption"] = "span-corruption"
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are taken out."""
    mean_span: float = Field(default=3.0, ge=1)
    """Mean length of a span, in tokens."""
    mode: str | None = None
    """A special token put before the source, which says what is asked (UL2: [R] or [X])."""


class TokenMasking(Config):
    """Tokens drawn at random become <mask>."""

    name: Literal["token-masking"] = "token-masking"
    rate: float = Field(default=0.15, gt=0, le=1)


class TokenDeletion(Config):
    """Tokens drawn at random vanish: the model must find where."""

    name: Literal["token-deletion"] = "token-deletion"
    rate: float = Field(default=0.15, gt=0, lt=1)


class TextInfilling(Config):
    """Spans of Poisson length each become one <mask>; one of length 0 puts a <mask> between two tokens."""

    name: Literal["text-infilling"] = "text-infilling"
    rate: float = Field(default=0.3, gt=0, lt=1)
    mean_span: float = Field(default=3.0, ge=1)


class SentencePermutation(Config):
    """Sentences change places at random."""

    name: Literal["sentence-permutation"] = "sentence-permutation"


class DocumentRotation(Config):
    """The text begins at a token drawn at random, and what stood before it comes last."""

    name: Literal["document-rotation"] = "document-rotation"


Noise = Annotated[
    Annotated[
        TokenMasking | TokenDeletion | TextInfilling | SentencePermutation | DocumentRotation,
        Field(discriminator="name"),
    ],
    BeforeValidator(_named),
]


class Denoising(Config):
    """A text is written out in full from a damaged copy (BART, 1910.13461)."""

    name: Literal["denoising"] = "denoising"
    noises: tuple[Noise, ...] = Field(default=(SentencePermutation(), TextInfilling()), min_length=1)
    """Applied one after another. The default is that of the released BART."""


class BlankInfilling(Config):
    """Spans are each replaced by a mask and written after the text, in random order (GLM, 2103.10360)."""

    name: Literal["blank-infilling"] = "blank-infilling"
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens blanked, of spans and of sentences."""
    mean_span: float = Field(default=3.0, ge=1)
    """Mean length of a span, drawn from Poisson's distribution."""
    token: float = Field(default=1.0, ge=0)
    """Share of the texts whose spans are blanked, [MASK] (GLM-10B: 0.5)."""
    sentence: float = Field(default=0.0, ge=0)
    """Share of the texts whose sentences are blanked, [sMASK] (GLM-10B: 0.3)."""
    document: float = Field(default=0.0, ge=0)
    """Share of the texts whose end is blanked, [gMASK] (GLM-10B: 0.2)."""
    shortest: float = Field(default=0.5, gt=0, le=1)
    """Of a document-level blank: its length is uniform between this share of the text and all but its first token."""

    @model_validator(mode="after")
    def _some(self) -> BlankInfilling:
        if self.token + self.sentence + self.document <= 0:
            raise ValueError("token, sentence and document are all 0; expected a share above 0")
        return self


class FillInTheMiddle(Config):
    """A text is cut at two characters, and its middle is written last (2207.14255)."""

    name: Literal["fim"] = "fim"
    rate: float = Field(default=0.5, ge=0, le=1)
    """Share of the texts that are rearranged; the others stay as they are."""
    spm: float = Field(default=0.5, ge=0, le=1)
    """Share of these in the order suffix, prefix, middle; the others are prefix, suffix, middle."""


class UL2(Config):
    """The mixture of denoisers of UL2 (2205.05131), or that of UL2R, which continues a causal model (2210.11399)."""

    name: Literal["ul2"] = "ul2"
    recipe: Literal["ul2", "ul2r"] = "ul2"
    """ul2: seven denoisers in equal shares. ul2r: half prefix-lm, a quarter regular, a quarter extreme."""
    mode_tokens: bool = True
    """Say by [R], [S] or [X] which kind is asked."""

    def mixture(self) -> Mixture:
        """The denoisers: R short spans and few, X long ones or many, S the rest of a text."""

        def span(kind: str, mean: float, rate: float, weight: float = 1.0) -> Part:
            mode = kind if self.mode_tokens else None
            return Part(objective=SpanCorruption(rate=rate, mean_span=mean, mode=mode), weight=weight)

        mode = "[S]" if self.mode_tokens else None
        if self.recipe == "ul2r":
            return Mixture(
                parts=(
                    Part(objective=PrefixLM(mode=mode), weight=0.5),
                    span("[R]", 3, 0.15, 0.25),
                    span("[X]", 32, 0.15, 0.125),
                    span("[X]", 3, 0.5, 0.125),
                )
            )
        extreme = tuple(span("[X]", mean, rate) for mean, rate in ((3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5)))
        suffix = Part(objective=PrefixLM(target=0.25, mode=mode))
        return Mixture(parts=(span("[R]", 3, 0.15), span("[R]", 8, 0.15), suffix, *extreme))


PartObjective = Annotated[
    Annotated[
        CausalLM | PrefixLM | SpanCorruption | Denoising | BlankInfilling | FillInTheMiddle | UL2,
        Field(discriminator="name"),
    ],
    BeforeValidator(_named),
]


class Part(Config):
    """One objective of a mixture; of ul2 its denoisers by their shares."""

    objective: PartObjective
    weight: float = Field(default=1.0, gt=0)
    """Its share of the texts is its weight over the sum of all."""


class Mixture(Config):
    """Each text is given to one of several objectives. The loss is the mean over all tokens that carry one."""

    name: Literal["mixture"] = "mixture"
    parts: tuple[Part, ...] = Field(min_length=1)


ObjectiveConfig = Annotated[
    Annotated[
        CausalLM | PrefixLM | SpanCorruption | Denoising | BlankInfilling | FillInTheMiddle | Mixture | UL2,
        Field(discriminator="name"),
    ],
    BeforeValidator(_named),
]
"""One of the objectives; its name alone means its defaults."""
