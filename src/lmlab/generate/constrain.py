"""Answers that match a regular expression or a JSON schema: tokens that cannot go on so are never chosen.

The grammar and its tables are llguidance's (extra `constrain`); here its masks meet the engine's stop tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import Refused
from lmlab.generate.sampling import Sampling
from lmlab.text.tokenizer import Tokenizer


class Constraint:
    """One answer's place in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int, end: int, stop_ids: frozenset[int]) -> None:
        self._matcher, self._vocabulary, self._end = matcher, vocabulary, end
        self._stops = sorted(stop_ids)

    def mask(self, logits_V: Tensor) -> Tensor | None:
        """The logits with -inf at the tokens that are not allowed next; a stop token is, where the answer may end.
        None where no token is allowed: the form needs one that is a stop token, or that the vocabulary lacks."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(bool)
        may_end = bool(allowed[self._end])
        allowed[self._end] = False
        allowed[self._stops] = may_end
        if not allowed.any():
            return None
        return logits_V.masked_fill(~torch.from_numpy(allowed).to(logits_V.device), float("-inf"))

    def take(self, token_id: int) -> bool:
        """Go on by a token that is no stop token. Whether the answer is complete: nothing can follow."""
        self._matcher.consume_token(token_id)
        return bool(self._matcher.is_stopped())


class Grammars:
    """Constraints over one tokenizer. Raises Refused where llguidance is not installed."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise Refused("regex and json_schema need llguidance: pip install 'lmlab[constrain]'") from error
        self._library, self._vocabulary, self._end = llguidance, vocabulary, tokenizer.eos_id
        self._tokenizer = llguidance.LLTokenizer(tokenizer.to_json(), n_vocab=vocabulary, eos_token=tokenizer.eos_id)

    def start(self, name: str, sampling: Sampling, stop_ids: frozenset[int]) -> Constraint:
        """The start of an answer. Raises Refused with the library's reason where the grammar cannot be read."""
        matcher = self._library.LLMatcher
        if sampling.regex is not None:
            kind, grammar = "regex", matcher.grammar_from_regex(sampling.regex)
        else:
            kind, grammar = "json_schema", matcher.grammar_from_json_schema(str(sampling.json_schema))
        made = matcher(self._tokenizer, grammar, log_level=0)
        if made.is_error():
            raise Refused(f"{name}: {kind} cannot be read: {made.get_error()}")
        return Constraint(made, self._vocabulary, self._end, stop_ids)
