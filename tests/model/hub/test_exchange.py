"""Which family takes which config, what is refused, and the commands `lmlab model import` and `export`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import lmlab
from lmlab.cli import app
from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.model.hub import SpecialTokens, families, family_of_config, family_of_file, misfits
from lmlab.model.presets import preset
from lmlab.model.store import load_model, load_with_extra, read_config, resolve, save_model, write_model
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import Tokenizer, train

SHAPE = {"layers": 2, "d_model": 32, "heads": 4, "vocab_size": 300, "context_length": 40}
HOMES = {
    "gpt1": "openai-gpt",
    "gpt2-xl": "gpt2",
    "opt-125m": "opt",
    "opt-350m": "opt",
    "bloom-560m": "bloom",
    "llama-7b": "llama",
    "gpt3-small": None,
    "palm-8b": None,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["the cat sat on the mat\n"] * 20, 290)


def model_of(**switches: Any) -> Transformer:
    return Transformer(ModelConfig.model_validate(SHAPE | switches)).initialise(1).eval()


@pytest.mark.parametrize("name", HOMES)
def test_published_models_find_their_family(name: str) -> None:
    config = preset(name)
    family = family_of_config(config)
    if HOMES[name] is None:
        assert family is None
        assert len(misfits(config)) == len(list(families()))
        return
    assert family is not None and HOMES[name] in family.MODEL_TYPES
    hub = family.to_hub(config, SpecialTokens(2, 0, 1))
    assert hub["model_type"] == HOMES[name]
    assert family_of_file(hub) is family
    again = family.from_hub(json.loads(json.dumps(hub)))
    assert again.sizes() == config.sizes() and again.parameters() == config.parameters()
    assert family.misfit(again) is None


SWITCHES: dict[str, dict[str, Any]] = {
    "prefix": {"architecture": "prefix-decoder"},
    "softcap": {"attention_softcap": 30.0},
    "logit softcap": {"logit_softcap": 30.0},
    "scale": {"attention_scale": 0.5},
    "embedding scale": {"embedding_scale": 4.0},
    "logit scale": {"logit_scale": 0.5},
    "pattern": {"attention": ("full", "local(8)")},
    "experts": {"moe": {"experts": 4}},
    "sandwich": {"norm_placement": "sandwich"},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_no_family_takes_a_switch_that_its_files_cannot_hold(name: str) -> None:
    """Laid over a fitting config of each of the families written here."""
    layernorm = {"norm": "layernorm", "norm_bias": True, "activation": "gelu-tanh", "d_ff": 128, "bias": True}
    parallel = layernorm | {"norm_placement": "parallel"}
    bases = {
        "gpt2": layernorm | {"position": "learned"},
        "opt": layernorm | {"position": "learned", "position_offset": 2},
        "bloom": layernorm | {"position": "alibi", "embedding_norm": True},
        "gpt_neox": parallel | {"parallel_norms": 2},
        "gptj": parallel | {"rope_pairing": "interleaved", "head_bias": True, "bias": False, "feed_forward_bias": True},
        "falcon": parallel | {"kv_heads": 1},
        "phi": parallel | {"head_bias": True},
        "starcoder2": layernorm | {"kv_heads": 2},
    }
    for kind, base in bases.items():
        family = family_of_config(ModelConfig.model_validate(SHAPE | base), kind)
        assert family is not None and kind in family.MODEL_TYPES
        try:
            config = ModelConfig.model_validate(SHAPE | base | {"initialisation": "small"} | SWITCHES[name])
        except ValueError:
            continue  # no such model at all
        assert family.misfit(config) is not None, (kind, name)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true; .* false only"),
    "gpt2 of another activation": (
        {"model_type": "gpt2", "activation_function": "mish"},
        "activation_function is mish",
    ),
    "openai-gpt": ({"afn": "tanh"}, "afn is tanh; expected one of gelu, relu"),
    "opt": ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is false"),
    "bloom": (
        {"apply_residual_connection_post_layernorm": True},
        "apply_residual_connection_post_layernorm is true",
    ),
    "gptj": ({"rotary_dim": None}, "rotary_dim is null"),
    "falcon": ({"alibi": True}, "alibi is true"),
    "openai-gpt of another width": ({"model_type": "openai-gpt", "n_inner": 40}, "n_inner is 40"),
    "gptj, more than a head": ({"model_type": "gptj", "rotary_dim": 10}, "rotary_dim is 10"),
    "codegen": ({"n_head": 2, "rotary_dim": 4}, "n_head is 2"),
    "starcoder2, gated": ({"model_type": "starcoder2", "mlp_type": "gated"}, "mlp_type is"),
    "starcoder2, rms": ({"model_type": "starcoder2", "norm_type": "rms_norm"}, "norm_type is"),
    "falcon, grouped in the old kind": (
        {"model_type": "falcon", "multi_query": False, "num_kv_heads": 2},
        "num_kv_heads is 2",
    ),
    "falcon of no known kind": (
        {"model_type": "falcon", "new_decoder_architecture": True, "parallel_attn": False},
        "together are not known",
    ),
    "phi": ({"qk_layernorm": True}, "qk_layernorm is true"),
    "llama, quantised": ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantised weights are not read"),
    "bloom without a size": ({"model_type": "bloom", "n_layer": None}, "names no n_layer or num_hidden_layers"),
    "opt without a size": ({"model_type": "opt", "vocab_size": ...}, "names no vocab_size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_asks_for_and_we_have_not_is_refused(name: str, tmp_path: Path) -> None:
    given, message = REFUSED[name]
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 61}
    shape |= {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 40, "max_position_embeddings": 40}
    hub = {"model_type": name, "intermediate_size": 56} | shape | given
    if "n_layer" in given:
        hub.pop("num_hidden_layers")
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in hub.items() if v is not ...}))
    with pytest.raises(Refused, match=message):
        read_config(tmp_path)


OLDER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pythia": (
        {
            "model_type": "gpt_neox",
            "hidden_act": "gelu",
            "hidden_size": 512,
            "intermediate_size": 2048,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048,
            "num_attention_heads": 8,
            "num_hidden_layers": 6,
            "rotary_emb_base": 10001,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
            "use_parallel_residual": True,
            "vocab_size": 50304,
        },
        {"rope_theta": 10001.0, "rope_fraction": 0.25, "parallel_norms": 2, "bias": True, "tie_embeddings": False},
    ),
    "bloom": (
        {
            "model_type": "bloom",
            "n_embed": 1024,
            "n_layer": 24,
            "num_attention_heads": 16,
            "seq_length": 1024,
            "vocab_size": 250880,
        },
        {"d_model": 1024, "heads": 16, "context_length": 1024, "tie_embeddings": True},
    ),
    "phi-1": (
        {
            "model_type": "phi",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 2048,
            "num_attention_heads": 32,
            "num_hidden_layers": 24,
            "num_key_value_heads": None,
            "partial_rotary_factor": 0.25,
            "rope_scaling": None,
            "rope_theta": 5000.0,
            "vocab_size": 51200,
        },
        {"rope_fraction": 0.25, "rope_theta": 5000.0, "kv_heads": 32, "head_bias": True, "activation": "gelu-tanh"},
    ),
    "gpt2": (
        {"model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257},
        {"context_length": 1024, "activation": "gelu-tanh", "tie_embeddings": True, "eps": 1e-5},
    ),
}


for _name, _share in (("pythia", 0.25), ("phi-1", 0.5)):  # what a family rotates where its file does not say
    _file = {key: value for key, value in OLDER[_name][0].items() if key not in ("rotary_pct", "partial_rotary_factor")}
    OLDER[f"{_name}, silent"] = (_file, {"rope_fraction": _share})


@pytest.mark.parametrize("name", OLDER)
def test_older_spellings_are_read(name: str) -> None:
    hub, wanted = OLDER[name]
    config = family_of_file(hub).from_hub(hub)
    assert {key: getattr(config, key) for key in wanted} == wanted


def test_import_and_export_carry_the_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours = model_of(kv_heads=2)
    save_model(tmp_path / "made", ours, tokenizer)
    runner = CliRunner()
    for verb, source in (("export", "made"), ("import", "export")):
        done = runner.invoke(app, ["model", verb, str(tmp_path / source), str(tmp_path / verb), "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["model_type"] == "llama" and found["architecture"] == "LlamaForCausalLM" and found["tokenizer"]
        assert found["parameters"] == ours.config.parameters()["total"]
        assert found["files"] == sorted(path.name for path in (tmp_path / verb).iterdir())
        model = lmlab.load(tmp_path / verb)
        assert model.generate("the cat", max_new_tokens=4) == lmlab.load(tmp_path / "made").generate(
            "the cat", max_new_tokens=4
        )
        assert model.engine.stop_ids == {tokenizer.eos_id, tokenizer.end_of_turn_id}
    said = runner.invoke(app, ["model", "export", str(tmp_path / "made"), str(tmp_path / "spoken")])
    assert "LlamaForCausalLM" in said.stdout and "with its tokenizer" in said.stdout
    again = runner.invoke(app, ["model", "import", str(tmp_path / "made"), str(tmp_path / "export")])
    assert isinstance(again.exception, Refused) and "is there and not empty" in str(again.exception)
    wrong = runner.invoke(app, ["model", "export", str(tmp_path / "made"), str(tmp_path / "new"), "--format", "hg"])
    assert isinstance(wrong.exception, Refused) and "format 'hg' is not known" in str(wrong.exception)
    assert not (tmp_path / "new").exists()


def test_the_hub_s_older_files_are_fetched_only_where_there_are_no_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        assert name == "someone/model"
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("hf:someone/model") == tmp_path
    assert [any(".bin" in pattern for pattern in patterns) for patterns in asked] == [False, True]
    (tmp_path / "model.safetensors").touch()
    asked.clear()
    assert resolve("hf:someone/model") == tmp_path
    assert len(asked) == 1


def test_without_a_tokenizer_ids_work_and_text_is_refused(tmp_path: Path) -> None:
    ours = model_of()
    write_model(tmp_path / "made", ours, SpecialTokens(2, 0, 1), [2, 7])
    found = CliRunner().invoke(app, ["model", "export", str(tmp_path / "made"), str(tmp_path / "out"), "--json"])
    assert json.loads(found.stdout)["tokenizer"] is False
    model = lmlab.load(tmp_path / "out")
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        assert torch.equal(model.logits(ids), ours(ids).logits())
    assert model.engine.stop_ids == {2, 7}
    for ask in (lambda: model.generate("x"), lambda: model.score([("a", "b")]), lambda: model.chat([])):
        with pytest.raises(Refused, match=r"holds no tokenizer\.json, so it takes ids only"):
            ask()


def test_a_model_without_a_home_is_written_in_our_own_format(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ours = model_of(norm_placement="sandwich", logit_softcap=20.0)
    assert write_model(tmp_path, ours, SpecialTokens(2), [2]) == "lmlab"
    said = capsys.readouterr().err
    assert "no public family has this model (llama: norm_placement is sandwich" in said
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "lmlab"
    again = load_model(tmp_path)
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values(), strict=True))
    (tmp_path / "lmlab.json").unlink()
    with pytest.raises(Refused, match=r"lmlab\.json is missing"):
        load_model(tmp_path)


def test_a_config_that_fits_two_families_stays_in_its_own(tmp_path: Path) -> None:
    gptj = {"norm": "layernorm", "norm_bias": True, "activation": "gelu-tanh", "norm_placement": "parallel"}
    ours = model_of(**gptj, rope_pairing="interleaved", feed_forward_bias=True, head_bias=True)
    ids = torch.arange(12)[None]
    for kind in ("gptj", "codegen"):
        assert write_model(tmp_path / kind, ours, SpecialTokens(2), [2], prefer=kind) == kind
        with torch.inference_mode():
            assert torch.equal(load_model(tmp_path / kind)(ids).logits(), ours(ids).logits())


CLASSIFIERS: dict[str, dict[str, Any]] = {
    "gpt2": {"position": "learned", "bias": True},
    "gpt_neox": {"norm_placement": "parallel", "parallel_norms": 2, "bias": True, "tie_embeddings": False},
    "phi": {"norm_placement": "parallel", "bias": True, "head_bias": True, "tie_embeddings": False},
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_scalar_head_opens_as_the_family_s_classifier(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = model_of(norm="layernorm", norm_bias=True, activation="gelu-tanh", **CLASSIFIERS[kind])
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    assert write_model(tmp_path, ours, SpecialTokens(2, 0), [2], {"score.weight": weight}, kind) == kind
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.tensor([[20, 21, 22, 23]])
    again, extra = load_with_extra(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(
            again(ids).hidden_BTD[0, -1] @ extra["score.weight"][0], theirs(ids).logits[0, 0], atol=1e-4, rtol=0
        )
