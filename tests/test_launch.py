"""Scripts for clusters: they parse, they say what was asked for, and what cannot be is refused before a queue is waited in."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.errors import Refused
from lmlab.launch import Job, kubernetes, slurm, torchrun

JOB = Job("My Run_1", ("my recipe.yaml", "pretrain.steps=5", "--out", "runs/a b"), nodes=4, gpus=8, hours=36.5)


def test_slurms_script_is_a_shell_script_that_asks_for_what_was_said(tmp_path: Path) -> None:
    text = slurm(JOB)
    script = tmp_path / "job.sh"
    script.write_text(text)
    bash = shutil.which("bash")
    assert bash is not None
    assert subprocess.run([bash, "-n", script], check=False).returncode == 0
    for line in ("--nodes=4", "--gpus-per-node=8", "--time=1-12:30:00", "--job-name=my-run-1", "--signal=B:TERM@120"):
        assert f"#SBATCH {line}\n" in text
    assert "'my recipe.yaml' pretrain.steps=5 --out 'runs/a b'" in text and '--rdzv-endpoint="$head:$port"' in text


def submitted(tmp_path: Path, srun: str) -> tuple[subprocess.Popen[bytes], Path]:
    """The script at work, with stand-ins for Slurm's programs that write down how they were called."""
    log = tmp_path / "log"
    for name, body in {
        "srun": f'echo "srun $*" >> {log}; {srun}',
        "scontrol": f'if [ "$1" = show ]; then echo node7; else echo "scontrol $*" >> {log}; fi',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(slurm(JOB))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "n[7-10]", "SLURM_JOB_ID": "41"}
    return subprocess.Popen(["/bin/bash", script], env=environment), log


def test_what_was_warned_has_time_to_save_and_goes_back_into_the_queue(tmp_path: Path) -> None:
    saving = "trap 'sleep 0.3; touch saved; exit 1' TERM; touch begun; while true; do sleep 0.05; done"
    job, log = submitted(tmp_path, f"cd {tmp_path}; {saving}")
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 1 and (tmp_path / "saved").exists()
    called = log.read_text()
    assert "scontrol requeue 41" in called
    assert "--rdzv-endpoint=node7:20041" in called and "lmlab run my recipe.yaml pretrain.steps=5" in called


@pytest.mark.parametrize("status", [0, 1])
def test_what_ends_by_itself_does_not(tmp_path: Path, status: int) -> None:
    job, log = submitted(tmp_path, f"exit {status}")
    assert job.wait(60) == status
    assert "requeue" not in log.read_text()


def test_kubernetes_gets_a_service_and_an_indexed_job() -> None:
    job = Job("x", ("demo",), nodes=2, gpus=4, container="registry.example/lmlab:1", volume="shared")
    service, work = yaml.safe_load_all(kubernetes(job))
    assert service["spec"]["clusterIP"] == "None" and service["metadata"]["name"] == "x"
    assert (
        work["spec"]["completions"] == work["spec"]["parallelism"] == 2 and work["spec"]["completionMode"] == "Indexed"
    )
    (container,) = work["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert container["command"] == torchrun(job, "x-0.x:29400") and container["command"][-2:] == ["run", "demo"]


@pytest.mark.parametrize(("name", "label"), [("2 Layers", "lmlab-2-layers"), ("测试", "lmlab"), ("a" * 60, "a" * 50)])
def test_a_label_is_one_that_schedulers_take(name: str, label: str) -> None:
    assert Job(name, ("demo",)).label == label
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", label)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Job("x", ("demo",), nodes=0), "nodes: expected at least 1, found 0"),
        (lambda: Job("x", ("demo",), hours=0), "hours: expected more than 0"),
        (lambda: kubernetes(Job("x", ("demo",))), "needs --image and --volume"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(Refused, match=message):
        make()


def test_the_recipe_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    runner = CliRunner()
    file = tmp_path / "job.sh"
    done = runner.invoke(app, ["launch", "slurm", "demo", "pretrain.minuts=3", "--file", str(file)])
    assert done.exit_code != 0 and not file.exists()
    done = runner.invoke(app, ["launch", "slurm", "demo", "--nodes", "2", "--file", str(file)])
    assert done.exit_code == 0 and "--nodes=2" in file.read_text()
