"""A checkpoint knows nothing of ranks: saved on some, resumed on others, the curve goes on; each rank writes what it holds."""

import contextlib
import itertools
import json
import os

import pytest
import torch
from safetensors import safe_open
from toys import Cut, apart, curve, network_of, train, until

from lmlab.errors import Failed
from lmlab.progress import read_jsonl
from lmlab.train import pieces
from lmlab.train.checkpoint import gathered, good, listed
from lmlab.train.parallel import ParallelConfig


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_saved_on_four_goes_on_on_two_and_on_one(ranks, tmp_path, zero, optimizer):
    """And back: four lives of two steps, laid out in four ways, with an average beside."""
    settings = {"steps": 8, "optimizer": optimizer, "ema": 0.9, "checkpoint_steps": 2}
    train("dense", tmp_path / "one", **settings)
    whole, out = network_of("dense"), tmp_path / "lives"
    lives = [(4, {"zero": zero, "tensor": 2}), (2, {"zero": zero}), (1, {}), (2, {"tensor": 2})]
    for place, (size, config) in enumerate(lives):
        last = 2 * place + 2

        def work(world, config=config, last=last):
            with contextlib.suppress(Cut):
                train("dense", out, ParallelConfig(**config), world, sources=until(last), **settings)

        ranks(work, size) if size > 1 else work(None)
        assert [row["step"] for row in read_jsonl(out / "metrics.jsonl")] == list(range(last))
    assert apart(curve(out), curve(tmp_path / "one")) < 1e-8
    found = [pieces.Saved(listed(place / "checkpoints")[-1]) for place in (out, tmp_path / "one")]
    assert found[0].tensors.keys() == found[1].tensors.keys()
    for name in (f"average/{name}" for name, _ in whole.named_parameters()):
        torch.testing.assert_close(found[0].read(name), found[1].read(name), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("zero", "tensor"), [(1, 1), (3, 1), (0, 2)])
def test_each_rank_writes_its_part_and_another_number_goes_on(ranks, tmp_path, zero, tensor):
    out = tmp_path / "two"
    train("dense", tmp_path / "one", steps=4)
    ranks(lambda w: train("dense", out, ParallelConfig(zero=zero, tensor=tensor), w, steps=2) and None, 2)
    newest = listed(out / "checkpoints")[-1]
    assert good(newest)
    index = json.loads((newest / "index.json").read_text())["tensors"]
    numbers = []
    for rank in range(2):
        with safe_open(newest / pieces.file_of(rank), "pt") as file:
            numbers.append(sum(file.get_tensor(name).numel() for name in file.keys()))  # noqa: SIM118
    assert sum(numbers) == sum(torch.Size(entry["shape"]).numel() for entry in index.values())
    assert max(numbers) < 0.6 * sum(numbers)
    train("dense", out, steps=4)
    assert apart(curve(out), curve(tmp_path / "one")) < 1e-8


def test_what_one_rank_cannot_write_is_said_by_all_and_the_run_goes_on(ranks, tmp_path, capfd):
    """Its second checkpoint is lost; the end of a run must be saved, and fails on both."""
    calls = itertools.count()

    def work(world):
        real = pieces.write_file

        def full(path, tensors):
            if world.rank == 1 and next(calls) in (1, 3):
                raise OSError(28, "No space left on device")
            return real(path, tensors)

        pieces.write_file = full
        try:
            train("dense", tmp_path / "two", ParallelConfig(zero=3), world, steps=8, checkpoint_steps=2, keep=9)
        except Failed as error:
            return str(error)
        return "went on"

    first, second = ranks(work, 2)
    assert "step-00000008: rank 1: No space left on device; not saved" in first
    assert first == second
    assert "step-00000004: rank 1: No space left on device; not saved" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "two" / "checkpoints").iterdir() if path.name[0] == "."] == []
    assert [path.name for path in listed(tmp_path / "two" / "checkpoints")] == ["step-00000002", "step-00000006"]


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "rank-00001.safetensors", "index.json"])
def test_a_damaged_file_of_any_rank_is_found_by_all(ranks, tmp_path, capfd, file):
    config, out = ParallelConfig(zero=3), tmp_path / "two"
    train("dense", tmp_path / "one", steps=6)
    ranks(lambda world: train("dense", out, config, world, steps=4, checkpoint_steps=2) and None, 2)
    path = listed(out / "checkpoints")[-1] / file
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    ranks(lambda world: train("dense", out, config, world, steps=6) and None, 2)
    assert f"step-00000004: is damaged ({file}: its checksum differs); using the one before" in capfd.readouterr().err
    assert apart(curve(out), curve(tmp_path / "one")) < 1e-8


def test_the_whole_network_is_given_back(ranks, tmp_path):
    """What rank 0 saves at the end: all weights, under their own names."""

    def work(world):
        network = train("dense", tmp_path / "two", ParallelConfig(zero=3), world, steps=1)
        return {name: tensor.flatten().tolist() for name, tensor in gathered(network).items()}

    first, second = ranks(work, 2)
    assert first == second
    one = train("dense", tmp_path / "one", steps=1)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(torch.tensor(first[name]).double(), tensor.flatten(), atol=1e-7, rtol=0)
    assert first.keys() == network_of("dense").state_dict().keys()
    newest = listed(tmp_path / "two" / "checkpoints")[-1]
    assert json.loads((newest / "state.json").read_text())["step"] == 1
    assert "RANK" not in os.environ
