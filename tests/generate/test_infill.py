"""Blanks of a model with GLM's two positions: the engine gives what the module's full forward does, alone or in company."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.generate.cache import Cache
from lmlab.generate.decoders import decoder_for
from lmlab.generate.engine import Beam, Engine, Sampling
from lmlab.generate.infill import MARKS, Blank
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.objective.blanks import BlankTask, Marks
from lmlab.objective.layout import Layout
from lmlab.objective.settings import BlankInfilling
from lmlab.text.tokenizer import train

VOCABULARY, CONTEXT, START, END = 37, 40, 2, 3


def glm(seed: int = 0, **switches: object) -> Transformer:
    shape = {"layers": 2, "d_model": 16, "heads": 2, "vocab_size": VOCABULARY, "context_length": CONTEXT}
    shape |= {"architecture": "prefix-decoder", "position": "glm-2d"}
    model = Transformer(ModelConfig.model_validate(shape | switches)).initialise(seed).eval()
    with torch.no_grad():  # far from uniform, so that an error is seen
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight *= 8 if "position" in name else 4
    return model


@torch.inference_mode()
def forward(model: Transformer, part: Sequence[int], place: int, piece: Sequence[int]) -> torch.Tensor:
    """Logits (T, V) of the module itself, without a cache, the batch made as it is in training."""
    A, B = len(part), len(piece)
    positions = torch.tensor([[*range(A), *[place] * B]])
    inside = torch.tensor([[0] * A + list(range(1, B + 1))])
    prefix = torch.tensor([[A] * A + [0] * B])
    tokens = torch.tensor([[*part, *piece]])
    return model(tokens, positions_BT=positions, block_positions_BT=inside, prefix_B=prefix).logits()[0]


def greedy(model: Transformer, part: Sequence[int], place: int, count: int) -> list[int]:
    piece = [START]
    for _ in range(count):
        piece.append(int(forward(model, part, place, piece)[-1].argmax()))
    return piece[1:]


PROMPTS = st.lists(
    st.lists(st.integers(4, VOCABULARY - 1), min_size=1, max_size=12).flatmap(
        lambda ids: st.tuples(st.just(ids), st.integers(0, len(ids) - 1))
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(prompts=PROMPTS, seed=st.integers(0, 50), offset=st.sampled_from([0, 1]), embedding_norm=st.booleans())
def test_greedy_text_is_the_module_s_alone_and_in_company(
    prompts: list[tuple[list[int], int]], seed: int, offset: int, embedding_norm: bool
) -> None:
    model = glm(seed, position_offset=offset, embedding_norm=embedding_norm)
    asked = [ids for ids, _ in prompts]
    choices = [Sampling(6, blank=place, decoder_start_ids=(START,), stop_ids=()) for _, place in prompts]
    wanted = [greedy(model, ids, place, 6) for ids, place in prompts]
    for max_batch in (1, 2, 8):
        found = Engine(model, max_batch=max_batch).generate(asked, choices)
        assert [each.ids for each in found] == wanted


@settings(max_examples=25, deadline=None)
@given(prompts=PROMPTS, seed=st.integers(0, 50))
def test_cached_logits_are_the_full_forward_s(prompts: list[tuple[list[int], int]], seed: int) -> None:
    model = glm(seed)
    decoder = decoder_for(model)
    piece = np.random.default_rng(seed).integers(4, VOCABULARY, 5).tolist()
    with torch.inference_mode():
        cache = Cache(model.config, len(prompts), CONTEXT, torch.device("cpu"))
        whole = [[*ids, START] for ids, _ in prompts]
        sources = [Blank(len(ids), place) for ids, place in prompts]
        rows = list(range(len(prompts)))
        decoder.prefill(whole, cache=cache, rows=rows, sources=sources, prefix=True)
        for step, token in enumerate(piece):
            places = [len(ids) + 1 + step for ids, _ in prompts]
            found = decoder.logits(decoder.decode([token] * len(prompts), places, cache))
            for row, (ids, place) in enumerate(prompts):
                wanted = forward(model, ids, place, [START, *piece[: step + 1]])[-1]
                torch.testing.assert_close(found[row], wanted, atol=1e-4, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(prompts=PROMPTS, seed=st.integers(0, 50))
def test_scores_are_the_full_forward_s(prompts: list[tuple[list[int], int]], seed: int) -> None:
    """Several fillings of one blank share its text; the mask is the prompt's last token where no tokenizer names it."""
    tokenizer = train(["the cat sat"] * 5, 300, extra_tokens=MARKS)
    model = glm(seed, vocab_size=tokenizer.vocab_size)
    mask, start = tokenizer.token_id("[MASK]"), tokenizer.token_id(MARKS[3])
    pairs, places = [], []
    for number, (ids, place) in enumerate(prompts):
        part = [100 + each for each in ids]  # none of them a mark
        part[place] = mask
        pairs += [(part, [5 + number, 7]), (part, [9]), (part, [11, 4, 6 + number])]
        places += [place] * 3
    for (part, piece), place, found in zip(pairs, places, Engine(model, tokenizer).score(pairs), strict=True):
        logprobs = forward(model, part, place, [start, *piece[:-1]]).log_softmax(-1)[len(part) :]
        wanted = logprobs.gather(1, torch.tensor(piece)[:, None]).sum()
        assert found.logprob == pytest.approx(float(wanted), abs=1e-4)
        assert found.greedy == (logprobs.argmax(-1).tolist() == piece)


def test_positions_are_those_of_training() -> None:
    """The example that training makes of a text with one blank, through the layout, is what the engine computes."""
    model = glm(4)
    task = BlankTask(BlankInfilling(), Marks(30, 31, 32, START, END), np.array([], dtype=np.int64))
    ids = np.arange(5, 17)
    example = task.blanked(ids, [(4, 8)], 30, np.random.default_rng(0))
    batch, _ = Layout("prefix-decoder", CONTEXT, 0, 0, 0, blocks=True).batch([example])
    with torch.inference_mode():
        trained = model(
            batch.tokens_BT,
            positions_BT=batch.positions_BT,
            block_positions_BT=batch.block_positions_BT,
            prefix_B=batch.prefix_BT,
            segments_BT=batch.segments_BT,
            padding_BT=batch.padding_BT,
        ).logits()[0]
        length = int((batch.segments_BT[0] >= 0).sum())
        decoder = decoder_for(model)
        hidden = decoder.prefill([batch.tokens_BT[0, :length].tolist()], sources=[Blank(9, 4)], prefix=True)
    torch.testing.assert_close(decoder.logits(hidden), trained[:length], atol=1e-4, rtol=1e-4)


def test_beams_samples_and_speculation_fill_the_same_blank() -> None:
    model, asked = glm(1), [[8, 30, 9, 10], [11, 12, 30]]
    greedily = Sampling(6, blank=1, decoder_start_ids=(START,), stop_ids=())
    engine = Engine(model, decoder_start_id=START, stop_ids=[])
    alone = [engine.generate([ids], greedily)[0].ids for ids in asked]
    found, _ = engine.speculate(asked, Engine(glm(2), decoder_start_id=START), greedily, tokens=3)
    assert [each.ids for each in found] == alone
    draws = [Sampling(6, temperature=1.0, seed=seed, blank=1, stop_ids=()) for seed in range(6)]
    together = engine.generate([asked[0]] * 6, draws)
    assert [each.ids for each in together] == [engine.generate([asked[0]], each)[0].ids for each in draws]
    tokenizer = train(["the cat sat"] * 5, 300, extra_tokens=MARKS)
    named = Engine(glm(3, vocab_size=tokenizer.vocab_size), tokenizer)
    part = [120, tokenizer.token_id("[sMASK]"), 121]
    best = named.beam_search([part], Beam(1, 5, stop_ids=()))[0][0]
    assert best.completion.ids == named.generate([part], Sampling(5, stop_ids=()))[0].ids
    assert (
        named.generate([[120]], Sampling(5))[0].ids
        == named.generate([[120, tokenizer.token_id("[gMASK]")]], Sampling(5))[0].ids
    )
    assert tokenizer.token_id("<|endofpiece|>") in named.stop_ids


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(2), "begins with a start token"),
        (Sampling(2, decoder_start_ids=(START,)), "expected blank, the place of the mask"),
        (Sampling(2, decoder_start_ids=(START,), blank=3), "expected a place in the prompt, 0 to 2"),
        (Sampling(2, decoder_start_ids=(99,), blank=0), "token id 99"),
    ],
)
def test_a_prompt_that_names_no_blank_is_refused(sampling: Sampling, message: str) -> None:
    with pytest.raises(Refused, match=message):
        Engine(glm()).generate([[5, 6, 7]], sampling)


def test_what_has_no_place_or_two_is_refused() -> None:
    tokenizer = train(["the cat sat"] * 5, 300, extra_tokens=MARKS)
    mask = tokenizer.token_id("[MASK]")
    with pytest.raises(Refused, match="has blanks at 0, 2"):
        Engine(glm(vocab_size=tokenizer.vocab_size), tokenizer).generate([[mask, 5, mask]])
    with pytest.raises(Refused, match="blank belongs to position glm-2d"):
        causal = ModelConfig(layers=1, d_model=8, heads=1, vocab_size=9, context_length=9)
        Engine(Transformer(causal)).generate([[1]], Sampling(1, blank=0))
    with pytest.raises(Refused, match="sparse attention pattern"):
        Engine(glm(attention="local(3)"))
