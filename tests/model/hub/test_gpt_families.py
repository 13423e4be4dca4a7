"""Families of decoders: random tiny models of transformers' own classes, there and back (harness.py)."""

from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")

from harness import check_family  # noqa: E402

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT = SPECIAL | {"vocab_size": 61, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
SHAPE = SPECIAL | {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LONG = SHAPE | {"max_position_embeddings": 40, "intermediate_size": 56}
OPT = SHAPE | {"max_position_embeddings": 40, "ffn_dim": 56}
STRETCHED = {"rope_theta": 500.0, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 8}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
FALCON = SHAPE | {"max_position_embeddings": 40}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT),
    "gpt2, inner width, unscaled scores, untied": (
        "GPT2",
        GPT | {"n_inner": 40, "scale_attn_weights": False, "activation_function": "relu", "tie_word_embeddings": False},
    ),
    "openai-gpt": ("OpenAIGPT", GPT),
    "openai-gpt, silu, untied": ("OpenAIGPT", GPT | {"afn": "silu", "tie_word_embeddings": False}),
    "opt": ("OPT", OPT),
    "opt-350m: after each branch, narrow embedding": (
        "OPT",
        OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 12},
    ),
    "opt without biases or final norm": (
        "OPT",
        OPT | {"enable_bias": False, "_remove_final_layer_norm": True, "activation_function": "gelu"},
    ),
    "bloom": ("Bloom", SPECIAL | {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "bloom, heads no power of two": (
        "Bloom",
        SPECIAL
        | {"vocab_size": 61, "hidden_size": 48, "n_layer": 2, "n_head": 6, "layer_norm_epsilon": 1e-3}
        | {"tie_word_embeddings": False},
    ),
    "gpt_neox": ("GPTNeoX", LONG),
    "gpt_neox, one after another, half rotated": (
        "GPTNeoX",
        LONG
        | {
            "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
        },
    ),
    "gpt_neox, older names, tied": (
        "GPTNeoX",
        LONG | {"rotary_pct": 1.0, "rotary_emb_base": 500.0, "hidden_act": "gelu_fast", "tie_word_embeddings": True},
    ),
    "gpt_neox, stretched": ("GPTNeoX", LONG | {"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}}),
    "gptj": ("GPTJ", GPT | {"rotary_dim": 4}),
    "gptj, tied": ("GPTJ", GPT | {"rotary_dim": 8, "tie_word_embeddings": True, "activation_function": "gelu"}),
    "gptj, all rotated, inner width": ("GPTJ", GPT | {"rotary_dim": 8, "n_inner": 40}),
    "codegen": ("CodeGen", GPT | {"rotary_dim": 4}),
    "codegen, eight heads": ("CodeGen", GPT | {"n_head": 8, "rotary_dim": 2, "n_inner": 40}),
    "falcon-7b": ("Falcon", FALCON),
    "falcon-40b": ("Falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-40b, untied": (
        "Falcon",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False},
    ),
    "falcon, stretched": ("Falcon", FALCON | {"rope_parameters": LINEAR}),
    "falcon-11b: grouped, one norm": (
        "Falcon",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "bias": True},
    ),
    "falcon, multi-head, one after another": (
        "Falcon",
        FALCON | {"multi_query": False, "parallel_attn": False, "bias": True, "ffn_hidden_size": 40},
    ),
    "phi": ("Phi", LONG),
    "phi, grouped, a quarter rotated": ("Phi", LONG | {"num_key_value_heads": 2, "partial_rotary_factor": 0.25}),
    "phi, stretched": ("Phi", LONG | {"rope_parameters": {"rope_type": "yarn", "factor": 5.0, **STRETCHED}}),
    "starcoder2": ("Starcoder2", LONG | {"num_key_value_heads": 2}),
    "starcoder2 with a window, untied, no biases": (
        "Starcoder2",
        LONG | {"num_key_value_heads": 1, "sliding_window": 5, "tie_word_embeddings": False, "use_bias": False},
    ),
    "starcoder2, stretched": (
        "Starcoder2",
        LONG
        | {"num_key_value_heads": 2}
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 5.0,
                "rope_theta": 500.0,
                "original_max_position_embeddings": 8,
            }
        },
    ),
}
HEADS = {"GPT2": "LMHeadModel", "OpenAIGPT": "LMHeadModel"}


@pytest.mark.parametrize("name", TINY)
def test_files_there_and_back(name: str, tmp_path: Path) -> None:
    family, shape = TINY[name]
    config = getattr(transformers, f"{family}Config")(**shape)
    made = getattr(transformers, family + HEADS.get(family, "ForCausalLM"))
    check_family(lambda: made(config), tmp_path)
