"""Scripts that start a recipe's training on a cluster: a batch script for Slurm, a manifest for Kubernetes.

Both start torchrun on every node, which starts one process a GPU; `lmlab run` inside finds its rank there. A job that the
scheduler ends gets SIGTERM first, which torchrun hands on: training saves and leaves, and the same command run again goes on.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from lmlab.errors import Refused

GRACE = 120
"""Seconds between the warning and the end: enough to write a checkpoint. Guessed; raise it for models of many GB."""


@dataclass(frozen=True)
class Job:
    """What to run, and on how much. `run` are the arguments of `lmlab run`."""

    name: str
    run: tuple[str, ...]
    nodes: int = 1
    gpus: int = 8
    """A node; 0 runs on CPUs, one process a node."""
    hours: float = 24.0
    partition: str | None = None
    account: str | None = None
    container: str | None = None
    """Kubernetes: the image that holds lmlab."""
    volume: str | None = None
    """Kubernetes: the claim of a volume that all nodes share, mounted at /work, where runs are written."""

    def __post_init__(self) -> None:
        for field, least in (("nodes", 1), ("gpus", 0)):
            if getattr(self, field) < least:
                raise Refused(f"launch: {field}: expected at least {least}, found {getattr(self, field)}")
        if self.hours <= 0:
            raise Refused(f"launch: hours: expected more than 0, found {self.hours}")

    @property
    def label(self) -> str:
        """The name as schedulers take it: lower case letters, digits and dashes, at most 50."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        begun = (
            plain if plain[:1].isalpha() else f"lmlab-{plain}"
        )  # the name of a Kubernetes service begins with a letter
        return begun[:50].strip("-")


def torchrun(job: Job, endpoint: str) -> list[str]:
    """The command of one node. torchrun restarts all processes when one dies: they resume from the last checkpoint."""
    return [
        "torchrun",
        f"--nnodes={job.nodes}",
        f"--nproc-per-node={max(1, job.gpus)}",
        "--max-restarts=3",
        f"--shutdown-timeout={GRACE - 20}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={job.label}",
        "--module",
        "lmlab",
        "run",
        *job.run,
    ]


def slurm(job: Job) -> str:
    """A batch script: `sbatch FILE`. The script is warned before the time is over and hands the warning on to all ranks, which
    save together; the job is then put back into the queue. (What torchrun leaves with does not say that it was warned.)"""
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={job.label}",
        f"#SBATCH --nodes={job.nodes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={job.gpus}" if job.gpus else None,
        f"#SBATCH --time={_clock(job.hours)}",
        "#SBATCH --exclusive",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={job.label}-%j.log",
        f"#SBATCH --signal=B:TERM@{GRACE}",
        f"#SBATCH --partition={job.partition}" if job.partition else None,
        f"#SBATCH --account={job.account}" if job.account else None,
        "",
        "set -euo pipefail",
        'head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
        'port="$((20000 + SLURM_JOB_ID % 20000))"',
        f"export OMP_NUM_THREADS={1 if job.gpus else '$SLURM_CPUS_ON_NODE'}",
        "export TORCH_NCCL_ASYNC_ERROR_HANDLING=1",
        "",
        "srun --kill-on-bad-exit=1 \\",
        "  " + _shell(torchrun(job, '"$head:$port"')) + " &",
        "step=$! status=0 warned=",
        """trap 'warned=yes; kill -TERM "$step"' TERM""",
        'wait "$step" || status=$?',
        "# the trap ends the first wait; the second is for what the ranks still have to save",
        'if [ -n "$warned" ]; then status=0; wait "$step" || status=$?; fi',
        'if [ -n "$warned" ] && [ "$status" -ne 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$status"',
    ]
    return "\n".join(line for line in lines if line is not None) + "\n"


def kubernetes(job: Job) -> str:
    """A manifest: `kubectl apply -f FILE`. One indexed Job with a pod a node, and a headless Service by which they find the
    first. Raises Refused without an image and a shared volume."""
    missing = [name for name, value in (("--image", job.container), ("--volume", job.volume)) if not value]
    if missing:
        raise Refused(f"launch kubernetes: needs {' and '.join(missing)}: pods share nothing but what is mounted")
    import yaml

    endpoint = f"{job.label}-0.{job.label}:29400"
    resources = {"limits": {"nvidia.com/gpu": job.gpus}} if job.gpus else {}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.label},
        "spec": {"clusterIP": "None", "selector": {"job-name": job.label}, "ports": [{"port": 29400}]},
    }
    container = {
        "name": "lmlab",
        "image": job.container,
        "workingDir": "/work",
        "command": torchrun(job, endpoint),
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        "resources": resources,
        "volumeMounts": [{"name": "work", "mountPath": "/work"}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    pod = {
        "subdomain": job.label,
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": GRACE,
        "containers": [container],
        "volumes": [
            {"name": "work", "persistentVolumeClaim": {"claimName": job.volume}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }
    work = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.label},
        "spec": {
            "completionMode": "Indexed",
            "completions": job.nodes,
            "parallelism": job.nodes,
            "backoffLimit": 3 * job.nodes,
            "activeDeadlineSeconds": round(job.hours * 3600),
            "template": {"metadata": {"labels": {"job-name": job.label}}, "spec": pod},
        },
    }
    return "---\n".join(yaml.safe_dump(part, sort_keys=False, width=120) for part in (service, work))


WRITERS = {"slurm": slurm, "kubernetes": kubernetes}


def write(kind: str, job: Job, out: Path | None) -> str:
    """The script's text, also written to `out` if given."""
    text = WRITERS[kind](job)
    if out is not None:
        from lmlab.run import write_atomic

        write_atomic(out, text)
    return text


def _shell(command: list[str]) -> str:
    """Words quoted for a shell, except those that already are."""
    return " ".join(word if '"$' in word else shlex.quote(word) for word in command)


def _clock(hours: float) -> str:
    minutes = max(1, round(hours * 60))
    return f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00"
