"""The general decoder is the model: scores, and cached generation in a batch, over random configs of every switch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.generate.cache import Cache
from lmlab.generate.decoders import decoder_for
from lmlab.generate.engine import Engine, Sampling
from lmlab.generate.module_decoder import ModuleDecoder
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

CPU, VOCABULARY, CONTEXT, START = torch.device("cpu"), 37, 30, 2
ARCHITECTURES = ["causal-decoder", "prefix-decoder", "encoder-decoder"]
PATTERNS = ["full", "local(3)", "strided(4)", "fixed(5, 2)", ("full", "local(2)"), "local(9)"]
CHOICES = {
    "architecture": ARCHITECTURES,
    "kv_heads": [None, 1, 2],
    "head_dim": [None, 12],
    "embedding_dim": [None, 10],
    "encoder_layers": [None, 1],
    "norm": ["rmsnorm", "layernorm"],
    "norm_placement": ["pre", "post", "sandwich", "deepnorm", "parallel", "reordered"],
    "parallel_norms": [1, 2],
    "embedding_norm": [False, True],
    "final_norm": [None, True, False],
    "activation": ["swiglu", "gelu", "relu2", "geglu-tanh"],
    "position": ["learned", "sinusoidal", "relative-bias", "rope", "alibi", "transformer-xl", "none"],
    "position_offset": [0, 2],
    "relative_distance": [128, 24],
    "rope_fraction": [1.0, 0.5],
    "rope_pairing": ["half", "interleaved"],
    "rope_scaling": [None, {"kind": "linear", "factor": 2.0}, {"kind": "yarn", "factor": 3.0}],
    "attention": PATTERNS,
    "attention_scale": [None, 1.0],
    "attention_softcap": [None, 2.0],
    "logit_softcap": [None, 3.0],
    "embedding_scale": [None, 3.0],
    "logit_scale": [None, 0.4],
    "bias": [False, True],
    "head_bias": [False, True],
    "qk_norm": [False, True],
    "qk_norm_width": ["head", "all"],
    "tie_embeddings": [False, True],
    "moe": [None, {"experts": 3}, {"experts": 4, "top_k": 1, "every": 2, "normalise": "all", "shared_experts": 1}],
}


def fitting(chosen: dict) -> dict:
    """The same switches without those that belong to a switch that was not drawn, so that every draw is a config."""
    drop = set()
    if chosen["position"] != "rope":
        drop |= {"rope_fraction", "rope_pairing", "rope_scaling"}
    if chosen["position"] != "learned":
        drop.add("position_offset")
    if chosen["position"] in ("relative-bias", "alibi", "transformer-xl"):
        drop.add("attention_softcap")
    if chosen["architecture"] == "encoder-decoder":
        drop |= {"attention"} | ({"norm_placement"} if chosen["norm_placement"] == "parallel" else set())
        drop |= {"position"} if chosen["position"] == "alibi" else set()
    else:
        drop.add("encoder_layers")
    if chosen["norm_placement"] != "parallel":
        drop.add("parallel_norms")
    if not chosen["qk_norm"]:
        drop.add("qk_norm_width")
    kept = {name: value for name, value in chosen.items() if name not in drop}
    return kept if "norm_placement" in kept else {k: v for k, v in kept.items() if k != "parallel_norms"}


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """A config of random switches."""
    shape = {"layers": draw(st.integers(1, 2)), "d_model": 16, "heads": 2, "context_length": CONTEXT, "d_ff": 24}
    chosen = fitting({name: draw(st.sampled_from(values)) for name, values in CHOICES.items()})
    return ModelConfig.model_validate({**shape, "vocab_size": VOCABULARY, **chosen})


def shaken(config: ModelConfig, seed: int) -> Transformer:
    """Weights far from the usual start, so that the likeliest token is likelier by far than rounding."""
    model = Transformer(config).initialise(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def logits_of(model: Transformer, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """(len(answer) + 1, V): what the whole model says after the prompt and after each token of the answer."""
    with torch.inference_mode():
        if model.config.has_encoder:
            return model(torch.tensor([[START, *answer]]), encoder_tokens_BS=torch.tensor([prompt])).logits()[0]
        more = {}
        if model.config.architecture == "prefix-decoder":
            more["prefix_B"] = torch.tensor([len(prompt)])
        return model(torch.tensor([[*prompt, *answer]]), **more).logits()[0, len(prompt) - 1 :]


prompts_of = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=14), min_size=1, max_size=4)


@settings(max_examples=90, deadline=None)
@given(config=configs(), prompts=prompts_of, seed=st.integers(0, 99))
def test_generation_with_a_cache_in_a_batch_is_the_model_s_without(
    config: ModelConfig, prompts: list[list[int]], seed: int
) -> None:
    model = shaken(config, seed)
    engine = Engine(model, max_batch=3, decoder_start_id=START)
    answers = engine.generate(prompts, Sampling(8))
    for prompt, answer in zip(prompts, answers):
        logprobs = logits_of(model, prompt, answer.ids[:-1]).log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), chosen, atol=1e-4, rtol=1e-4)
        # Greedy: nothing is likelier, up to rounding. Ids may differ where two tokens are as likely.
        assert float((logprobs.max(-1).values - chosen).max()) < 1e-4
        alone = Engine(model, max_batch=1, decoder_start_id=START).generate([prompt], Sampling(8))[0]
        assert alone == answer  # to the last bit, whoever shares the batch


@pytest.mark.parametrize("position", CHOICES["position"])
@pytest.mark.parametrize("attention", ["full", "local(3)", "strided(4)", "fixed(5, 2)"])
def test_every_position_with_every_pattern(position: str, attention: str) -> None:
    shape = {"layers": 2, "d_model": 16, "heads": 2, "vocab_size": VOCABULARY, "context_length": CONTEXT}
    model = shaken(ModelConfig(**shape, position=position, attention=attention), 0)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8]]
    for prompt, answer in zip(prompts, Engine(model).generate(prompts, Sampling(8))):
        logprobs = logits_of(model, prompt, answer.ids[:-1]).log_softmax(-1)
        assert logprobs.argmax(-1).tolist() == answer.ids
        wanted = [float(row[token]) for row, token in zip(logprobs, answer.ids)]
        assert answer.logprobs == pytest.approx(wanted, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(config=configs(), shared=prompts_of, seed=st.integers(0, 99), data=st.data())
def test_scores_are_the_model_s(config: ModelConfig, shared: list[list[int]], seed: int, data: st.DataObject) -> None:
    model = shaken(config, seed)
    ends = data.draw(st.lists(st.tuples(st.sampled_from(shared), st.lists(st.integers(0, 36), max_size=5)), max_size=5))
    found = Engine(model, decoder_start_id=START).score(ends)
    for (context, continuation), each in zip(ends, found):
        logprobs = logits_of(model, context, continuation[:-1]).log_softmax(-1)
        wanted = sum(float(logprobs[i, token]) for i, token in enumerate(continuation))
        assert each.logprob == pytest.approx(wanted, abs=1e-4, rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(config=configs(), seed=st.integers(0, 99))
def test_the_accelerators_way_gives_the_same(config: ModelConfig, seed: int) -> None:
    """torch's operations all the way, here on the processor: what an accelerator computes with."""
    decoder = ModuleDecoder(shaken(config, seed))
    logits = []
    sources = [[3, 4, 5], [6]] if config.has_encoder else None
    with torch.inference_mode():
        for compiled in (True, False):
            cache = Cache(config, 2, CONTEXT, CPU)
            if not compiled:
                cache.arrays = []
            decoder.prefill([[0, 1, 1, 7, 9], [1]], cache=cache, rows=[0, 1], sources=sources)
            logits.append(decoder.logits(decoder.decode([1, 0], [5, 1], cache)))
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", ["rope", "alibi", "transformer-xl", "relative-bias"])
@pytest.mark.parametrize("start", [1, 64, 70, 128])
def test_a_sequence_in_two_parts_is_the_whole(position: str, start: int) -> None:
    config = ModelConfig(layers=2, d_model=16, heads=2, position=position, vocab_size=9, context_length=150)
    for decoder in (decoder_for(shaken(config, 0)), ModuleDecoder(shaken(config, 0))):
        ids = np.random.default_rng(0).integers(0, 9, 140).tolist()
        with torch.inference_mode():
            whole, parted = Cache(config, 1, 140, CPU), Cache(config, 1, 140, CPU)
            wanted = decoder.prefill([ids], cache=whole, rows=[0])
            decoder.prefill([ids[:start]], cache=parted, rows=[0])
            found = decoder.prefill([ids[start:]], cache=parted, rows=[0], starts=[start])
        torch.testing.assert_close(found, wanted[start:], atol=1e-5, rtol=1e-5)
        if start % 64 == 0:
            assert torch.equal(found, wanted[start:]) and torch.equal(whole.data, parted.data)
