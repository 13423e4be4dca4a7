"""Weights used where their file is mapped: the same numbers, the model still whole, and no page given back that was changed."""

from pathlib import Path

import pytest
import torch

import lmlab
from lmlab.generate import mapped
from lmlab.generate.engine import Engine, Sampling
from lmlab.model.config import ModelConfig
from lmlab.model.store import load_model, save_model
from lmlab.model.transformer import Transformer, without_storage
from lmlab.text.tokenizer import train

PAGES = Path("/proc/self/smaps")


@pytest.fixture(scope="module", params=["fast", "experts"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train(["the cat sat on the mat\n"] * 20, 300)
    more = {"moe": {"experts": 2, "top_k": 1}} if request.param == "experts" else {}
    shape = {"layers": 2, "d_model": 128, "heads": 4, "vocab_size": 2000, "context_length": 64}
    path = tmp_path_factory.mktemp(request.param) / "model"
    save_model(path, Transformer(ModelConfig.model_validate(shape | more)).initialise(3), tokenizer)
    return path


def resident(folder: Path) -> int:
    """KiB of the model's file that stand in this process."""
    total, inside = 0, False
    for line in PAGES.read_text().splitlines():
        if line.split(maxsplit=1)[0].endswith(":"):
            total += int(line.split()[1]) if inside and line.startswith("Rss:") else 0
        else:
            inside = str(folder) in line
    return total


@pytest.mark.skipif(not PAGES.exists(), reason="the system tells nothing of its pages")
def test_what_is_laid_out_stands_in_memory_once(folder: Path) -> None:
    size = (folder / "model.safetensors").stat().st_size // 1024
    model = lmlab.load(folder)
    assert resident(folder) < size // 4
    before = model.logits([[5, 6, 7]])  # the model's own weights come from the file again
    assert resident(folder) > size // 4
    torch.testing.assert_close(before, load_model(folder)(torch.tensor([[5, 6, 7]])).logits(), atol=0, rtol=0)


def test_numbers_are_those_of_a_copy(folder: Path) -> None:
    kept, copied = lmlab.load(folder).engine, Engine(load_model(folder), start_id=0)
    pairs = [([5, 6, 7], [8, 9]), ([10], [11])]
    assert kept.score(pairs) == copied.score(pairs)
    assert kept.generate([[5, 6]], Sampling(8))[0].logprobs == copied.generate([[5, 6]], Sampling(8))[0].logprobs


def test_changed_weights_are_never_given_back(folder: Path) -> None:
    """Training a model that was read from a file, and an engine over it."""
    network = load_model(folder)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.5)
    wanted = {name: weight.clone() for name, weight in network.named_parameters()}
    engine = Engine(network, start_id=0)
    assert all(torch.equal(weight, wanted[name]) for name, weight in network.named_parameters())
    before = engine.score([([5], [6, 7])])
    with torch.no_grad():
        network.embedding.weight.zero_()
    assert engine.score([([5], [6, 7])]) == before  # until it is told to refresh, it is what the model was


def test_memory_that_no_file_holds_is_left_alone() -> None:
    network = Transformer(ModelConfig(layers=1, d_model=128, heads=2, vocab_size=500, context_length=8)).initialise(0)
    wanted = [weight.clone() for weight in network.parameters()]
    with mapped.untouched(network):
        for weight in network.parameters():
            mapped.give_back(weight)
    assert all(map(torch.equal, network.parameters(), wanted))


@pytest.mark.parametrize("position", ["rope", "alibi", "sinusoidal", "learned"])
def test_a_model_without_storage_has_its_tables(position: str) -> None:
    config = ModelConfig(layers=1, d_model=8, heads=2, vocab_size=9, context_length=8, position=position)
    made, whole = without_storage(config), Transformer(config)
    assert all(each.is_meta for each in made.parameters())
    assert made.state_dict().keys() == whole.state_dict().keys()
    for name, table in whole.named_buffers():
        assert torch.equal(table, dict(made.named_buffers())[name])
