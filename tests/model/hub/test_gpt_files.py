"""Decoders of the GPT line: which configs their files hold, and files of older releases and of the bare model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

from harness import SPECIAL, compare, liven  # noqa: E402
from test_gpt_families import HEADS, TINY  # noqa: E402

from lmlab.model.config import ModelConfig  # noqa: E402
from lmlab.model.hub import family_of_file  # noqa: E402
from lmlab.model.hub.fit import effective  # noqa: E402
from lmlab.model.store import load_model  # noqa: E402

CHANGES: dict[str, list[Any]] = {
    "norm": ["rmsnorm"],
    "norm_placement": ["pre", "post", "sandwich", "parallel", "reordered"],
    "final_norm": [True, False],
    "embedding_norm": [True],
    "embedding_dim": [12, 32],
    "position": ["learned", "sinusoidal", "rope", "alibi", "none"],
    "position_offset": [2],
    "rope_theta": [500.0],
    "rope_fraction": [0.5, 1.0],
    "rope_pairing": ["half", "interleaved"],
    "kv_heads": [1, 2, 4],
    "heads": [2],
    "head_dim": [6],
    "d_ff": [40],
    "eps": [1e-6],
    "activation": ["relu", "silu", "swiglu"],
    "attention": ["local(5)", ("full", "local(4)"), "strided(4)"],
    "qkv_bias": [True, False],
    "attention_out_bias": [True, False],
    "feed_forward_bias": [True, False],
    "head_bias": [True, False],
    "tie_embeddings": [True, False],
    "qk_norm": [True],
    "attention_scale": [1.0],
    "logit_softcap": [3.0],
}


@pytest.mark.parametrize("name", TINY)
def test_a_config_that_files_are_said_to_hold_comes_back(name: str) -> None:
    """One switch after another is turned: either the family names it as a misfit, or it is written and read again."""
    kind, settings = TINY[name]
    hub = json.loads(getattr(transformers, f"{kind}Config")(**settings).to_json_string(use_diff=False))
    family = family_of_file(hub)
    base = family.from_hub(hub).model_dump()
    held = 0
    for switch, values in CHANGES.items():
        for value in values:
            try:
                config = ModelConfig.model_validate(base | {switch: value})
            except ValueError:
                continue
            if family.misfit(config) is None:
                held += 1
                again = family.from_hub(json.loads(json.dumps(family.to_hub(config, SPECIAL))))
                assert again.sizes() == config.sizes()
                found, wanted = (
                    {name: each for name, each in effective(one).items() if name != "bias"} for one in (again, config)
                )
                assert found == wanted, switch
    assert held > 3


OLD: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "gpt2": ("transformer.", {"h.0.attn.bias": (1, 1, 32, 32), "h.0.attn.masked_bias": ()}),
    "openai-gpt": ("transformer.", {"position_ids": (32,), "h.0.attn.bias": (1, 1, 32, 32)}),
    "opt": ("model.", {}),
    "bloom": ("transformer.", {}),
    "gpt_neox": (
        "gpt_neox.",
        {
            "layers.0.attention.bias": (1, 1, 32, 32),
            "layers.0.attention.masked_bias": (),
            "layers.0.attention.rotary_emb.inv_freq": (1,),
        },
    ),
    "gptj": ("transformer.", {"h.0.attn.bias": (1, 1, 32, 32), "h.0.attn.masked_bias": ()}),
    "codegen": ("", {"transformer.h.0.attn.causal_mask": (1, 1, 32, 32)}),
    "phi": ("model.", {"layers.0.self_attn.rotary_emb.inv_freq": (2,)}),
    "falcon-7b": ("", {"transformer.h.0.self_attention.rotary_emb.inv_freq": (4,)}),
    "starcoder2": ("model.", {}),
}


@pytest.mark.parametrize("name", OLD)
def test_files_of_older_releases_are_read(name: str, tmp_path: Path) -> None:
    """Names of the bare model, buffers that are computed from the config, a tied head written out."""
    kind, settings = TINY[name]
    config = getattr(transformers, f"{kind}Config")(**settings)
    theirs = liven(getattr(transformers, kind + HEADS.get(kind, "ForCausalLM"))(config))
    theirs.save_pretrained(tmp_path)
    cut, buffers = OLD[name]
    file = tmp_path / "model.safetensors"
    weights = {each.removeprefix(cut): tensor for each, tensor in load_file(file).items()}
    weights |= {each: torch.zeros(shape) for each, shape in buffers.items()}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = theirs.lm_head.weight.detach().clone()
    save_file(weights, file)
    compare(load_model(tmp_path), theirs)
