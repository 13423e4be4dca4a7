"""The same build on threads, processes and Ray; workers that die; full disks; builds killed at any moment."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.corpus import engine, runners
from lmlab.corpus.config import CorpusConfig
from lmlab.corpus.engine import Task
from lmlab.corpus.steps.step import DOCUMENT
from lmlab.errors import Failed, Refused
from tests.corpus.helpers import build, hashes, prose, prose_folder, table


class Dies:
    """Ends its process by SIGKILL on the document "x", until `marker` is there."""

    name = "dies"

    def __init__(self, marker: Path, always: bool = False) -> None:
        self.marker, self.always = marker, always
        self.identity = ["dies", 1]

    def __call__(self, documents: pa.Table) -> pa.Table:
        if "x" in documents["text"].to_pylist() and (self.always or not self.marker.exists()):
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return documents


class Texts:
    """A picklable source."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def __call__(self):
        yield table(*self.texts)


def tasks(folder: Path, step: object, n: int = 4) -> list[Task]:
    return [
        Task(Texts("x" if i == 1 else "y", str(i)), [step], folder / f"p{i}.parquet", str(i), DOCUMENT)
        for i in range(n)
    ]  # type: ignore[list-item]


def test_a_worker_process_that_dies_is_named_and_its_task_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert engine.run(tasks(out, Dies(tmp_path / "marker")), threads=2, engine="processes") == 4
    assert [pq.read_table(out / f"p{i}.parquet")["text"].to_pylist()[1] for i in range(4)] == ["0", "1", "2", "3"]
    said = capfd.readouterr().err
    assert "died (killed by SIGKILL) while it made out/p1.parquet; tried again (1 of 3)" in said
    assert not list(out.glob(".*.tmp")) or all(".p1." in p.name for p in out.glob(".*.tmp")), "only the dead one's"


def test_a_task_that_kills_every_worker_fails_and_the_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    waiting = tasks(out, Dies(tmp_path / "marker", always=True))
    with pytest.raises(Failed, match=r"p1\.parquet: worker process \d+ died \(killed by SIGKILL\), 4 times over"):
        engine.run(waiting, threads=2, engine="processes")
    assert engine.done(waiting[0]) and not engine.done(waiting[1])


def test_an_error_in_a_process_is_the_same_message(tmp_path: Path) -> None:
    class Local:  # cannot be pickled by name; so it is said before any worker dies of it
        name, identity = "local", ["local"]

    with pytest.raises((AttributeError, Failed)):
        engine.run(tasks(tmp_path, Local()), threads=1, engine="processes")
    with pytest.raises(Failed, match=r"step 'fails' failed on document 'd/0': ValueError: no such letter"):
        engine.run(tasks(tmp_path, Fails()), threads=2, engine="processes")


def test_a_script_that_guards_nothing_is_not_run_again_by_its_workers(tmp_path: Path) -> None:
    """And what is defined in it cannot be sent, which is said in one message."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\n"
        "from pathlib import Path\n"
        "from lmlab.corpus import engine\n"
        "from lmlab.errors import Failed\n"
        "from tests.corpus.test_corpus_runners import Fails, Texts, tasks\n"
        "def two(step, name): return tasks(Path(name), step)[2:]\n"
        "print(engine.run(two(Fails(), 'good'), threads=2, engine='processes'))\n"
        "class Own(Fails): pass\n"
        "try: engine.run(two(Own(), 'own'), threads=2, engine='processes')\n"
        "except Failed as error: print(error)\n"
    )
    here = Path(__file__).parents[2]
    paths = os.pathsep.join([str(here / "src"), str(here)])
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True,
        text=True, check=True, timeout=300,
    )  # fmt: skip
    first, second, third = done.stdout.splitlines()
    assert (first, second) == ("once", "2")
    assert "Own" in third and "__main__" in third


def test_the_engine_chooses_processes_where_there_is_text_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Made:
        def __init__(self, name: str, workers: int) -> None:
            made.append((name, workers))

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    for name in runners.RUNNERS:
        monkeypatch.setitem(runners.RUNNERS, name, lambda workers, address, name=name: Made(name, workers))
    for threads, size in ((2, 1e9), (2, 1e6), (1, 1e9), (2, float("inf"))):
        with engine.workers("auto", threads=threads, size=size):
            pass
    assert made == [("processes", 2), ("threads", 2), ("threads", 1), ("processes", 2)]


def test_who_does_the_work_is_no_part_of_a_corpus_s_identity() -> None:
    plain = CorpusConfig()
    for other in ({"engine": "threads"}, {"engine": "processes", "threads": 7}, {"ray_address": "a:1"}):
        assert CorpusConfig.model_validate(other).essence() == plain.essence()
    assert CorpusConfig.model_validate({"shard_bytes": 1 << 16}).essence() != plain.essence()


class Fails:
    name, identity = "fails", ["fails"]

    def __call__(self, documents: pa.Table) -> pa.Table:
        if "x" in documents["text"].to_pylist():
            raise ValueError("no such letter")
        return documents


def test_ray_is_refused_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Refused, match=r'engine: ray needs the extra "ray"'):
        engine.run(tasks(tmp_path, Fails()), engine="ray")


# --- a whole build -----------------------------------------------------------------------------------------------


def everything(root: Path, quiz: Path) -> dict:
    """Settings with every pass over the corpus switched on."""
    return {
        "sources": [{"name": "books", "path": str(root)}],
        "shard_bytes": 4096,
        "repeats": {"enabled": True},
        "duplicate_sentences": {"enabled": True, "least": 3, "min_words_left": 5},
        "duplicate_substrings": {"enabled": True, "length": 12, "min_words_left": 5},
        "decontamination": {"evaluation": [{"path": str(quiz), "ngram": 8}], "action": "cut", "piece": 20},
    }


@pytest.fixture
def corpus(tmp_path: Path) -> dict:
    """Pages with copies, near copies, shared sentences and passages, and a leak."""
    root = prose_folder(tmp_path / "books", 40)
    pages = sorted(root.rglob("*.txt"))
    texts = [page.read_text() for page in pages]
    pages[3].write_text(texts[2])
    pages[5].write_text(texts[4] + " One more line is here to tell.")
    for i in (7, 8, 9):
        pages[i].write_text(texts[i] + "\n\n" + ". ".join(texts[6].split(". ")[:6]))
    for i in (11, 12):
        pages[i].write_text(texts[i] + " xyz " + " ".join(texts[10].split()[:30]))
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text('{"id": 1, "question": "' + " ".join(texts[20].split()[:30]) + '"}\n')
    return everything(root, quiz)


def test_every_pass_did_something_and_processes_make_the_same(tmp_path: Path, corpus: dict) -> None:
    build(tmp_path / "threads", **corpus)
    rows = [
        row
        for path in sorted((tmp_path / "threads" / "documents").iterdir())
        for row in pq.read_table(path).to_pylist()
    ]
    cuts = {cut["step"] for row in rows for cut in row["cuts"]}
    assert cuts >= {"duplicate_sentences", "duplicate_substrings", "decontamination"}
    assert {row["step"] for row in rows} >= {"exact_duplicates", "near_duplicates"}
    build(tmp_path / "processes", engine="processes", threads=2, **corpus)
    assert hashes(tmp_path / "threads") == hashes(tmp_path / "processes")


def start(out: Path, settings: dict, **environment: str) -> subprocess.Popen:
    code = (
        "import sys, json, lmlab.corpus.stage; from pathlib import Path; from tests.corpus.helpers import build;"
        "print('go', flush=True); build(Path(sys.argv[1]), **json.loads(sys.argv[2]))"
    )
    import json

    child = subprocess.Popen(
        [sys.executable, "-c", code, str(out), json.dumps(settings)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment}, start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == b"go\n"
    return child


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["threads", "processes"])
def test_killed_at_random_moments_and_run_again_the_output_is_the_same(tmp_path: Path, corpus: dict, name: str) -> None:
    began = time.monotonic()
    build(tmp_path / "whole", engine=name, threads=2, **corpus)
    whole = time.monotonic() - began
    draw = random.Random(5)
    for _ in range(5):
        child = start(tmp_path / "cut", {**corpus, "engine": name, "threads": 2})
        time.sleep(draw.uniform(0, whole / 3))
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdout, child.stderr):
            assert pipe is not None
            pipe.close()
    build(tmp_path / "cut", engine=name, threads=2, **corpus)
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")


# --- a full disk -------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_cleanly_and_what_was_finished_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file may grow beyond a limit (RLIMIT_FSIZE), which the system says as it says a full disk."""
    small, large = Texts(*["a"] * 5), Texts(*[prose(i, 3000) for i in range(40)])
    two = [Task(small, [], tmp_path / "small.parquet", "s"), Task(large, [], tmp_path / "large.parquet", "l")]
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    try:
        with pytest.raises(Failed, match=r"large\.parquet: could not be written: .*finished shards stay"):
            engine.run(two, threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["small.parquet"]
    assert engine.run(two) == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_build_on_a_disk_that_is_full_goes_on_when_there_is_room(tmp_path: Path, corpus: dict) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: " + mounted.stderr.decode().strip())
    try:
        with pytest.raises(Failed, match=r"No space left on device"):
            build(disk / "out", **corpus)
        done = [p for p in (disk / "out").rglob("*.parquet") if not p.name.startswith(".")]
        assert done and not list((disk / "out").rglob(".*.tmp"))
        times = {p: p.stat().st_mtime_ns for p in done}
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        real, made = engine.perform, []
        try:
            engine.perform = lambda task: (made.append(task.out), real(task))[1]
            build(disk / "out", **corpus)
        finally:
            engine.perform = real
        assert not set(made) & set(times), "what was finished was not made again"
        build(tmp_path / "whole", **corpus)
        assert hashes(disk / "out") == hashes(tmp_path / "whole")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


# --- Ray ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_ray_cluster_of_two_nodes_makes_the_same_though_a_worker_is_killed(
    tmp_path: Path, corpus: dict, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    here = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here / "src"), str(here), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default they starve beside a busy machine's other work
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        with engine.workers("ray", address=cluster.address) as runner:
            out = tmp_path / "dies"
            assert engine.run(tasks(out, Dies(tmp_path / "marker")), runner=runner) == 4
            said = capfd.readouterr().err
            assert "a Ray worker died" in said and "while it made dies/p1.parquet; tried again (1 of 3)" in said
            with pytest.raises(Failed, match="step 'fails' failed on document 'd/0'"):
                engine.run(tasks(tmp_path / "fails", Fails()), runner=runner)
            nodes = tasks(tmp_path / "nodes", Where(), 6)
            engine.run(nodes, runner=runner)
            places = {text for task in nodes for text in pq.read_table(task.out)["text"].to_pylist()}
            assert len(places) == 2, "both nodes worked"
            monkeypatch.chdir(tmp_path)
            killer = threading.Thread(target=kill_one, args=(tmp_path / "ray" / ".work" / "local",), daemon=True)
            killer.start()
            build(Path("ray"), engine="ray", ray_address=cluster.address, **{**corpus, "shard_bytes": 1 << 14})
    finally:
        cluster.shutdown()
    assert not killer.is_alive(), "a worker was killed while the build ran"
    build(tmp_path / "threads", **{**corpus, "shard_bytes": 1 << 14})
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "threads")


def kill_one(folder: Path) -> None:
    """Kill a Ray worker that is doing a task, as soon as the build has made its first shard."""
    while not list(folder.glob("*.parquet")):
        time.sleep(0.02)
    while True:
        for status in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if status.read_bytes().startswith(b"ray::_perform"):
                    os.kill(int(status.parent.name), signal.SIGKILL)
                    return
            except OSError:  # it has just ended
                continue
        time.sleep(0.01)


class Where:
    """The text becomes the name of the node that did the work."""

    name, identity = "where", ["where"]

    def __call__(self, documents: pa.Table) -> pa.Table:
        import ray

        time.sleep(0.5)
        node = ray.get_runtime_context().get_node_id()
        place = documents.schema.get_field_index("text")
        return documents.set_column(place, "text", pa.array([node] * len(documents), pa.string()))


def test_every_engine_has_a_runner() -> None:
    assert {*runners.RUNNERS, "auto"} == set(get_args(engine.EngineName))
