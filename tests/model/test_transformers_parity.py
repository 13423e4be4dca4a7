"""Random tiny models, there and back: the same logits and the same greedy text as transformers, in both directions."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmlab.errors import Refused
from lmlab.generate.engine import Engine, Sampling
from lmlab.generate.handle import Model
from lmlab.model.config import ModelConfig
from lmlab.model.store import load_model, load_with_extra, read_config, save_model
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import Tokenizer, train

transformers = pytest.importorskip("transformers")

SHAPES = {
    "llama tied": {},
    "llama untied, grouped": {"tie_embeddings": False, "kv_heads": 2},
    "llama, one key head, wide heads": {"kv_heads": 1, "head_dim": 24, "rope_theta": 500.0},
    "qwen3 tied, grouped": {"qk_norm": True, "kv_heads": 2},
    "qwen3 untied": {"qk_norm": True, "tie_embeddings": False, "d_ff": 40, "eps": 1e-6},
}
PROMPTS = [[20, 21, 22, 23, 24, 25, 26], [30, 31], [7] * 12]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["the cat sat on the mat\n"] * 20, 290)


def random_model(shape: dict, vocab_size: int) -> Transformer:
    config = ModelConfig(layers=2, d_model=32, heads=4, vocab_size=vocab_size, context_length=64, **shape)
    model = Transformer(config).initialise(1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_opens_what_we_save(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours = random_model(SHAPES[name], tokenizer.vocab_size)
    save_model(tmp_path, ours, tokenizer)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__.lower().startswith(name.split(maxsplit=1)[0].split(",", maxsplit=1)[0])
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens = torch.randint(0, tokenizer.vocab_size, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens).logits(), theirs(tokens).logits, atol=1e-4, rtol=0)

    answers = Engine(ours, tokenizer, max_batch=2).generate(PROMPTS, Sampling(16))
    for prompt, answer in zip(PROMPTS, answers):
        alone = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=16
        )
        assert alone[0, len(prompt) :].tolist() == answer.ids

    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[tokenizer.pad_id] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    together = theirs.generate(ids, attention_mask=mask, max_new_tokens=16)
    for row, answer in zip(together[:, longest:].tolist(), answers):
        assert row[: len(answer.ids)] == answer.ids
        assert set(row[len(answer.ids) :]) <= {tokenizer.pad_id}
    with torch.inference_mode():
        padded = theirs(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits
    mine = Model(ours, tokenizer).logits(ids, mask)
    torch.testing.assert_close(mine[mask.bool()], padded[mask.bool()], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "llama tied", "qwen3"])
def test_we_open_what_transformers_saves(kind: str, tmp_path: Path) -> None:
    shape = {
        "vocab_size": 130,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 48,
        "initializer_range": 0.3,
        "tie_word_embeddings": kind == "llama tied",
    }
    torch.manual_seed(0)
    if kind == "qwen3":
        theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape, head_dim=12)).eval()
    else:
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens = torch.randint(0, 130, (2, 48))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens).logits(), theirs(tokens).logits, atol=1e-4, rtol=0)
    wanted = theirs.generate(
        tokens[:1, :5], attention_mask=torch.ones(1, 5, dtype=torch.long), max_new_tokens=20, do_sample=False
    )
    assert Engine(ours, stop_ids=[2]).generate([tokens[0, :5].tolist()], Sampling(20))[0].ids == wanted[0, 5:].tolist()


def test_a_reward_model_opens_as_a_classifier(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours = random_model({"kv_heads": 2}, tokenizer.vocab_size)
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    save_model(tmp_path, ours, tokenizer, {"score.weight": weight})
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.tensor([[20, 21, 22, 23]])
    with torch.inference_mode():
        wanted = theirs(ids).logits[0, 0]
        found = ours(ids).hidden_BTD[0, -1] @ weight[0]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    again, extra = load_with_extra(tmp_path)
    assert torch.equal(extra["score.weight"], weight)
    assert torch.equal(again.embedding.weight, ours.embedding.weight)
    with pytest.raises(Refused, match=r"without a place in this model: score\.weight"):
        load_model(tmp_path)


def test_what_is_saved_is_read_back_exactly(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Also a model that the ecosystem has no name for."""
    for index, shape in enumerate(({"norm": "layernorm", "bias": True, "position": "learned"}, {"qk_norm": True})):
        ours = random_model(shape, tokenizer.vocab_size)
        save_model(tmp_path / str(index), ours, tokenizer)
        again = load_model(tmp_path / str(index))
        assert again.config == ours.config
        assert not again.training
        for (name, a), (other, b) in zip(ours.state_dict().items(), again.state_dict().items()):
            assert name == other and torch.equal(a, b)


def test_half_matching_checkpoints_are_refused_by_name(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(tmp_path, random_model({}, tokenizer.vocab_size), tokenizer)
    whole = load_file(tmp_path / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({name: t for name, t in whole.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(Refused, match=f"weights missing: {lost}"):
        load_model(tmp_path)
    save_file({**whole, "model.layers.9.odd": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(Refused, match=r"without a place in this model: model\.layers\.9\.odd"):
        load_model(tmp_path)
    save_file({**whole, lost: torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(Refused, match=r"up\.weight is \(3, 3\), expected"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(Refused, match="damaged"):
        load_model(tmp_path)


def test_configs_that_are_not_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(Refused, match="holds no model"):
        read_config(tmp_path)
    path.write_text(json.dumps({"model_type": "lama"}))
    with pytest.raises(Refused, match=r"model_type 'lama' is not read yet; did you mean 'llama'"):
        read_config(tmp_path)
    path.write_text(json.dumps({"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}))
    with pytest.raises(Refused, match="rope_type 'yarn'"):
        read_config(tmp_path)
    path.write_text("{")
    with pytest.raises(Refused, match="cannot be read"):
        read_config(tmp_path)
