"""What stands in a checkpoint; damage is found and passed over; a full disk loses nothing; which ones are kept."""

import contextlib
import json
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from test_trainer import CONFIG, Killed, Source, assert_same, context_at, settings_of, trained

from lmlab.errors import Failed
from lmlab.model.transformer import Transformer
from lmlab.objective.language_model import LanguageModel
from lmlab.progress import read_jsonl
from lmlab.train import checkpoint, pieces
from lmlab.train.keeping import Keep
from lmlab.train.trainer import fit


def names(out: Path) -> list[str]:
    return [path.name for path in checkpoint.listed(out / "checkpoints")]


def test_what_stands_in_one(tmp_path: Path) -> None:
    trained(tmp_path, settings_of(ema=0.9))
    newest = checkpoint.listed(tmp_path / "checkpoints")[-1]
    files = {path.name for path in newest.iterdir()}
    assert files == {"rank-00000.safetensors", "index.json", "state.json", "SHA256SUMS"}
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=newest, capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and checked.stdout.count(": OK") == 3
    state = json.loads((newest / "state.json").read_text())
    assert state["step"] == 12 and state["ranks"] == 1
    index = json.loads((newest / "index.json").read_text())["tensors"]
    with safe_open(newest / "rank-00000.safetensors", "pt") as file:
        assert set(file.keys()) == set(index)
    groups = {name.split("/")[0] for name in index}
    assert groups == {"network", "optimizer", "average"}
    trainable = {f"network/{name}" for name, _ in Transformer(CONFIG).named_parameters()}
    assert {name for name in index if name.startswith("network/")} == trainable, "a tied head is saved once"


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {"flip": flip, "cut off": cut_off, "lost": Path.unlink, "emptied": lambda path: path.write_bytes(b"")}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["rank-00000.safetensors", "index.json", "state.json", "SHA256SUMS"])
def test_a_damaged_one_is_passed_over(
    tmp_path: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings_of()
    whole = trained(tmp_path / "whole", config)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", config, 9)
    newest = checkpoint.listed(tmp_path / "cut" / "checkpoints")[-1]
    assert newest.name == "step-00000008"
    DAMAGES[damage](newest / file)
    assert not checkpoint.good(newest)
    assert_same(whole, trained(tmp_path / "cut", config))
    assert "step-00000008: is damaged (" in capsys.readouterr().err
    assert (tmp_path / "cut" / "checkpoints" / "damaged-00000008").is_dir(), "kept for whoever wants to look"


def test_where_all_are_damaged_the_run_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings_of()
    whole = trained(tmp_path / "whole", config)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", config, 9)
    for path in checkpoint.listed(tmp_path / "cut" / "checkpoints"):
        flip(path / "rank-00000.safetensors")
    assert_same(whole, trained(tmp_path / "cut", config))
    assert capsys.readouterr().err.count("is damaged") == 2


def test_a_half_written_one_is_not_seen_and_goes(tmp_path: Path) -> None:
    config = settings_of()
    with pytest.raises(Killed):
        trained(tmp_path, config, 6)
    half = tmp_path / "checkpoints" / ".step-00000005.tmp"
    half.mkdir()
    (half / "rank-00000.safetensors").write_bytes(b"half")
    assert names(tmp_path) == ["step-00000004"]
    trained(tmp_path, config)
    assert not half.exists()


# --- a disk that is full, and other errors of writing ----------------------------------------------------------------


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The system says so as it says a full disk. (Python ignores the signal that comes with it.)"""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_goes_on_past_what_could_not_be_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Room comes back before the last save: all that was lost is a checkpoint in between."""
    config, whole = settings_of(), trained(tmp_path / "whole", settings_of())

    class Full(Source):
        def __call__(self, step):  # type: ignore[no-untyped-def]
            if step in (7, 10):
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000 if step == 7 else -1, -1))
            return super().__call__(step)

    network = Transformer(CONFIG).initialise(0)
    fit(network, LanguageModel(), Full(), config, context_at(tmp_path / "cut"))
    assert_same(whole, network)
    said = capsys.readouterr().err
    assert "step-00000008: File too large; not saved. " in said and "step-00000004 is untouched" in said
    assert names(tmp_path / "cut") == ["step-00000004", "step-00000012"]
    assert not list((tmp_path / "cut" / "checkpoints").glob(".*"))


def test_a_run_whose_end_cannot_be_saved_fails_and_keeps_what_it_had(tmp_path: Path) -> None:
    config = settings_of()
    with pytest.raises(Killed):
        trained(tmp_path, config, 9)
    with no_file_beyond(20_000), pytest.raises(Failed, match=r"step-00000012: File too large; not saved: .* untouched"):
        trained(tmp_path, config)
    assert names(tmp_path) == ["step-00000004", "step-00000008"]
    assert all(map(checkpoint.good, checkpoint.listed(tmp_path / "checkpoints")))
    assert_same(trained(tmp_path / "whole", config), trained(tmp_path, config))


@pytest.mark.parametrize("freed", [10, None])
def test_a_disk_that_is_full(tmp_path: Path, freed: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    """A real one, on which others leave no byte from step 6 on: the log waits in memory, and the run goes on. Where there is
    room again before its end nothing is lost; where there is not, what was saved goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: " + mounted.stderr.decode().strip())
    config, run = settings_of(), disk / "run"

    class Others(Source):
        def __call__(self, step):  # type: ignore[no-untyped-def]
            if step == 6:
                with contextlib.suppress(OSError), (disk / "others").open("wb", buffering=0) as file:
                    while True:
                        file.write(b"x" * 512)
            if step == freed:
                (disk / "others").unlink()
            return super().__call__(step)

    def go(source):  # type: ignore[no-untyped-def]
        network, context = Transformer(CONFIG).initialise(0), context_at(run)
        try:
            fit(network, LanguageModel(), source, config, context)
        finally:
            context.metrics.close()
        return network

    try:
        whole = trained(tmp_path / "whole", config)
        if freed is None:
            with pytest.raises(Failed, match="step-00000012: No space left on device; not saved"):
                go(Others())
            assert names(run) == ["step-00000004"] and checkpoint.good(run / "checkpoints" / "step-00000004")
            (disk / "others").unlink()
            assert_same(whole, go(Source()))
        else:
            assert_same(whole, go(Others()))
            assert "step-00000008: No space left on device; not saved" in capsys.readouterr().err
            assert names(run) == ["step-00000004", "step-00000012"]
        losses = [[row["loss"] for row in read_jsonl(place / "metrics.jsonl")] for place in (run, tmp_path / "whole")]
        assert losses[0] == losses[1]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_whatever_the_writer_raises_reaches_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, tensors: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(pieces, "write_file", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        trained(tmp_path, settings_of())
    assert names(tmp_path) == []


def test_it_is_written_beside_training_and_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is slow: steps go on meanwhile, the weights in the file are those of the step it was taken at, and the next
    save waits for the one before."""
    import threading

    real, begun, free, log = pieces.write_file, threading.Event(), threading.Event(), []

    def slow(path: Path, tensors):  # type: ignore[no-untyped-def]
        log.append(f"begin {path.parent.name}")
        begun.set()
        assert free.wait(60)
        told = real(path, tensors)
        log.append(f"end {path.parent.name}")
        return told

    class Watched(Source):
        def __call__(self, step):  # type: ignore[no-untyped-def]
            if step == 6:
                assert begun.wait(60) and names(tmp_path / "slow") == []  # two steps have gone on
            if step == 7:
                free.set()
            return super().__call__(step)

    monkeypatch.setattr(pieces, "write_file", slow)
    config = settings_of()
    fit(Transformer(CONFIG).initialise(0), LanguageModel(), Watched(), config, context_at(tmp_path / "slow"))
    assert log == [f"{what} .step-{step:08d}.tmp" for step in (4, 8, 12) for what in ("begin", "end")]
    monkeypatch.undo()
    trained(tmp_path / "plain", config)
    for one, other in zip(*(checkpoint.listed(tmp_path / run / "checkpoints") for run in ("slow", "plain"))):
        file = "rank-00000.safetensors"
        assert (one / file).read_bytes() == (other / file).read_bytes()


# --- which are kept --------------------------------------------------------------------------------------------------


def test_the_newest_are_kept_and_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = settings_of(keep=2, keep_best=0)
    first = trained(tmp_path, config)
    assert names(tmp_path) == ["step-00000008", "step-00000012"]
    assert_same(first, trained(tmp_path, config, last=0))  # no step is made again


def test_the_best_is_kept_by_what_the_state_says(tmp_path: Path) -> None:
    trained(tmp_path, settings_of(keep=9))
    scores = {}
    for path in checkpoint.listed(tmp_path / "checkpoints"):
        scores[path.name] = json.loads((path / "state.json").read_text())["score"]
    best = min(scores, key=lambda name: scores[name])
    trained(tmp_path / "again", settings_of(keep=1, keep_best=1))
    assert names(tmp_path / "again") == sorted({best, "step-00000012"})


@given(
    scores=st.dictionaries(st.integers(0, 60), st.none() | st.floats(0, 9), min_size=1, max_size=12),
    newest=st.integers(1, 4),
    best=st.integers(0, 3),
    every=st.none() | st.integers(1, 20),
    back=st.none() | st.integers(-5, 60),
)
def test_what_is_asked_for_is_kept_and_nothing_else(scores, newest, best, every, back) -> None:
    spare = Keep(newest, best, every).spare(scores, back)
    kept = [step for step in sorted(scores) if step not in spare]
    assert kept[-newest:] == sorted(scores)[-newest:]
    known = sorted(score for score in scores.values() if score is not None)
    assert sum(scores[step] is not None and scores[step] in known[:best] for step in kept) >= len(known[:best])
    if every is not None:
        assert all(step in kept for step in scores if step % every == 0)
    if back is not None and any(step <= back for step in scores):
        assert any(step <= back for step in kept)
    if every is None and back is None:
        assert len(kept) <= newest + best


# --- another network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"tie_embeddings": False}, {"d_ff": 40}])
def test_one_of_another_network_is_refused(tmp_path: Path, change: dict) -> None:
    trained(tmp_path, settings_of())
    other = Transformer(CONFIG.model_copy(update=change))
    with pytest.raises(Failed, match="holds other weights than this network"):
        fit(other, LanguageModel(), Source(), settings_of(), context_at(tmp_path))
