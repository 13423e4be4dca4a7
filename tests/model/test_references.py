"""Parts against other people's models at random weights: transformers' classes are the oracle, their names mapped here."""

import re

import pytest
import torch
from model_helpers import random_tokens

from lmlab.model.config import ModelConfig, RopeScaling
from lmlab.model.position import scaled_frequencies
from lmlab.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

SIZES = {"layers": 2, "d_model": 32, "heads": 4, "vocab_size": 50, "context_length": 24}
LAYERNORM = {"norm": "layernorm", "norm_bias": True, "bias": True, "activation": "gelu"}


def shake(theirs: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    theirs.eval()
    return dict(theirs.state_dict())


def ours_of(config: ModelConfig, weights: dict[str, torch.Tensor], names: list[tuple[str, str]]) -> Transformer:
    """Our model with their weights; `names` are (pattern, replacement), an empty replacement leaves a weight out."""
    model = Transformer(config).eval()
    state = {}
    for name, tensor in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        if name:
            state[name] = tensor
    model.load_state_dict(state)
    return model


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


T5_NAMES = [
    (r".*embed_tokens.weight|shared.weight", "embedding.weight"),
    (r"lm_head.weight", "head.weight"),
    (r"(encoder|decoder).block.0.layer.0.SelfAttention.relative_attention_bias", r"\1.relative_bias"),
    (r"encoder.block.(\d+).layer.1.", r"encoder.blocks.\1.ff."),
    (r"decoder.block.(\d+).layer.2.", r"blocks.\1.ff."),
    (r"(encoder|decoder).block.(\d+).layer.0.", r"\1.blocks.\2.at."),
    (r"decoder.block.(\d+).layer.1.", r"blocks.\1.cross."),
    (r"decoder\.", ""),
    (r"at.layer_norm", "attention_norm"),
    (r"cross.layer_norm", "cross_attention_norm"),
    (r"ff.layer_norm", "feed_forward_norm"),
    (r"final_layer_norm", "final_norm"),
    (r"at.SelfAttention", "attention"),
    (r"cross.EncDecAttention", "cross_attention"),
    (r"attention\.o\.", "attention.out."),
    (r"ff.DenseReluDense.wi_0", "feed_forward.gate"),
    (r"ff.DenseReluDense.(wi_1|wi)", "feed_forward.up"),
    (r"ff.DenseReluDense.wo", "feed_forward.down"),
]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_t5(version: str) -> None:
    new = version == "1.1"
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=50, d_model=32, d_kv=6, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=4,
            relative_attention_num_buckets=8, relative_attention_max_distance=12, dropout_rate=0.0,
            feed_forward_proj="gated-gelu" if new else "relu", tie_word_embeddings=not new,
        )
    )  # fmt: skip
    weights = shake(theirs)
    if not new:
        weights.pop("lm_head.weight", None)
    config = ModelConfig(
        **{**SIZES, "layers": 3}, architecture="encoder-decoder", encoder_layers=2, head_dim=6, d_ff=40, eps=1e-6,
        activation="geglu-tanh" if new else "relu", position="relative-bias", relative_buckets=8, relative_distance=12,
        attention_scale=1.0, logit_scale=None if new else 32**-0.5, tie_embeddings=not new,
    )  # fmt: skip
    ours = ours_of(config, weights, T5_NAMES)
    source, target = random_tokens(2, 20), random_tokens(2, 15, seed=1)
    mask = torch.ones_like(source)
    mask[0, 13:] = 0
    with torch.inference_mode():
        wanted = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
        agree(ours(target, encoder_tokens_BS=source, encoder_padding_BS=mask == 0).logits(), wanted)


BART_NAMES = [
    (r"^(final_logits_bias|lm_head.weight|model.(encoder|decoder).embed_tokens.weight)$", ""),
    (r"^model\.", ""),
    (r"^shared.weight", "embedding.weight"),
    (r"^decoder\.", ""),
    (r"layers.(\d+)", r"blocks.\1"),
    (r"embed_positions", "position"),
    (r"layernorm_embedding", "embedding_norm"),
    (r"self_attn_layer_norm", "attention_norm"),
    (r"encoder_attn_layer_norm", "cross_attention_norm"),
    (r"final_layer_norm", "feed_forward_norm"),
    (r"self_attn", "attention"),
    (r"encoder_attn", "cross_attention"),
    (r"([qkv])_proj", r"\1"),
    (r"out_proj", "out"),
    (r"fc1", "feed_forward.up"),
    (r"fc2", "feed_forward.down"),
]


def test_bart() -> None:
    theirs = transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=36, decoder_ffn_dim=40, max_position_embeddings=24, dropout=0.0,
        )
    )  # fmt: skip
    config = ModelConfig(
        **SIZES, **LAYERNORM, architecture="encoder-decoder", encoder_layers=1, encoder_d_ff=36, d_ff=40,
        norm_placement="post", embedding_norm=True, position="learned", position_offset=2,
    )  # fmt: skip
    ours = ours_of(config, shake(theirs), BART_NAMES)
    source, target = random_tokens(2, 20), random_tokens(2, 15, seed=1)
    with torch.inference_mode():
        wanted = theirs(input_ids=source, decoder_input_ids=target).logits
        agree(ours(target, encoder_tokens_BS=source).logits(), wanted)


def split_heads(weights: dict[str, torch.Tensor], heads: int) -> dict[str, torch.Tensor]:
    """query_key_value, head by head, as q, k and v."""
    found = {}
    for name, tensor in weights.items():
        if "query_key_value" in name:
            parts = tensor.view(heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).flatten(1, 2)
            found |= {name.replace("query_key_value", each): part for each, part in zip("qkv", parts)}
        else:
            found[name] = tensor
    return found


@pytest.mark.parametrize("parallel", [True, False])
def test_gpt_neox(parallel: bool) -> None:
    theirs = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
            max_position_embeddings=24, rotary_pct=0.5, use_parallel_residual=parallel, tie_word_embeddings=False,
        )
    )  # fmt: skip
    placement = {"norm_placement": "parallel", "parallel_norms": 2} if parallel else {}
    config = ModelConfig(**SIZES, **LAYERNORM, **placement, d_ff=40, rope_fraction=0.5, tie_embeddings=False)
    names = [
        (r".*(rotary_emb|attention.bias|masked_bias).*", ""),
        (r"gpt_neox.embed_in", "embedding"),
        (r"embed_out|lm_head", "head"),
        (r"gpt_neox.final_layer_norm", "final_norm"),
        (r"gpt_neox.layers", "blocks"),
        (r"input_layernorm", "attention_norm"),
        (r"post_attention_layernorm", "feed_forward_norm"),
        (r"attention.dense", "attention.out"),
        (r"mlp.dense_h_to_4h", "feed_forward.up"),
        (r"mlp.dense_4h_to_h", "feed_forward.down"),
    ]
    ours = ours_of(config, split_heads(shake(theirs), 4), names)
    with torch.inference_mode():
        agree(ours(random_tokens(2, 20)).logits(), theirs(random_tokens(2, 20)).logits)


def test_gpt_j() -> None:
    theirs = transformers.GPTJForCausalLM(
        transformers.GPTJConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_inner=40, n_positions=24, rotary_dim=4)
    )
    config = ModelConfig(
        **SIZES, **{**LAYERNORM, "bias": False, "activation": "gelu-tanh"}, feed_forward_bias=True, d_ff=40,
        norm_placement="parallel", rope_fraction=0.5, rope_pairing="interleaved", tie_embeddings=False, head_bias=True,
    )  # fmt: skip
    names = [
        (r".*(attn.bias|masked_bias|embed_positions).*", ""),
        (r"transformer.wte", "embedding"),
        (r"lm_head.bias", "head_bias"),
        (r"lm_head", "head"),
        (r"transformer.ln_f", "final_norm"),
        (r"transformer.h", "blocks"),
        (r"ln_1", "attention_norm"),
        (r"attn.([qkv])_proj", r"attention.\1"),
        (r"attn.out_proj", "attention.out"),
        (r"mlp.fc_in", "feed_forward.up"),
        (r"mlp.fc_out", "feed_forward.down"),
    ]
    ours = ours_of(config, shake(theirs), names)
    with torch.inference_mode():
        agree(ours(random_tokens(2, 20)).logits(), theirs(random_tokens(2, 20)).logits)


def test_bloom_with_padding_on_the_left() -> None:
    theirs = transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=50, hidden_size=36, n_layer=2, n_head=6, attention_dropout=0.0)
    )
    config = ModelConfig(
        **{**SIZES, "d_model": 36, "heads": 6}, **{**LAYERNORM, "activation": "gelu-tanh"}, embedding_norm=True,
        position="alibi",
    )  # fmt: skip
    names = [
        (r"^lm_head.weight$", ""),
        (r"transformer.word_embeddings_layernorm", "embedding_norm"),
        (r"transformer.word_embeddings", "embedding"),
        (r"transformer.ln_f", "final_norm"),
        (r"transformer.h", "blocks"),
        (r"input_layernorm", "attention_norm"),
        (r"post_attention_layernorm", "feed_forward_norm"),
        (r"self_attention.dense", "attention.out"),
        (r"self_attention", "attention"),
        (r"mlp.dense_h_to_4h", "feed_forward.up"),
        (r"mlp.dense_4h_to_h", "feed_forward.down"),
    ]
    ours = ours_of(config, split_heads(shake(theirs), 6), names)
    tokens, mask = random_tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0
    with torch.inference_mode():
        wanted = theirs(tokens, attention_mask=mask).logits
        found = ours(tokens, padding_BT=mask == 0).logits()
    agree(found[mask.bool()], wanted[mask.bool()])


LLAMA_NAMES = [
    (r"lm_head", "head"),
    (r"model.embed_tokens", "embedding"),
    (r"model.norm", "final_norm"),
    (r"model.layers", "blocks"),
    (r"self_attn.([qkv])_proj", r"attention.\1"),
    (r"self_attn.o_proj", "attention.out"),
    (r"self_attn.([qk])_norm", r"attention.\1_norm"),
    (r"mlp.gate_proj", "feed_forward.gate"),
    (r"mlp.up_proj", "feed_forward.up"),
    (r"mlp.down_proj", "feed_forward.down"),
]
SHAPE = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": 24, "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip


def test_olmo2() -> None:
    theirs = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**SHAPE, rms_norm_eps=1e-5))
    config = ModelConfig(
        **SIZES, kv_heads=2, d_ff=40, norm_placement="reordered", qk_norm=True, qk_norm_width="all", tie_embeddings=False,
        rope_theta=theirs.config.rope_parameters["rope_theta"],
    )  # fmt: skip
    names = [
        *LLAMA_NAMES,
        ("post_attention_layernorm", "attention_norm"),
        ("post_feedforward_layernorm", "feed_forward_norm"),
    ]
    ours = ours_of(config, shake(theirs), names)
    with torch.inference_mode():
        agree(ours(random_tokens(2, 20)).logits(), theirs(random_tokens(2, 20)).logits)


def test_mixtral() -> None:
    theirs = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    )
    weights = shake(theirs)
    for name in [each for each in weights if each.endswith("experts.gate_up_proj")]:
        gate, up = weights.pop(name).chunk(2, dim=1)
        base = name.removesuffix("gate_up_proj")
        weights |= {f"{base}gate": gate, f"{base}up": up, f"{base}down": weights.pop(f"{base}down_proj")}
    config = ModelConfig(
        **SIZES, kv_heads=2, d_ff=40, tie_embeddings=False, moe={"experts": 4, "top_k": 2},
        rope_theta=theirs.config.rope_parameters["rope_theta"],
    )  # fmt: skip
    names = [
        *LLAMA_NAMES,
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "feed_forward_norm"),
        (r"(mlp|block_sparse_moe).gate.weight", "feed_forward.router.weight"),
        (r"(mlp|block_sparse_moe).experts", "feed_forward.experts"),
    ]
    ours = ours_of(config, weights, names)
    with torch.inference_mode():
        agree(ours(random_tokens(2, 20)).logits(), theirs(random_tokens(2, 20)).logits)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "linear", "factor": 4.0},
        {"kind": "yarn", "factor": 4.0, "original_context": 512},
        {"kind": "yarn", "factor": 8.0, "original_context": 1000, "beta_fast": 20.0, "beta_slow": 2.0},
        {"kind": "llama3", "factor": 8.0, "original_context": 512, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
)
def test_stretched_rotations(settings: dict) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    named = {"rope_type": settings["kind"], "rope_theta": 10000.0, "factor": settings["factor"]}
    if "original_context" in settings:
        named["original_max_position_embeddings"] = settings["original_context"]
    named |= {k: v for k, v in settings.items() if k.startswith(("beta", "low", "high"))}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=1, max_position_embeddings=4096, rope_parameters=named
    )
    wanted, factor = ROPE_INIT_FUNCTIONS[settings["kind"]](config, "cpu")
    found, ours = scaled_frequencies(64, 10000.0, RopeScaling(**settings), 4096)
    torch.testing.assert_close(found, wanted)
    assert ours == pytest.approx(factor)
