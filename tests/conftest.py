"""One thread a process, set before torch is imported: two test processes on two cores otherwise wait for each other."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A landing must not hang on the luck of a draw: .ci/run draws the same examples each time, a developer's run new ones.
settings.register_profile("fixed", derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
