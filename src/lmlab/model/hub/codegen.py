"""CodeGen files (2203.13474): GPT-J with q, k and v in one matrix, in the order of the four devices it was trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.hub import gptj
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import setting
from lmlab.model.hub.fused import SHARDS, parts

MODEL_TYPES = {"codegen": "CodeGenForCausalLM"}

TABLE = gptj.TABLE | parts("transformer.h.{}.attn.qkv_proj")
NAMES = replace(gptj.NAMES, table=TABLE, fused="attn.qkv_proj", order="sharded")
weights_to_hub, weights_from_hub = NAMES.to_hub, NAMES.from_hub


def misfit(config: ModelConfig) -> str | None:
    """Why CodeGen files cannot hold a config, or None."""
    if config.heads % SHARDS:
        return f"heads is {config.heads}, codegen files hold a multiple of {SHARDS}"
    return gptj.misfit(config, "codegen")


def to_hub(config: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
    """The `config.json` of a config."""
    return gptj.to_hub(config, special, "codegen", MODEL_TYPES["codegen"])


def from_hub(hub: dict[str, Any]) -> ModelConfig:
    """A config from `config.json`. Raises ValueError where it asks for a part that this model has not."""
    heads = setting(hub, "n_head", "num_attention_heads")
    if heads % SHARDS:
        raise ValueError(f"n_head is {heads}; expected a multiple of {SHARDS}")
    return gptj.from_hub(hub)
