"""A tensor cut into boxes, written by some ranks, is read back box by box, however it was cut."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lmlab.train import pieces

shapes = st.lists(st.integers(0, 7), max_size=3)


def cut(draw: st.DrawFn, shape: list[int]) -> list[tuple[list[int], list[int]]]:
    """(offset, shape) of boxes that make up a tensor: every dimension is cut at some places."""
    ends = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    ranges = [list(itertools.pairwise(each)) or [(0, 0)] for each in ends]
    return [([a for a, _ in box], [b - a for a, b in box]) for box in itertools.product(*ranges)]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=shapes, dtype=st.sampled_from(list(pieces.NAMES)), ranks=st.integers(1, 3))
def test_what_was_cut_one_way_is_read_any_other(tmp_path_factory, data, shape, dtype, ranks) -> None:
    folder: Path = tmp_path_factory.mktemp("pieces")
    whole = torch.randint(0, 2, shape).to(dtype)
    boxes = cut(data.draw, shape)
    holders = [
        data.draw(st.sets(st.integers(0, ranks - 1), min_size=1)) for _ in boxes
    ]  # some boxes are held by several
    described = [
        [["w", pieces.NAMES[dtype], shape, *box] for box, held in zip(boxes, holders) if rank in held]
        for rank in range(ranks)
    ]
    index = pieces.divide(described)
    written = [(piece["file"], piece["offset"]) for piece in index["tensors"]["w"]["pieces"]]
    assert len({tuple(offset) for _, offset in written}) == len(written), "a box is written once"
    per_file: dict[str, list[list[int]]] = {}
    for file, offset in written:
        per_file.setdefault(file, []).append(offset)
    if any(len(offsets) > 1 for offsets in per_file.values()):
        return  # a rank holds one box of a tensor, and these boxes fell otherwise
    for piece in index["tensors"]["w"]["pieces"]:
        held = whole[tuple(slice(o, o + n) for o, n in zip(piece["offset"], piece["shape"]))]
        pieces.write_file(folder / piece["file"], {"w": held})
    (folder / pieces.INDEX).write_text(json.dumps(index))
    saved = pieces.Saved(folder)
    assert torch.equal(saved.read("w").float(), whole.float())
    for offset, size in cut(data.draw, shape):
        box = tuple(slice(o, o + n) for o, n in zip(offset, size))
        assert torch.equal(saved.read("w", offset, size).float(), whole[box].float())


@pytest.mark.parametrize("dtype", list(pieces.NAMES))
def test_safetensors_reads_what_is_written(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "a": torch.tensor(1).to(dtype),
        "b": torch.randint(0, 2, (3, 5)).to(dtype).T,
        "none": torch.empty(0, 4, dtype=dtype),
    }
    told = pieces.write_file(tmp_path / "file", tensors)
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].float(), tensor.float())
    assert told["bytes"] == (tmp_path / "file").stat().st_size


def test_each_writes_about_as_much() -> None:
    """Twelve matrices that all four ranks hold."""
    held = [[f"w{n}", "F32", [8, 8], [0, 0], [8, 8]] for n in range(12)]
    index = pieces.divide([held] * 4)
    files = [piece["file"] for entry in index["tensors"].values() for piece in entry["pieces"]]
    assert {files.count(pieces.file_of(rank)) for rank in range(4)} == {3}


def test_what_does_not_make_up_a_tensor_is_not_saved() -> None:
    half = ["w", "F32", [8, 8], [0, 0], [4, 8]]
    with pytest.raises(ValueError, match="w: its pieces hold 32 of its 64 numbers"):
        pieces.divide([[half], [half]])
    with pytest.raises(ValueError, match=r"w: is F32 \[8, 4\] on rank 1, and F32 \[8, 8\] before"):
        pieces.divide([[half], [["w", "F32", [8, 4], [0, 0], [8, 4]]]])
