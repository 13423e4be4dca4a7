"""Episodes: answers sampled from a model, token for token as it chose them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmlab.align.prompts import Prompt
from lmlab.generate.engine import Engine, Sampling
from lmlab.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Episode:
    """A prompt and a sampled response. `response` holds the token that ended it, where one did; `logprobs` are those of
    sampling, in nats, one a response token; `text` is the response without special tokens.
    """

    prompt: Prompt
    response: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    ended: bool
    """By the end-of-turn token; not by the document's end, nor by the length limit."""

    def judged(self, tokenizer: Tokenizer) -> list[int]:
        """What a reward model reads: prompt, response, and the end-of-turn token last, whether it was said or not."""
        stopped = bool(self.response) and self.response[-1] in (tokenizer.eos_id, tokenizer.end_of_turn_id)
        body = self.response[:-1] if stopped else self.response
        return [*self.prompt.ids, *body, tokenizer.end_of_turn_id]


def sample(
    engine: Engine, tokenizer: Tokenizer, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int,
    temperature: float = 1.0,
) -> list[Episode]:  # fmt: skip
    """One episode a prompt, from the whole distribution (no top-k, no top-p: truncated sampling would make estimates of
    the KL negative). Each is a pure function of the weights, its prompt and its seed.
    """
    samplings = [Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed) for seed in seeds]
    episodes = []
    for prompt, done in zip(prompts, engine.generate([list(p.ids) for p in prompts], samplings), strict=True):
        ended = bool(done.ids) and done.ids[-1] == tokenizer.end_of_turn_id
        episodes.append(Episode(prompt, tuple(done.ids), tuple(done.logprobs), done.text, ended))
    return episodes
