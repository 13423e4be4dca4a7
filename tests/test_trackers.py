"""Numbers beside metrics.jsonl: TensorBoard's and Weights & Biases' files hold them, and what is not installed is refused."""

import json
import logging
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlab import trackers
from lmlab.config import parse
from lmlab.device import quiet_compiling
from lmlab.errors import Failed, Refused
from lmlab.progress import Metrics, read_jsonl
from lmlab.provenance import outputs
from lmlab.recipe import check

RECIPE = "corpus: {}\ntokenizer: {}\npretrain:\n  log_to: [tensorboard, wandb]\n"


def logged(folder: Path, names, steps: range, rewind: int | None = None) -> list[dict]:
    metrics = Metrics(folder)
    if rewind is not None:
        metrics.rewind(rewind)
    metrics.track(names, {"learning_rate": 0.1})
    for step in steps:
        metrics.log(step, {"loss": 2.0 - step / 8, "lr": 0.5, "note": "x"})
    metrics.close()
    return read_jsonl(folder / "metrics.jsonl")


def scalars(folder: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {event.step: event.value for event in found.Scalars("loss")}


def records(file: Path) -> Iterator[bytes]:
    """The records of an offline run's file: LevelDB's log format (blocks of 32 KiB; checksum, length, kind) behind 7 bytes."""
    data, at, held = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        held += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield held
            held = b""


def history(folder: Path) -> list[dict]:
    """The rows of all offline runs in a folder, as the client wrote them."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                numbers = {key: value for key, value in items.items() if not key.startswith("_")}
                rows.append({"step": items["_step"], **numbers})
    return rows


def flushed(folder: Path, count: int) -> list[dict]:
    """The same, as soon as there are so many: the client's own process writes them."""
    for _ in range(300):
        if len(history(folder)) >= count:
            break
        time.sleep(0.1)
    return history(folder)


def test_a_stage_that_does_not_train_loads_no_tracker(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.log(0, {"phase": "reading", "seconds": 1.0})
    metrics.close()
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1 and not (tmp_path / "tensorboard").exists()


def test_tensorboard_has_the_numbers_and_a_resumed_run_replaces_its_own(tmp_path: Path) -> None:
    rows = logged(tmp_path, ("tensorboard",), range(4))
    assert scalars(tmp_path) == {row["step"]: row["loss"] for row in rows} and len(rows) == 4
    rows = logged(tmp_path, ("tensorboard",), range(2, 6), rewind=2)
    assert [row["step"] for row in rows] == list(range(6)) and sorted(scalars(tmp_path)) == list(range(6))
    assert outputs(tmp_path) == {}, "no part of what a stage made"


def test_none_writes_where_it_is_installed_and_an_empty_list_nowhere(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").mkdir()
    logged(tmp_path / "a", (), range(2))
    assert not (tmp_path / "a" / "tensorboard").exists()
    (tmp_path / "b").mkdir()
    logged(tmp_path / "b", None, range(2))
    assert (tmp_path / "b" / "tensorboard").exists()
    monkeypatch.setattr(trackers, "missing", lambda name: f"pip install 'lmlab[{name}]'")
    (tmp_path / "c").mkdir()
    assert len(logged(tmp_path / "c", None, range(2))) == 2 and not (tmp_path / "c" / "tensorboard").exists()


@pytest.mark.slow
def test_wandb_has_the_numbers_offline(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "state.json").write_text('{"fingerprint": "abc"}')
    rows = logged(tmp_path, ("wandb", "tensorboard"), range(3))
    found = flushed(tmp_path, 3)
    assert found == [{key: value for key, value in row.items() if key != "note"} for row in rows] and len(found) == 3
    logged(tmp_path, ("wandb",), range(3, 5), rewind=3)
    assert [row["step"] for row in flushed(tmp_path, 5)] == [0, 1, 2, 3, 4]
    ids = {file.stem.removeprefix("run-") for file in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert len(ids) == 1, "a resumed stage goes on with its own run"
    assert outputs(tmp_path) == {}


def test_a_run_that_cannot_be_opened_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(
        Failed, match=r"UsageError: No API key configured; log in with `wandb login`, or set WANDB_MODE=off"
    ):
        logged(tmp_path, ("wandb",), range(1))


def test_a_missing_extra_is_refused_with_its_command(monkeypatch) -> None:
    check(parse(RECIPE, "recipe"), "recipe")
    monkeypatch.setattr(trackers, "missing", lambda name: "pip install 'lmlab[wandb]'" if name == "wandb" else None)
    with pytest.raises(
        Refused, match=r"recipe:4:3: pretrain.log_to: wandb is not installed: pip install 'lmlab\[wandb\]'"
    ):
        check(parse(RECIPE, "recipe"), "recipe")
    with pytest.raises(Refused, match=r"sft.train.log_to.0: Input should be 'tensorboard' or 'wandb'; found 'mlflow'"):
        check(parse("sft: {from: {model: preset:gpt2}, train: {log_to: [mlflow]}}", "recipe"), "recipe")


def test_where_numbers_go_is_no_part_of_what_is_made() -> None:
    stages = [check(parse(RECIPE + more, "r"), "r").arms[""][-1] for more in ("", "  steps: 7\n")]
    assert "log_to" not in stages[0].config.essence() and stages[1].config.essence()["steps"] == 7


def test_torch_says_nothing_of_a_toolkit_without_a_gpu(tmp_path: Path, monkeypatch, caplog) -> None:
    import torch
    from torch.utils import cpp_extension

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    logger = logging.getLogger("torch.utils.cpp_extension")
    monkeypatch.setattr(logger, "propagate", True)
    logger.addHandler(caplog.handler)
    before = logger.level
    try:
        logger.setLevel(logging.NOTSET)
        cpp_extension._find_cuda_home()
        assert "No CUDA runtime is found" in caplog.text
        caplog.clear()
        quiet_compiling()
        cpp_extension._find_cuda_home()
        assert caplog.text == ""
        logger.setLevel(logging.INFO)
        quiet_compiling()
        assert logger.level == logging.INFO, "a level that someone set stays"
    finally:
        logger.setLevel(before)
        logger.removeHandler(caplog.handler)
