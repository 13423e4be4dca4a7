"""Llama-shaped models as a GGUF file, what llama.cpp and its relatives read: one file with metadata, tensors and tokenizer.

Only written, never read: it is a format to serve from. The layout is the `gguf` library's (extra [gguf]); which metadata a
model needs is llama.cpp's convention.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lmlab.errors import Refused, nearest
from lmlab.model.config import ModelConfig
from lmlab.model.hub import names
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.fit import unlike
from lmlab.model.transformer import Transformer
from lmlab.progress import say

PRECISIONS = ("float32", "float16", "q8_0")
"""Of matrices; vectors are float32 always. q8_0: blocks of 32 whole numbers of 8 bits with a factor each."""

TABLE = {
    "embedding": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
    "blocks.{}.attention_norm": "blk.{}.attn_norm",
    "blocks.{}.attention.q": "blk.{}.attn_q",
    "blocks.{}.attention.k": "blk.{}.attn_k",
    "blocks.{}.attention.v": "blk.{}.attn_v",
    "blocks.{}.attention.out": "blk.{}.attn_output",
    "blocks.{}.attention.q_norm": "blk.{}.attn_q_norm",
    "blocks.{}.attention.k_norm": "blk.{}.attn_k_norm",
    "blocks.{}.feed_forward_norm": "blk.{}.ffn_norm",
    "blocks.{}.feed_forward.gate": "blk.{}.ffn_gate",
    "blocks.{}.feed_forward.up": "blk.{}.ffn_up",
    "blocks.{}.feed_forward.down": "blk.{}.ffn_down",
}


def architecture_of(config: ModelConfig) -> str:
    """The name that GGUF readers know a config by. Raises Refused where it is not shaped like Llama or Qwen 3."""
    held = ("kv_heads", "head_dim", "d_ff", "eps", "rope_theta", "qk_norm", "tie_embeddings")
    reason = unlike(config, "GGUF", {}, held)
    if reason is not None:
        raise Refused(f"GGUF is written for models shaped like Llama or Qwen 3: {reason}")
    return "qwen3" if config.qk_norm else "llama"


def write_gguf(
    path: Path, model: Transformer, special: SpecialTokens, tokenizer: Path | None, precision: str = "float16"
) -> str:
    """Write a model, and the tokenizer of a folder where there is one; returns the architecture's name. Raises Refused
    where the model or the tokenizer has no form there, or the library is not installed."""
    if precision not in PRECISIONS:
        raise Refused(f"precision '{precision}' is not known{nearest(precision, PRECISIONS)}")
    try:
        import gguf
    except ImportError:
        raise Refused("GGUF files need the extra [gguf]: pip install 'lmlab[gguf]'") from None
    config = model.config
    kind = architecture_of(config)
    words = None if tokenizer is None else read_words(tokenizer, config.vocab_size)
    writer = gguf.GGUFWriter(path, kind)
    sizes = config.sizes()
    writer.add_name(path.stem)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.d_ff)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.eps)
    kinds = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[kinds[precision]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_words(writer, words, special)
    for name, tensor in names.to_hub(model.state_dict(), TABLE).items():
        array = _paired(name, tensor, kind, config).detach().float().cpu().numpy()
        form = _form(array, precision)
        data = gguf.quants.quantize(array, gguf.GGMLQuantizationType[form])
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[form])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kind


def _form(array: np.ndarray, precision: str) -> str:
    if array.ndim == 1 or precision == "float32":
        return "F32"
    return "Q8_0" if precision == "q8_0" and array.shape[-1] % 32 == 0 else "F16"


def _paired(name: str, tensor: Tensor, kind: str, config: ModelConfig) -> Tensor:
    """Readers of `llama` rotate neighbouring rows, those of `qwen3` rows half a head apart, as we do: so q and k of the
    former are put into the order 0, K/2, 1, K/2 + 1, ..."""
    if kind != "llama" or not name.endswith(("attn_q.weight", "attn_k.weight")):
        return tensor
    return tensor.unflatten(0, (-1, 2, config.sizes().head_dim // 2)).transpose(1, 2).flatten(0, 2)


# How a text is cut before merging goes by a name in these files, not by a rule: the rules that have one.
_CONTRACTIONS = ("'(?:[sdmt]|ll|ve|re)", "'s|'t|'re|'ve|'m|'ll|'d")
_GPT2 = r"{0}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_DIGITS = r"{0}| ?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_LATER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{0}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_RULES = {
    **{_GPT2.format(each): "gpt-2" for each in _CONTRACTIONS},
    **{_DIGITS.format(each): "smollm" for each in _CONTRACTIONS},
    _LATER.format(r"\p{N}{1,3}"): "llama-bpe",
    _LATER.format(r"\p{N}"): "qwen2",
}


def read_words(folder: Path, vocab_size: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer as GGUF has it: pre, tokens, types, merges, end_of_turn, adds_bos, adds_eos, template.

    Raises Refused for another kind of tokenizer, or one whose rule of cutting text has no name there.
    """
    from lmlab.text.tokenizer import Tokenizer

    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    model = data["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or "ByteLevel" not in json.dumps(data["pre_tokenizer"]):
        raise Refused(f"{path}: GGUF is written with byte-level BPE only; this is another kind ({model.get('type')})")
    pre = _rule(data["pre_tokenizer"])
    if pre is None:
        raise Refused(f"{path}: cuts text by a rule that GGUF readers have no name for")
    if pre == "smollm" and "Split" in json.dumps(data["pre_tokenizer"]):
        say("GGUF readers cut several spaces before a digit otherwise than this tokenizer; all other text is cut alike")
    tokens = {place: word for word, place in model["vocab"].items()}
    types = dict.fromkeys(tokens, 1)
    for token in data["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = 3 if token["special"] else 4
    if max(tokens) >= vocab_size:
        raise Refused(f"{path}: has {max(tokens) + 1} tokens and the model {vocab_size}: they do not belong together")
    opened = Tokenizer.load(folder)
    plain, whole = opened.encode("a"), _with_specials(path)
    place = whole.index(plain[0])
    return {
        "pre": pre,
        "tokens": [tokens.get(place, f"[PAD{place}]") for place in range(vocab_size)],
        "types": [types.get(place, 5) for place in range(vocab_size)],  # 5: unused
        "merges": [each if isinstance(each, str) else " ".join(each) for each in model["merges"]],
        "end_of_turn": opened.end_of_turn_id,
        "adds_bos": place > 0,
        "adds_eos": len(whole) > place + len(plain),
        "template": opened.chat_template,
    }


def _with_specials(path: Path) -> list[int]:
    from tokenizers import Tokenizer as Backend

    return Backend.from_file(str(path)).encode("a", add_special_tokens=True).ids


def _rule(pre_tokenizer: dict[str, Any]) -> str | None:
    """The name of a rule of cutting text, or None."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if steps[-1].get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return "gpt-2" if steps[0].get("use_regex", True) else None
    if len(steps) == 2 and steps[0].get("type") == "Digits" and steps[1].get("use_regex", True):
        return "smollm" if steps[0].get("individual_digits") else None
    if len(steps) != 2 or steps[0].get("type") != "Split" or steps[1].get("use_regex", True):
        return None
    return _RULES.get(steps[0].get("pattern", {}).get("Regex", ""))


def _add_words(writer: Any, words: dict[str, Any] | None, special: SpecialTokens) -> None:
    for add, place in (
        (writer.add_eos_token_id, special.eos_id),
        (writer.add_bos_token_id, special.bos_id),
        (writer.add_pad_token_id, special.pad_id),
    ):
        if place is not None:
            add(place)
    if words is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words["pre"])
    writer.add_token_list(words["tokens"])
    writer.add_token_types(words["types"])
    writer.add_token_merges(words["merges"])
    writer.add_add_bos_token(words["adds_bos"])
    writer.add_add_eos_token(words["adds_eos"])
    if words["end_of_turn"] != special.eos_id:
        writer.add_eot_token_id(words["end_of_turn"])
    if words["template"] is not None:
        writer.add_chat_template(words["template"])
