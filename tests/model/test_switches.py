"""Switches: norm placements by their formulas, constants, initialisations, counts, and what cannot go together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import POSITIONS, make, random_tokens, small
from pydantic import ValidationError

from lmlab.model.config import ModelConfig
from lmlab.model.initialise import learning_rate_multipliers
from lmlab.model.kernels import Kernel
from lmlab.model.moe import Routing
from lmlab.model.norm import deepnorm_constants
from lmlab.model.seeing import Sight
from lmlab.model.settings import MoEConfig, RopeScaling
from lmlab.model.transformer import Transformer
from lmlab.objective.cross_entropy import linear_cross_entropy, token_logprobs
from lmlab.train.optimizer import OptimizerConfig, make_optimizers

ALPHA = 1.7
FORMULAS = {
    "pre": lambda x, f, n, m: x + f(n(x)),
    "post": lambda x, f, n, m: n(x + f(x)),
    "sandwich": lambda x, f, n, m: x + m(f(n(x))),
    "deepnorm": lambda x, f, n, m: n(ALPHA * x + f(x)),
    "reordered": lambda x, f, n, m: x + n(f(x)),
}


@pytest.mark.parametrize("placement", [*FORMULAS, "parallel", "parallel 2"])
def test_a_block_is_the_formula_of_its_placement(placement: str) -> None:
    name, _, norms = placement.partition(" ")
    extra = {"residual_scale": ALPHA} if name == "deepnorm" else {"parallel_norms": int(norms)} if norms else {}
    model = make(norm_placement=name, norm="layernorm", norm_bias=True, **extra)
    x, block = torch.randn(2, 5, 32), model.blocks[0]
    kernel: Kernel = "math"
    place = model.place(Sight(True, 5, 5, x.device), None, kernel)
    with torch.no_grad():

        def attend(y: torch.Tensor) -> torch.Tensor:
            return block.attention(y, place)

        found = block(x, place, Routing())
        if name == "parallel":
            second = block.feed_forward_norm if norms else block.attention_norm
            wanted = x + attend(block.attention_norm(x)) + block.feed_forward(second(x))
        else:
            formula = FORMULAS[name]
            wanted = formula(x, attend, block.attention_norm, block.attention_post_norm)
            wanted = formula(wanted, block.feed_forward, block.feed_forward_norm, block.feed_forward_post_norm)
    torch.testing.assert_close(found, wanted)
    assert (model.final_norm is None) == (name in ("post", "deepnorm"))


def test_deepnorm_constants() -> None:
    both = small(architecture="encoder-decoder", norm_placement="deepnorm", layers=12)
    encoder, decoder = deepnorm_constants(both, encoder=True), deepnorm_constants(both)
    assert [round(each, 3) for each in (*encoder, *decoder)] == [1.761, 0.400, 2.449, 0.289]
    glm = deepnorm_constants(small(norm_placement="deepnorm", deepnorm="glm", layers=70))
    assert glm.alpha == pytest.approx(11.83, abs=5e-3) and glm.beta == pytest.approx(0.0845, abs=5e-5)
    alone = deepnorm_constants(small(norm_placement="deepnorm", layers=8))
    assert alone.alpha == pytest.approx(2.0) and alone.beta == pytest.approx(64**-0.25)
    assert deepnorm_constants(small(norm_placement="deepnorm", residual_scale=3.0)).alpha == 3.0


INITIAL = {
    "gpt2": ({}, {"attention.q": 0.02, "attention.out": 0.01, "feed_forward.down": 0.01, "embedding": 0.02}),
    "small": ({}, {"attention.q": (2 / 640) ** 0.5, "attention.out": 128**-0.5, "embedding": (2 / 640) ** 0.5}),
    "fan-in": ({}, {"attention.q": 128**-0.5, "feed_forward.down": 64**-0.5, "embedding": 128**-0.5}),
    "fan-in, T5": (
        {"attention_scale": 1.0, "logit_scale": 0.1},
        {"attention.q": (128 * 32) ** -0.5, "attention.k": 128**-0.5, "embedding": 1.0},
    ),
    "mup": ({"mup_base_width": 32}, {"attention.q": 128**-0.5, "feed_forward.down": 64**-0.5, "embedding": 0.02}),
    "deepnorm": (
        {"norm_placement": "deepnorm"},
        {"attention.q": (1 / 128) ** 0.5, "attention.v": 16**-0.25 * (1 / 128) ** 0.5},
    ),
}


@pytest.mark.parametrize("name", INITIAL)
def test_weights_start_as_the_scheme_says(name: str) -> None:
    extra, wanted = INITIAL[name]
    config = small(layers=2, d_model=128, d_ff=64, vocab_size=300, initialisation=name.partition(",")[0], **extra)
    model = Transformer(config).initialise(0)
    found = {"embedding": float(model.embedding.weight.detach().std())}
    for part in ("attention.q", "attention.k", "attention.v", "attention.out", "feed_forward.down"):
        found[part] = float(torch.stack([block.get_submodule(part).weight.detach() for block in model.blocks]).std())
    if name == "deepnorm":
        assert found["feed_forward.down"] == pytest.approx(16**-0.25 * (2 / 192) ** 0.5, rel=0.05)
    for part, std in wanted.items():
        assert found[part] == pytest.approx(std, rel=0.05), part


def test_mup_divides_rates_and_logits_by_the_width() -> None:
    narrow = Transformer(small(initialisation="mup", mup_base_width=32)).initialise(0)
    wide = Transformer(small(initialisation="mup", mup_base_width=32, d_model=128)).initialise(0)
    assert set(learning_rate_multipliers(narrow).values()) == {1.0} and narrow.config.head_scale == 1.0
    rates = learning_rate_multipliers(wide)
    assert rates["blocks.0.attention.q.weight"] == 0.25 and rates["embedding.weight"] == 1.0
    assert rates["blocks.0.attention_norm.weight"] == 1.0
    assert wide.config.head_scale == 0.25 and wide.config.score_scale == 1 / 32
    (optimizer,) = make_optimizers(wide, OptimizerConfig(learning_rate=0.1))
    peaks = {id(p): g["peak"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in wide.named_parameters():
        assert peaks[id(parameter)] == pytest.approx(0.1 * rates[name])


def test_head_bias_and_softcap_reach_the_loss() -> None:
    model = make(head_bias=True, logit_softcap=2.0)
    output, targets = model(random_tokens(2, 6)), random_tokens(2, 6, seed=1).flatten()
    weights = torch.rand(12)
    hidden = output.hidden_BTD.flatten(0, 1)
    logits = output.logits().flatten(0, 1)
    assert float(logits.detach().abs().max()) < 2
    wanted = (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * weights).sum()
    found = linear_cross_entropy(hidden, output.head_VD, targets, weights, chunk=5, **output.head)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(each, list(model.parameters()), retain_graph=True) for each in (wanted, found)]
    for one, two in zip(*gradients):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            linear_cross_entropy(hidden, output.head_VD, targets, weights, **output.head), wanted.detach()
        )
        chosen = token_logprobs(hidden, output.head_VD, targets, **output.head)
    torch.testing.assert_close(-(chosen * weights).sum(), wanted.detach())


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any config that can be, small."""
    heads = draw(st.sampled_from([1, 2, 4]))
    architecture = draw(st.sampled_from(["causal-decoder", "prefix-decoder", "encoder-decoder"]))
    joint, norm = architecture == "encoder-decoder", draw(st.sampled_from(["rmsnorm", "layernorm"]))
    placements = ["pre", "post", "sandwich", "deepnorm", "reordered", *([] if joint else ["parallel"])]
    placement = draw(st.sampled_from(placements))
    positions = [each for each in POSITIONS if not joint or each != "alibi"]
    positions += ["glm-2d"] if architecture == "prefix-decoder" else []
    position = draw(st.sampled_from(positions))
    qk_norm, gated = draw(st.booleans()), draw(st.booleans())
    moe = {
        "experts": 3,
        "top_k": 2,
        "every": draw(st.sampled_from([1, 2])),
        "d_ff": draw(st.sampled_from([None, 5])),
        "activation": draw(st.sampled_from([None, "relu"])),
        "shared_experts": draw(st.sampled_from([0, 1])),
    }
    return ModelConfig(
        architecture=architecture,
        layers=draw(st.integers(1, 3)),
        d_model=12 * draw(st.integers(1, 2)),
        heads=heads,
        kv_heads=draw(st.sampled_from([None, 1])),
        head_dim=draw(st.sampled_from([4, 10])),
        d_ff=draw(st.sampled_from([None, 7])),
        encoder_layers=draw(st.sampled_from([None, 1])) if joint else None,
        encoder_heads=draw(st.sampled_from([None, 3])) if joint else None,
        encoder_d_ff=draw(st.sampled_from([None, 9])) if joint else None,
        embedding_dim=draw(st.sampled_from([None, 6])),
        vocab_size=9,
        context_length=6,
        norm=norm,
        norm_bias=norm == "layernorm" and draw(st.booleans()),
        norm_placement=placement,
        parallel_norms=draw(st.sampled_from([1, 2])) if placement == "parallel" else 1,
        embedding_norm=draw(st.booleans()),
        final_norm=draw(st.sampled_from([None, True, False])),
        activation="swiglu" if gated else "gelu",
        position=position,
        position_offset=2 if position in ("learned", "glm-2d") and draw(st.booleans()) else 0,
        bias=draw(st.booleans()),
        qkv_bias=draw(st.sampled_from([None, True, False])),
        attention_out_bias=draw(st.sampled_from([None, True])),
        feed_forward_bias=draw(st.sampled_from([None, False])),
        head_bias=draw(st.booleans()),
        qk_norm=qk_norm,
        qk_norm_width=draw(st.sampled_from(["head", "all"])) if qk_norm else "head",
        tie_embeddings=draw(st.booleans()),
        moe=moe if draw(st.booleans()) else None,
    )


@settings(max_examples=120, deadline=None)
@given(config=configs())
def test_every_config_is_counted_as_it_is_and_saved_as_it_is(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    counts = config.parameters()
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["encoder"] == sum(p.numel() for n, p in model.named_parameters() if n.startswith("encoder."))
    assert counts["cross_attention"] == sum(p.numel() for n, p in model.named_parameters() if ".cross_attention." in n)
    parts = {name: count for name, count in counts.items() if name not in ("active", "total")}
    assert sum(parts.values()) == counts["total"] >= counts["active"] > 0
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    assert config.flops_per_token(6) > 6 * counts["attention"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"encoder_layers": 3}, "a causal-decoder has no encoder"),
        ({"architecture": "encoder-decoder", "position": "alibi"}, "cross-attention has no distance"),
        ({"architecture": "encoder-decoder", "norm_placement": "parallel"}, "no place for cross-attention"),
        ({"architecture": "encoder-decoder", "attention": "local(3)"}, "an encoder-decoder attends in full"),
        ({"architecture": "encoder-decoder", "encoder_heads": 2}, "set head_dim, which both stacks share"),
        ({"position": "glm-2d"}, "needs a prefix-decoder, found causal-decoder"),
        ({"position_offset": 2}, "adds rows to a learned table; position is rope"),
        ({"rope_fraction": 0.4}, "0.4 of a head dimension of 8 is 3 dimensions"),
        ({"position": "none", "rope_fraction": 0.5}, "belongs to position rope, found none"),
        (
            {"position": "none", "rope_scaling": {"kind": "linear", "factor": 2}},
            "rope_scaling: belongs to position rope",
        ),
        ({"rope_scaling": {"kind": "linear", "factor": 0.5}}, "greater than or equal to 1"),
        ({"rope_scaling": {"kind": "yarn", "factor": 2, "beta_slow": 40}}, "beta_fast 32.0 must be above beta_slow"),
        ({"parallel_norms": 2}, "parallel_norms belongs to norm_placement parallel, found pre"),
        ({"residual_scale": 2.0}, "residual_scale: belongs to norm_placement deepnorm, found pre"),
        ({"initialisation": "deepnorm"}, "belongs to norm_placement deepnorm"),
        ({"norm_placement": "deepnorm", "deepnorm": "glm", "architecture": "encoder-decoder"}, "for one stack only"),
        ({"qk_norm_width": "all"}, "qk_norm_width belongs to qk_norm"),
        ({"attention_softcap": 5.0, "position": "alibi"}, "would bound the position bias of alibi"),
        ({"initialisation": "mup"}, "belong together"),
        ({"relative_buckets": 32, "relative_distance": 16, "position": "relative-bias"}, "must be above half"),
        ({"moe": {"experts": 2, "top_k": 3}}, "top_k 3 is more than the 2 experts"),
        ({"norm_placement": "sandwitch"}, "norm_placement"),
    ],
)
def test_what_cannot_go_together_is_refused_with_the_reason(wrong: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        small(**wrong)


def test_an_older_config_still_loads() -> None:
    """The fields of a file written before these switches were there."""
    old = {
        "architecture": "causal-decoder", "layers": 2, "d_model": 32, "heads": 4, "kv_heads": None, "head_dim": None,
        "d_ff": None, "vocab_size": 50, "context_length": 24, "norm": "rmsnorm", "norm_bias": False, "eps": 1e-5,
        "activation": "swiglu", "position": "rope", "rope_theta": 10000.0, "bias": False, "qk_norm": False,
        "tie_embeddings": True, "dropout": 0.0,
    }  # fmt: skip
    assert ModelConfig.model_validate(old) == small()
    assert isinstance(small(moe={"experts": 2}).moe, MoEConfig)
    assert isinstance(small(rope_scaling={"kind": "ntk", "factor": 2.0}).rope_scaling, RopeScaling)
