"""Weight files: in parts with an index, the older .bin, half precision; damaged and lying ones are refused by name."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.model.hub import SpecialTokens
from lmlab.model.hub.files import read_weights, write_weights
from lmlab.model.store import load_model, write_model
from lmlab.model.transformer import Transformer

GPT2 = {
    "norm": "layernorm",
    "norm_bias": True,
    "activation": "gelu-tanh",
    "position": "learned",
    "bias": True,
}
SHAPE = {"layers": 2, "d_model": 32, "heads": 4, "vocab_size": 61, "context_length": 40}


def save(folder: Path, limit: int = 10**9, **switches: object) -> Transformer:
    model = Transformer(ModelConfig.model_validate(SHAPE | GPT2 | switches)).initialise(1).eval()
    write_model(folder, model, SpecialTokens(2, 0, 1), [2], limit=limit)
    return model


def same(one: Transformer, other: Transformer) -> bool:
    states = (one.state_dict(), other.state_dict())
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def replace_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, folder / "model.safetensors")


def test_parts_with_an_index(tmp_path: Path) -> None:
    ours = save(tmp_path, limit=20_000)
    parts = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(parts) > 3 and parts[0] == f"model-00001-of-{len(parts):05}.safetensors"
    assert all((tmp_path / part).stat().st_size < 22_000 for part in parts)
    assert same(load_model(tmp_path), ours)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens).logits(), theirs(tokens).logits, atol=1e-4, rtol=0)
    save(tmp_path)  # one file now: the parts and the index go
    assert sorted(path.name for path in tmp_path.glob("model*")) == ["model.safetensors"]


def test_an_index_is_held_against_its_files(tmp_path: Path) -> None:
    save(tmp_path, limit=20_000)
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    first = "model-00001-of"
    part = next(path for path in tmp_path.glob("*.safetensors") if path.name.startswith(first))
    held = load_file(part)
    name = next(iter(held))
    save_file({key: tensor for key, tensor in held.items() if key != name} | {"odd": torch.zeros(1)}, part)
    with pytest.raises(Refused, match=f"{part.name}: is not what .* says it is: lacks: {name}; also holds: odd"):
        load_model(tmp_path)
    part.unlink()
    with pytest.raises(Refused, match=f"names {part.name}, which is not in"):
        load_model(tmp_path)
    index.write_text(json.dumps({"weight_map": good["weight_map"] | {name: "../elsewhere.safetensors"}}))
    with pytest.raises(Refused, match=r"names \.\./elsewhere\.safetensors, which is not in"):
        load_model(tmp_path)
    for wrong in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(wrong)
        with pytest.raises(Refused, match="is no index"):
            load_model(tmp_path)


class _Trap:
    """What a hostile pickle does when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_older_files_are_read_as_tensors_only(tmp_path: Path) -> None:
    ours = save(tmp_path)
    weights = read_weights(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    torch.save(weights, path)
    assert same(load_model(tmp_path), ours)

    path.unlink()
    names = sorted(weights)
    places = {name: f"pytorch_model-0000{1 + (i > 9)}-of-00002.bin" for i, name in enumerate(names)}
    for part in set(places.values()):
        torch.save({name: weights[name] for name in names if places[name] == part}, tmp_path / part)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert same(load_model(tmp_path), ours)
    index.unlink()

    torch.save({"transformer.wte.weight": _Trap(tmp_path / "sprung")}, path)
    with pytest.raises(Refused, match="holds more than tensors, which is not opened"):
        load_model(tmp_path)
    assert not (tmp_path / "sprung").exists()
    path.write_bytes(b"no archive")
    with pytest.raises(Refused, match="is damaged"):
        load_model(tmp_path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(Refused, match="expected tensors by name"):
        load_model(tmp_path)
    path.unlink()
    with pytest.raises(Refused, match=r"holds no weights: expected model\.safetensors, pytorch_model\.bin"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    save(tmp_path)
    replace_weights(tmp_path, {name: tensor.to(dtype) for name, tensor in read_weights(tmp_path).items()})
    state = load_model(tmp_path).state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    stored = load_file(tmp_path / "model.safetensors")["transformer.wpe.weight"]
    assert torch.equal(state["position.weight"], stored.float())


def test_names_without_the_prefix_and_buffers_are_known(tmp_path: Path) -> None:
    """As GPT-2's own files are: saved from the bare model, with the causal mask in them."""
    ours = save(tmp_path)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in read_weights(tmp_path).items()}
    mask = {f"h.{layer}.attn.bias": torch.ones(1, 1, 40, 40) for layer in range(2)}
    head = {"lm_head.weight": ours.embedding.weight.detach().clone()}
    replace_weights(tmp_path, bare | mask | head)
    assert same(load_model(tmp_path), ours)
    replace_weights(tmp_path, bare | {"lm_head.weight": head["lm_head.weight"] + 1})
    with pytest.raises(Refused, match=r"lm_head\.weight differs from the embedding"):
        load_model(tmp_path)


def test_both_names_of_the_neox_head_are_read(tmp_path: Path) -> None:
    neox = {"norm_placement": "parallel", "parallel_norms": 2, "position": "rope", "tie_embeddings": False}
    ours = save(tmp_path, **neox)
    weights = read_weights(tmp_path)
    weights["lm_head.weight"] = weights.pop("embed_out.weight")
    buffers = {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}
    buffers |= {f"gpt_neox.layers.1.attention.{name}": torch.ones(1) for name in ("bias", "masked_bias")}
    replace_weights(tmp_path, weights | buffers)
    assert same(load_model(tmp_path), ours)


def test_missing_left_over_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    save(tmp_path, tie_embeddings=False)
    whole = read_weights(tmp_path)
    for lost in ("transformer.h.1.attn.c_attn.weight", "transformer.wpe.weight", "lm_head.weight"):
        replace_weights(tmp_path, {name: tensor for name, tensor in whole.items() if name != lost})
        with pytest.raises(Refused, match=f"weights missing: {lost}$"):
            load_model(tmp_path)
    replace_weights(tmp_path, whole | {"transformer.h.2.ln_1.weight": torch.zeros(32)})
    with pytest.raises(Refused, match=r"without a place in this model: transformer\.h\.2\.ln_1\.weight"):
        load_model(tmp_path)
    replace_weights(tmp_path, whole | {"transformer.wpe.weight": torch.zeros(39, 32)})
    with pytest.raises(Refused, match=r"position\.weight is \(39, 32\), expected \(40, 32\)"):
        load_model(tmp_path)
    replace_weights(tmp_path, whole | {"transformer.h.0.attn.c_attn.weight": torch.zeros(32, 95)})
    with pytest.raises(Refused):
        load_model(tmp_path)


def test_writing_in_parts_never_splits_a_tensor(tmp_path: Path) -> None:
    weights = {f"w{i}": torch.full((100,), float(i)) for i in range(5)}
    written = write_weights(tmp_path, weights, limit=399)
    assert written == [*(f"model-{i:05}-of-00005.safetensors" for i in range(1, 6)), "model.safetensors.index.json"]
    found = read_weights(tmp_path)
    assert found.keys() == weights.keys() and all(torch.equal(found[n], weights[n]) for n in weights)
