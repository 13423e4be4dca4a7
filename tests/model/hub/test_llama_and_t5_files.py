"""What else a file of these families may hold, what is refused and why, and the sizes of the published models."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmlab.model.config import ModelConfig, MoEConfig, RopeScaling
from lmlab.model.hub import bart, gemma, glm, llama, mixtral, olmo2, switch_transformers, t5
from lmlab.model.presets import PRESETS, preset
from lmlab.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

from harness import SPECIAL, VOCABULARY, liven  # noqa: E402
from test_llama_and_t5_families import BART, SHAPE, SWITCH, T5  # noqa: E402

LLAMA = {"model_type": "llama", "tie_word_embeddings": True} | {k: v for k, v in SHAPE.items() if "attn" not in k}


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn", "dynamic"])
def test_both_spellings_of_a_rotation_are_one(kind: str) -> None:
    more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    more |= {} if kind == "linear" else {"original_max_position_embeddings": 8}
    older = LLAMA | {"rope_theta": 500.0, "rope_scaling": {"type": kind, "factor": 4.0, **more}}
    newer = LLAMA | {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, "factor": 4.0, **more}}
    found = llama.from_hub(older)
    assert found == llama.from_hub(newer)
    assert found.rope_theta == 500.0
    # Up to max_position_embeddings, all that this model takes, the dynamic scaling changes nothing.
    assert (found.rope_scaling is None) == (kind == "dynamic")
    assert llama.from_hub(llama.to_hub(found, SPECIAL)) == found


def test_a_stretched_base_is_written_as_what_it_comes_to() -> None:
    ours = llama.from_hub(LLAMA).model_copy(update={"rope_scaling": RopeScaling(kind="ntk", factor=4.0)})
    assert llama.misfit(ours) is None
    again = llama.from_hub(llama.to_hub(ours, SPECIAL))
    assert again.rope_scaling is None
    for a, b in zip(Transformer(ours).named_buffers(), Transformer(again).named_buffers()):
        torch.testing.assert_close(a[1], b[1])


def test_yarns_two_scales_are_one_factor() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0}
    config = llama.from_hub(LLAMA | {"rope_scaling": rope | {"original_max_position_embeddings": 8}})
    theirs = transformers.LlamaConfig(rope_parameters=rope | {"original_max_position_embeddings": 8}, **SHAPE)
    _, factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    assert config.rope_scaling is not None and config.rope_scaling.attention_factor == pytest.approx(factor)


def whole(hub: dict[str, Any], model_type: str) -> dict[str, Any]:
    return hub | {"model_type": model_type}


REFUSED: list[tuple[ModuleType, dict[str, Any], dict[str, Any], str]] = [
    (
        llama,
        LLAMA,
        {"rope_scaling": {"rope_type": "longrope"}},
        "rope_type 'longrope' is not supported; expected one of",
    ),
    (llama, LLAMA, {"rope_scaling": {"rope_type": "linear"}}, "rope_type 'linear' without a factor"),
    (llama, LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 2, "alpha": 3}}, "'linear' with alpha"),
    (llama, LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": False}}, "truncate false"),
    (llama, LLAMA, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "each kind of layer"),
    (llama, LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported in a llama file"),
    (llama, LLAMA, {"hidden_act": "mish"}, "activation 'mish' is not supported; expected one of"),
    (llama, whole(LLAMA, "qwen2"), {"layer_types": ["chunked_attention"] * 3}, "layer_types 'chunked_attention'"),
    (llama, whole(LLAMA, "qwen3"), {"layer_types": ["sliding_attention"] * 3}, "sliding_window is not set"),
    (llama, whole(LLAMA, "mistral"), {"layer_types": ["full_attention"] * 3}, "layer_types"),
    (gemma, whole(LLAMA, "gemma"), {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
    (gemma, whole(LLAMA, "gemma"), {"hidden_activation": "silu"}, "hidden_activation 'silu' is not supported"),
    (t5, T5, {"feed_forward_proj": "gated-mish"}, "activation 'gated-mish'"),
    (t5, T5, {"relative_attention_num_buckets": 6}, "relative_buckets 6"),
    (bart, BART, {"decoder_attention_heads": 8}, "decoder_attention_heads is 8; this model can do 4 only"),
    (bart, BART, {"normalize_before": True}, "normalize_before is true"),
    (bart, BART, {"tie_word_embeddings": False}, "tie_word_embeddings is false"),
    (switch_transformers, SWITCH, {"router_bias": True}, "router_bias is true"),
    (switch_transformers, SWITCH, {"router_dtype": "bfloat16"}, 'router_dtype is "bfloat16"'),
    (switch_transformers, SWITCH, {"num_sparse_decoder_layers": 3}, "expected every n-th layer of both stacks"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[3])
def test_what_would_change_the_numbers_is_refused_by_name(case: Any) -> None:
    module, hub, change, message = case
    assert module.misfit(module.from_hub(hub)) is None
    with pytest.raises(ValueError, match=re.escape(message)):
        module.from_hub(hub | change)


@pytest.mark.parametrize("module, hub", [(llama, LLAMA), (t5, T5), (bart, BART)])
def test_a_missing_setting_is_named(module: ModuleType, hub: dict[str, Any]) -> None:
    with pytest.raises(KeyError, match="vocab_size"):  # `read_config` says that the file names none
        module.from_hub({name: value for name, value in hub.items() if name != "vocab_size"})


PLAIN = {"layers": 2, "d_model": 32, "heads": 4, "vocab_size": 50, "context_length": 16}
MISFITS: list[tuple[ModuleType, dict[str, Any], str]] = [
    (llama, {"norm": "layernorm"}, "norm is layernorm; llama files hold rmsnorm only"),
    (llama, {"position": "alibi"}, "position is alibi"),
    (llama, {"attention_out_bias": True}, "attention_out_bias is True"),
    (llama, {"attention": ("local(4)", "local(5)")}, "windows of one width only"),
    (llama, {"attention": "strided(4)"}, "attention is strided(4)"),
    (llama, {"activation": "relu"}, "activation is relu"),
    (llama, {"moe": MoEConfig(experts=2)}, "moe is"),
    (llama, {"initialisation": "mup", "mup_base_width": 8}, "attention_scale is"),
    (llama, {"qk_norm": True, "feed_forward_bias": True}, "feed_forward_bias is True; qwen3 files"),
    (mixtral, {}, "no experts"),
    (mixtral, {"moe": MoEConfig(experts=2, normalise="all")}, "moe.normalise is all; expected chosen"),
    (mixtral, {"moe": MoEConfig(experts=2, every=2)}, "moe.every is 2"),
    (mixtral, {"moe": MoEConfig(experts=2, sequence_capacity=4)}, "moe.sequence_capacity is 4"),
    (gemma, {}, "activation is swiglu; gemma files hold geglu-tanh only"),
    (olmo2, {}, "norm_placement is pre; olmo2 files hold reordered only"),
    (glm, {}, "rope_pairing is half; glm files hold interleaved only"),
    (t5, {}, "architecture is causal-decoder"),
    (bart, {}, "architecture is causal-decoder; bart files hold encoder-decoder only"),
    (switch_transformers, {}, "no experts"),
]


@pytest.mark.parametrize("case", MISFITS, ids=lambda case: f"{case[0].__name__.split('.')[-1]} {case[2]}")
def test_what_a_family_cannot_hold_is_said(case: Any) -> None:
    module, change, words = case
    assert words in module.misfit(ModelConfig(**PLAIN | change))


ALL = (llama, mixtral, gemma, olmo2, glm, t5, bart, switch_transformers)


def test_presets_find_their_family() -> None:
    """No family fails to say of any preset whether it fits, and at most one family holds it."""
    found = {name: [m.__name__.split(".")[-1] for m in ALL if m.misfit(preset(name)) is None] for name in PRESETS}
    fitting = {name: families for name, families in found.items() if families}
    assert all(len(families) == 1 for families in fitting.values()), fitting
    for name, family in {"llama-7b": "llama", "mixtral-8x7b": "mixtral", "t5-base": "t5", "bart-large": "bart"}.items():
        assert fitting[name] == [family]


def saved(theirs: Any, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    liven(theirs).save_pretrained(folder, **options)
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_stacked_experts_are_read_as_those_apart(tmp_path: Path) -> None:
    theirs = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SHAPE, num_local_experts=3))
    apart = saved(theirs, tmp_path / "apart")
    lively_once = theirs.state_dict()
    assert "model.layers.0.mlp.experts.gate_up_proj" in lively_once
    config = mixtral.from_hub(json.loads((tmp_path / "apart" / "config.json").read_text()))
    (first, left), (second, none) = (mixtral.weights_from_hub(w, config) for w in (apart, lively_once))
    assert left == none == []
    assert same(first, second)
    del apart["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    found, _ = mixtral.weights_from_hub(apart, config)
    assert set(first) - set(found) == {"blocks.1.feed_forward.experts.up"}


def test_copies_of_a_tied_weight() -> None:
    """An equal copy is dropped, one that differs is refused, one that stands alone is the weight."""
    config = llama.from_hub(LLAMA)
    state = Transformer(config).initialise(0).state_dict()
    file = llama.weights_to_hub(state, config)
    embedding = file["model.embed_tokens.weight"]
    computed = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    found, left = llama.weights_from_hub(file | computed | {"lm_head.weight": embedding.clone()}, config)
    assert same(found, state) and left == []
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        llama.weights_from_hub(file | {"lm_head.weight": embedding + 1}, config)
    found, left = llama.weights_from_hub({name.removeprefix("model."): t for name, t in file.items()}, config)
    assert same(found, state) and left == []
    alone = {name: t for name, t in file.items() if name != "model.embed_tokens.weight"} | {"lm_head.weight": embedding}
    found, left = llama.weights_from_hub(alone, config)
    assert same(found, state) and left == []
    assert llama.weights_from_hub({"model.layers.0.odd": embedding}, config) == ({}, ["model.layers.0.odd"])


def test_older_files_of_encoder_decoders(tmp_path: Path) -> None:
    theirs = transformers.BartForConditionalGeneration(transformers.BartConfig(**BART))
    file, config = saved(theirs, tmp_path / "bart"), bart.from_hub(BART)
    full, _ = bart.weights_from_hub(file, config)
    bare = {name.removeprefix("model."): t for name, t in file.items() if name.startswith("model.")}
    bare |= {"encoder.embed_tokens.weight": bare["shared.weight"].clone()}
    found, left = bart.weights_from_hub(bare, config)
    assert left == []
    assert same(found, full | {"head_bias": torch.zeros(VOCABULARY)})

    without = config.model_copy(update={"head_bias": False})
    state = {name: tensor for name, tensor in full.items() if name != "head_bias"}
    assert bart.misfit(without) is None
    again = bart.weights_to_hub(state, without)
    assert again.keys() == file.keys() and not again["final_logits_bias"].any()
    found, left = bart.weights_from_hub(again, without)
    assert left == [] and same(found, state)
    assert bart.weights_from_hub(file, without)[1] == ["final_logits_bias"]

    file = saved(transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)), tmp_path / "t5")
    shared, odd = file["shared.weight"], "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    copies = {name: shared.clone() for name in ("encoder.embed_tokens.weight", "lm_head.weight")}
    found, left = t5.weights_from_hub(file | copies | {odd: torch.zeros(1)}, t5.from_hub(T5))
    assert left == [] and same(found, t5.weights_from_hub(file, t5.from_hub(T5))[0])
    # A v1.1 whose head was tied when it was saved: the file has no head and says so by the scale alone.
    untied = t5.from_hub(T5 | {"tie_word_embeddings": True, "scale_decoder_outputs": False})
    assert not untied.tie_embeddings and untied.logit_scale is None
    assert torch.equal(t5.weights_from_hub(file, untied)[0]["head.weight"], shared)


FAMILIES: list[tuple[ModuleType, str, dict[str, Any]]] = [
    (llama, "LlamaForCausalLM", {}),
    (llama, "MistralForCausalLM", {}),
    (llama, "Qwen2ForCausalLM", {"use_sliding_window": True}),
    (llama, "Qwen3ForCausalLM", {"tie_word_embeddings": True}),
    (mixtral, "MixtralForCausalLM", {}),
    (gemma, "GemmaForCausalLM", {}),
    (gemma, "Gemma2ForCausalLM", {}),
    (olmo2, "Olmo2ForCausalLM", {}),
    (glm, "GlmForCausalLM", {}),
    (t5, "T5ForConditionalGeneration", {}),
    (bart, "BartForConditionalGeneration", {}),
    (
        switch_transformers,
        "SwitchTransformersForConditionalGeneration",
        {"num_sparse_encoder_layers": 6, "num_sparse_decoder_layers": 6},
    ),
]


@pytest.mark.parametrize("module, name, settings", FAMILIES, ids=[name for _, name, _ in FAMILIES])
def test_the_size_of_a_familys_own_default(module: ModuleType, name: str, settings: dict[str, Any]) -> None:
    """The published shape, on no memory: transformers' default config of each class, read and counted."""
    kind = getattr(transformers, name)
    theirs = kind.config_class(**settings)
    with torch.device("meta"):
        network = kind(theirs)
    wanted = sum(parameter.numel() for parameter in network.parameters())
    wanted += theirs.vocab_size if module is bart else 0  # final_logits_bias, a buffer there
    config = module.from_hub(json.loads(theirs.to_json_string(use_diff=False)))
    assert config.parameters()["total"] == wanted
    assert module.misfit(config) is None
    assert module.from_hub(module.to_hub(config, SPECIAL)) == config
    assert kind.config_class(**module.to_hub(config, SPECIAL)).vocab_size == theirs.vocab_size
