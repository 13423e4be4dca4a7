"""The same bits in every process: in the one that compiles the kernels, and in those that load them in any order."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, sys
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
from lmlab.generate.engine import Engine, Sampling
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

shape = ModelConfig(layers=2, d_model=64, heads=4, vocab_size=300, context_length=128)
engine = Engine(Transformer(shape).initialise(0).eval(), start_id=0)
text = torch.randint(1, 300, (400,)).tolist()
work = {
    "score": lambda: engine.score_tokens([text], window=128, stride=64),
    "generate": lambda: [(c.ids, c.logprobs) for c in engine.generate([text[:20], text[:5]], Sampling(30))],
}
found = {name: work[name]() for name in sys.argv[1:]}
print(hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest())
"""


@pytest.mark.slow
def test_who_compiled_and_what_came_first_change_no_bit(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    said = []
    for order in (("score", "generate"), ("generate", "score"), ("score", "generate")):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *order], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] and said == said[:1] * 3
