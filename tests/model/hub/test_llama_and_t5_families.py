"""Families of the Llama line, T5 and BART: random tiny models of transformers' own classes, there and back (harness.py)."""

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from harness import VOCABULARY, check_family  # noqa: E402

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied, one key head": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama gelu": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}),
    "llama dynamic": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0}},
    ),
    "llama yarn": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 500.0,
                "original_max_position_embeddings": 8,
            }
        },
    ),
    "llama3": (
        "Llama",
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500.0, **LLAMA3}},
    ),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 10}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 12, "attention_bias": True}),
    "qwen3 windows": (
        "Qwen3",
        {
            "head_dim": 12,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral window": ("Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 6}),
    "gemma": ("Gemma", {"head_dim": 12, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 12,
            "sliding_window": 5,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "olmo2": ("Olmo2", {}),
    "olmo2 biased": ("Olmo2", {"attention_bias": True, "tie_word_embeddings": True}),
    "glm": ("Glm", {"head_dim": 16}),
    "glm without biases": ("Glm", {"head_dim": 8, "attention_bias": False, "partial_rotary_factor": 0.25}),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_there_and_back(name: str, tmp_path: Path) -> None:
    family, settings = DECODERS[name]
    config = getattr(transformers, f"{family}Config")(**SHAPE | settings)
    made = getattr(transformers, f"{family}ForCausalLM")
    check_family(lambda: made(config), tmp_path)


T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "attn_implementation": "eager",
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 56,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
    "attn_implementation": "eager",
}
SWITCH = {name: value for name, value in T5.items() if name not in ("num_layers", "num_decoder_layers")} | {
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 1,
    "num_experts": 3,
}
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", T5),
    "t5 gelu": ("T5", T5 | {"feed_forward_proj": "gelu_new", "num_decoder_layers": 1}),
    "t5 v1.1": ("T5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "switch": ("SwitchTransformers", SWITCH),
    "switch, tokens dropped": ("SwitchTransformers", SWITCH | {"expert_capacity": 3}),
    "switch, experts everywhere": (
        "SwitchTransformers",
        SWITCH | {"num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 3, "expert_capacity": 4},
    ),
    "bart": ("Bart", BART),
    "bart scaled": ("Bart", BART | {"scale_embedding": True, "activation_function": "relu"}),
}


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoder_there_and_back(name: str, tmp_path: Path) -> None:
    family, settings = ENCODER_DECODERS[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    theirs = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    if name == "t5 v1.1":
        theirs.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCABULARY, 32))
    check_family(lambda: theirs, tmp_path)
