"""Published models have their published parameter counts; and what the command line says of them."""

import json

import pytest
import torch
from typer.testing import CliRunner

import lmlab
from lmlab.cli import app
from lmlab.errors import Refused
from lmlab.generate.engine import Sampling
from lmlab.model import store
from lmlab.model.config import ModelConfig
from lmlab.model.count import memory
from lmlab.model.presets import PRESETS, preset
from lmlab.model.transformer import Transformer

EXACT = {
    "gpt1": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-small": 125_226_240,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "bloom-176b": 176_247_271_424,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "palm-8b": 8_632_012_800,
    "palm-62b": 62_495_662_080,
    "palm-540b": 540_356_474_880,
    "u-palm-540b": 540_356_474_880,
    "opt-125m": 125_239_296,
}
CLOSE = {
    "gpt3-medium": 355.9e6, "gpt3-large": 760.3e6, "gpt3-xl": 1.316e9, "gpt3-2.7b": 2.652e9, "gpt3-6.7b": 6.658e9,
    "gpt3-13b": 12.95e9, "gpt3-175b": 174.6e9, "t5-v1.1-xxl": 11.1e9, "bart-base": 139e6, "bart-large": 406e6,
    "bloom-560m": 0.56e9, "bloom-3b": 3.0e9, "bloom-7b1": 7.1e9, "gopher-44m": 44e6, "gopher-117m": 117e6,
    "gopher-417m": 417e6, "gopher-7.1b": 7.1e9, "gopher-280b": 279.7e9, "chinchilla-44m": 44e6, "chinchilla-117m": 117e6,
    "chinchilla-251m": 251e6, "chinchilla-425m": 425e6, "chinchilla-70b": 70.06e9, "glm-base": 110e6, "glm-large": 335e6,
    "glm-130b": 128.7e9, "opt-30b": 30e9, "opt-66b": 66e9, "opt-175b": 175e9, "galactica-125m": 124.9e6,
    "galactica-1.3b": 1.315e9, "galactica-6.7b": 6.656e9, "galactica-30b": 29.97e9, "galactica-120b": 121.3e9,
    "switch-xxl": 395e9, "switch-c": 1.57e12, "mixtral-8x7b": 46.70e9, "pangu-alpha-207b": 207e9, "mt-nlg-530b": 530e9,
    "lamda-137b": 137e9, "jurassic-1-178b": 178e9,
}  # fmt: skip
ROUNDED = {
    "gopher-1.4b": 1.4e9, "glm-10b": 10e9, "opt-1.3b": 1.3e9, "opt-2.7b": 2.7e9, "opt-6.7b": 6.7e9, "opt-13b": 13e9,
    "bloom-1b1": 1.1e9, "bloom-1b7": 1.7e9, "switch-large": 26e9, "glam-1.2t": 1.2e12, "switch-base": 7e9,
    "opt-350m": 350e6, "t5-v1.1-small": 77e6, "t5-v1.1-base": 250e6, "t5-v1.1-large": 780e6, "t5-v1.1-xl": 2.8e9,
}  # fmt: skip
"""Published with one or two digits."""
WITHOUT_EMBEDDINGS = {
    "codex-85m": 85e6,
    "codex-300m": 300e6,
    "codex-679m": 679e6,
    "codex-2.5b": 2.5e9,
    "codex-12b": 12e9,
}
ACTIVE = {"mixtral-8x7b": 12.88e9, "glam-1.2t": 97e9}
META = [name for name in PRESETS if preset(name).layers < 300]


def test_every_preset_is_held_to_its_paper() -> None:
    assert {*EXACT, *CLOSE, *ROUNDED, *WITHOUT_EMBEDDINGS} == set(PRESETS)
    for name, count in EXACT.items():
        assert preset(name).parameters()["total"] == count, name
    for table, error in ((CLOSE, 0.01), (ROUNDED, 0.06)):
        for name, count in table.items():
            assert preset(name).parameters()["total"] == pytest.approx(count, rel=error), name
    for name, count in WITHOUT_EMBEDDINGS.items():
        parts = preset(name).parameters()
        assert parts["total"] - parts["embedding"] == pytest.approx(count, rel=0.05), name
    for name, count in ACTIVE.items():
        assert preset(name).parameters()["active"] == pytest.approx(count, rel=0.01), name


@pytest.mark.parametrize("name", META)
def test_the_network_has_as_many_as_the_config_counts(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        network = Transformer(config)
    assert sum(p.numel() for p in network.parameters()) == config.parameters()["total"]


def test_bytes_follow_from_the_shape() -> None:
    config = preset("llama-7b")
    size = memory(config, 2, 100, "bfloat16")
    assert size["kv_cache"] == 2 * 100 * 32 * 2 * 4096 * 2 and size["inference"] == 2 * 6_738_415_616
    assert size["training"] == 16 * 6_738_415_616 == size["weights"] + size["gradients"] + size["optimizer"]
    assert memory(preset("palm-8b"), 1, 1, "float32")["kv_cache"] == 32 * 2 * 256 * 4
    assert memory(preset("t5-small"), 1, 1, "float32")["kv_cache"] == 2 * 6 * 2 * 512 * 4


def test_flops_of_a_token() -> None:
    """PaLM's convention on GPT-2: 6 N of the matrices and their biases, 12 L H K T of the scores."""
    parts = preset("gpt2").parameters()
    matrices = parts["attention"] + parts["feed_forward"] + 50257 * 768
    assert preset("gpt2").flops_per_token(1024) == 6 * matrices + 12 * 12 * 768 * 1024
    experts = preset("mixtral-8x7b").parameters()
    used = experts["active"] - experts["embedding"] - experts["norms"]
    assert preset("mixtral-8x7b").flops_per_token(0) == 6 * used
    t5 = preset("t5-small")
    assert t5.flops_per_token(10) - t5.flops_per_token(0) == 12 * 3 * 6 * 512 * 10


def command(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["model", *words])
    if result.exception is not None and isinstance(result.exception, Refused):
        return 2, str(result.exception)
    assert result.exception is None, result.exception
    return result.exit_code, result.stdout


def test_list_names_every_preset() -> None:
    rows = json.loads(command("list", "--json")[1])
    assert [row["name"] for row in rows] == list(PRESETS)
    assert rows[0] == {
        "name": "gpt1",
        "architecture": "causal-decoder",
        "parameters": 116_534_784,
        "active": 116_534_784,
        "paper": "Radford et al. 2018",
    }
    text = command("list")[1]
    assert all(name in text for name in PRESETS)


@pytest.mark.parametrize("reference", ["gpt2", "preset:gpt2"])
def test_show_takes_a_name_and_a_model(reference: str) -> None:
    found = json.loads(command("show", reference, "--json", "--batch", "2", "--length", "8")[1])
    assert found["parameters"]["total"] == 124_439_808
    assert ModelConfig.model_validate(found["config"]) == preset("gpt2")
    assert found["bytes"]["kv_cache"] == 2 * 8 * 12 * 2 * 768 * 4
    assert "124,439,808" in command("show", reference)[1]


def test_what_cannot_be_shown_is_refused() -> None:
    assert "did you mean 'gpt2-large'" in command("show", "gpt2-larg")[1]
    assert "did you mean 't5-small'" in command("show", "preset:t5-smal")[1]
    assert "expected 1 to the model's context of 1024" in command("show", "gpt2", "--length", "1025")[1]
    assert "precision 'float8'" in command("show", "gpt2", "--precision", "float8")[1]
    assert "batch 0" in command("show", "gpt2", "--batch", "0")[1]


def test_a_preset_is_a_model_with_random_weights(capsys: pytest.CaptureFixture) -> None:
    model = lmlab.load("preset:gopher-44m")
    assert "RANDOM weights" in capsys.readouterr().err
    assert model.logits([[1, 2, 3]]).shape == (1, 3, 32000)
    (answer,) = model.engine.generate([[1, 2]], Sampling(max_new_tokens=3))
    assert len(answer.ids) == 3  # what it says means nothing, but it says it


def test_a_preset_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match=r"540,356,474,880 parameters and needs about"):
        lmlab.load("preset:palm-540b")
    monkeypatch.setattr(store.machine, "memory", lambda: {"available": 2**28})
    with pytest.raises(Refused, match=r"needs about 0.9 GiB of memory in float32; 0.2 GiB are free"):
        lmlab.load("preset:gpt2")
