"""GGUF: tensors, metadata and tokenizer read back with the library, and the model opened by transformers' reader."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.model.exchange import export_model
from lmlab.model.hub import SpecialTokens
from lmlab.model.hub.gguf import _rule
from lmlab.model.store import save_model, write_model
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import Tokenizer, train

gguf = pytest.importorskip("gguf")

SHAPE = {"layers": 2, "d_model": 64, "heads": 4, "vocab_size": 310, "context_length": 40, "rope_theta": 500.0}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2, "tie_embeddings": False, "eps": 1e-6},
    "qwen3": {"qk_norm": True, "head_dim": 24, "kv_heads": 1, "d_ff": 96},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["the cat sat on the mat\n"] * 20, 290, split_digits=False)


def model_of(**switches: Any) -> Transformer:
    model = Transformer(ModelConfig.model_validate(SHAPE | switches)).initialise(1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_model(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = model_of(**KINDS[kind])
    save_model(tmp_path / "made", ours, tokenizer)
    found = export_model(str(tmp_path / "made"), tmp_path / "out", "gguf", "float32")
    assert found["architecture"] == kind and found["files"] == ["model.gguf"] and found["tokenizer"]
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = str(tmp_path / "out" / "model.gguf")
    shape = load_gguf_checkpoint(path)["config"]
    assert shape["model_type"] == kind
    shape["head_dim"] = ours.config.sizes().head_dim  # which this reader leaves out; the file has it, see below
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**shape)).eval()
    weights = load_gguf_checkpoint(path, return_tensors=True, model_to_load=theirs)["tensors"]
    missing, more = theirs.load_state_dict(weights, strict=False)
    assert not more and (not missing or (missing == ["lm_head.weight"] and ours.config.tie_embeddings))
    ids = torch.randint(0, 290, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids).logits(), theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "float16", "q8_0"])
def test_what_is_written_is_read_back(precision: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours = model_of(**KINDS["qwen3"])
    save_model(tmp_path / "made", ours, tokenizer)
    path = tmp_path / "mine.gguf"
    command = ["model", "export", str(tmp_path / "made"), str(path), "--format", "gguf", "--precision", precision]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["files"] == ["mine.gguf"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["made", "mine.gguf"]

    reader = gguf.GGUFReader(path)
    tensors = {each.name: each for each in reader.tensors}
    state = ours.state_dict()
    assert len(tensors) == len(state)
    for name, parameter in {
        "token_embd.weight": "embedding.weight",
        "output_norm.weight": "final_norm.weight",
        "blk.1.attn_q.weight": "blocks.1.attention.q.weight",
        "blk.1.attn_k_norm.weight": "blocks.1.attention.k_norm.weight",
        "blk.0.ffn_down.weight": "blocks.0.feed_forward.down.weight",
    }.items():
        wanted = state[parameter].numpy()
        found = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type).reshape(wanted.shape)
        exact = precision == "float32" or wanted.ndim == 1
        bound = 0 if exact else 2**-10 if precision == "float16" else np.abs(wanted).max() / 127
        assert np.abs(found - wanted).max() <= bound
        assert tensors[name].tensor_type.name == ("F32" if exact else {"float16": "F16", "q8_0": "Q8_0"}[precision])
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "qwen3"
    assert (fields["qwen3.block_count"], fields["qwen3.attention.head_count_kv"]) == (2, 1)
    assert (fields["qwen3.attention.key_length"], fields["qwen3.rope.freq_base"]) == (24, 500.0)
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "gpt-2"
    words = fields["tokenizer.ggml.tokens"]
    assert len(words) == 310 and words[tokenizer.eos_id] == "<|endoftext|>" and words[-1] == "[PAD309]"
    assert fields["tokenizer.ggml.token_type"][tokenizer.eos_id] == 3 and fields["tokenizer.ggml.token_type"][-1] == 5
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    assert fields["tokenizer.ggml.eot_token_id"] == tokenizer.end_of_turn_id
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    merges = json.loads((tmp_path / "made" / "tokenizer.json").read_text())["model"]["merges"]
    assert [each.split(" ") for each in fields["tokenizer.ggml.merges"]] == [list(each) for each in merges]


def test_digits_one_by_one_are_said_to_differ(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    digits = train(["the cat sat on the mat 12\n"] * 20, 290)
    save_model(tmp_path / "made", model_of(), digits)
    export_model(str(tmp_path / "made"), tmp_path / "out", "gguf")
    assert "several spaces before a digit" in capsys.readouterr().err
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    assert reader.fields["tokenizer.ggml.pre"].contents() == "smollm"


def test_the_rules_that_have_a_name_cut_as_the_tokenizer_does() -> None:
    """`gpt-2` and `smollm` as the ecosystem has them, against ours on random text without runs of spaces before digits."""
    from tokenizers import pre_tokenizers as cut

    theirs = {
        False: cut.ByteLevel(add_prefix_space=False),
        True: cut.Sequence([cut.Digits(individual_digits=True), cut.ByteLevel(add_prefix_space=False)]),
    }
    draw = random.Random(0)
    words = ["the", "Don't", "we'll", "été", "x_1", "12", "3.5", "(", "...", "\n\n", "  ", "\t", "中文", "½", "'s"]
    for digits, rule in theirs.items():
        ours = train(["the cat\n"], 290, split_digits=digits)
        backend = ours._parsing.pre_tokenizer
        assert _rule(json.loads(ours._parsing.to_str())["pre_tokenizer"]) == ("smollm" if digits else "gpt-2")
        for _ in range(300):
            text = "".join(draw.choice(words) + draw.choice(["", " "]) for _ in range(12))
            if digits and re.search(r"\s\s\d|\s\s½", text):
                continue
            assert [piece for piece, _ in backend.pre_tokenize_str(text)] == [
                piece for piece, _ in rule.pre_tokenize_str(text)
            ], text


def test_without_a_tokenizer_and_what_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_model(tmp_path / "bare", model_of(), SpecialTokens(2), [2])
    found = export_model(str(tmp_path / "bare"), tmp_path / "out", "gguf", "q8_0")
    assert found["tokenizer"] is False
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    assert reader.fields["tokenizer.ggml.model"].contents() == "no_vocab"
    with pytest.raises(Refused, match="is there and not empty"):
        export_model(str(tmp_path / "bare"), tmp_path / "out", "gguf")
    with pytest.raises(Refused, match="precision 'int4' is not known"):
        export_model(str(tmp_path / "bare"), tmp_path / "new", "gguf", "int4")
    with pytest.raises(Refused, match="belongs to format gguf"):
        export_model(str(tmp_path / "bare"), tmp_path / "hf", precision="float16")
    write_model(tmp_path / "softcap", model_of(logit_softcap=20.0), SpecialTokens(2), [2])
    with pytest.raises(Refused, match="shaped like Llama or Qwen 3: logit_softcap is 20"):
        export_model(str(tmp_path / "softcap"), tmp_path / "soft", "gguf")
    save_model(tmp_path / "made", model_of(), tokenizer)
    path = tmp_path / "made" / "tokenizer.json"
    data = json.loads(path.read_text())
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\S+|\s+"}
    path.write_text(json.dumps(data))
    with pytest.raises(Refused, match="cuts text by a rule that GGUF readers have no name for"):
        export_model(str(tmp_path / "made"), tmp_path / "cut", "gguf")
    save_model(tmp_path / "reward", model_of(), tokenizer, {"score.weight": torch.zeros(1, 64)})
    with pytest.raises(Refused, match="is a reward model"):
        export_model(str(tmp_path / "reward"), tmp_path / "scored", "gguf")
