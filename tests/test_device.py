"""What the machine has: limits of containers on made-up trees, and what is said of what was found."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.device import advice, choose_precision, compiler, cores, describe, doctor, matmul_peaks, memory, processor
from lmlab.device.doctor import DEMO, flops_per_token
from lmlab.model.config import ModelConfig

GIB = 2**30


def tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = f"MemTotal:       {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable:   {12 * 2**20} kB\n"


def test_no_limit_is_the_machine(tmp_path):
    root = tree(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"})
    assert memory(root) == {"total": 16 * GIB, "available": 12 * GIB, "limit": None}
    assert cores(root)["quota"] is None
    assert cores(root)["usable"] == min(cores(root)["machine"], cores(root)["affinity"])


def test_limits_of_any_group_above_count(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/user/job\n",
            "sys/fs/cgroup/user/job/memory.max": "max\n",
            "sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/user/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
            "sys/fs/cgroup/user/cpu.max": "50000 100000\n",
        },
    )
    assert memory(root) == {"total": 4 * GIB, "available": 3 * GIB, "limit": 4 * GIB}  # file pages can be dropped
    assert cores(root)["quota"] == cores(root)["usable"] == 0.5


def test_version_1_groups(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:cpu,cpuacct:/box\n3:memory:/box\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",  # "none", as version 1 writes it
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        },
    )
    assert memory(root) == {"total": 2 * GIB, "available": GIB, "limit": 2 * GIB}
    assert cores(root)["quota"] == 1.5


@pytest.mark.parametrize(
    ("text", "has", "lacks"),
    [
        ("model name\t: X 9\nflags\t\t: fpu avx2 avx512f amx_bf16\n", {"avx2", "avx512f", "amx_bf16"}, {"sve", "neon"}),
        ("Features\t: fp asimd sve bf16\n", {"neon", "sve", "arm_bf16"}, {"avx2", "sve2"}),
    ],
)
def test_instruction_sets(tmp_path, text, has, lacks):
    found = processor(tree(tmp_path, {"proc/cpuinfo": text}))["instructions"]
    assert all(found[name] for name in has)
    assert not any(found[name] for name in lacks)


def test_unknown_is_said_to_be_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.processor", lambda: "")
    assert processor(tmp_path)["name"] is None
    assert processor(tmp_path)["instructions"] is None
    found = doctor(measure=False)
    assert found["measured"] is None
    assert found["recipes"]["precision"] is None
    assert found["recipes"]["tokens_per_second"] is None
    found["memory"] = {"total": None, "available": None, "limit": None}
    found["recipes"] = advice(found)
    assert found["recipes"]["fits"] is None
    assert describe(found).count("unknown") >= 5


def test_a_missing_compiler_is_explained(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = compiler()
    assert found["works"] is False
    assert "no-such-compiler" in found["why"]


def peaks(one, onednn, bfloat16):
    rates = {"float32": one, "float32-onednn": onednn, "bfloat16": bfloat16}
    return {name: {"1": rate, "all": None} for name, rate in rates.items()}


def test_precision_follows_the_measurements():
    assert choose_precision(peaks(104, 230, 430)) == "bfloat16"
    assert choose_precision(peaks(104, 230, 200)) == "float32-onednn"
    assert choose_precision(peaks(100, 105, 5)) == "float32"
    assert choose_precision(peaks(100, None, None)) == "float32"


@given(*(st.floats(1, 1e4) for _ in range(3)))
def test_a_slower_precision_is_never_chosen(one, onednn, bfloat16):
    rates = peaks(one, onednn, bfloat16)
    assert rates[choose_precision(rates)]["1"] >= one


def test_flops_are_the_models():
    config = ModelConfig(
        layers=DEMO["layers"], d_model=DEMO["d_model"], d_ff=DEMO["d_ff"], heads=4, vocab_size=DEMO["vocab_size"],
        context_length=DEMO["context_length"],
    )  # fmt: skip
    assert flops_per_token(**DEMO) == config.flops_per_token(DEMO["context_length"])


def test_what_does_not_fit_is_named():
    found = doctor(measure=False)
    found["memory"]["available"], found["disk"]["free"] = GIB, 2**20
    found["recipes"] = advice(found)
    assert found["recipes"]["fits"] is False
    assert "not enough memory and disk" in describe(found)


def test_measuring_puts_torch_back_and_all_is_json():
    import torch

    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    rates = matmul_peaks(seconds=0.01)
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before
    assert all(rate is None or rate > 0 for each in rates.values() for rate in each.values())
    found = {
        **doctor(measure=False),
        "torch": "2",
        "gpus": [{"name": "G", "memory": 8 * GIB, "capability": "7.0", "bfloat16": False}],
        "measured": {"threads": 2, "matmul_gflops": rates, "read_gb_per_second": 20.0},
    }
    found["recipes"] = advice(found)
    assert found["recipes"]["gpu_precision"] == "float32"
    assert found["recipes"]["tokens_per_second"] > 0
    assert f"precision {found['recipes']['precision']}," in describe(json.loads(json.dumps(found)))


def test_importing_it_imports_no_torch():
    code = "import sys, lmlab.device; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
